"""Networks that learn while they are compressed."""

from waterfill.learn.lc import LC, Schedule
from waterfill.learn.learner import Learner
from waterfill.learn.losses import Imitation
from waterfill.learn.run import Training, run
from waterfill.learn.small_tensors import SmallTensors
from waterfill.learn.straight_through import StraightThrough

__all__ = ["LC", "Imitation", "Learner", "Schedule", "SmallTensors", "StraightThrough", "Training", "run"]
