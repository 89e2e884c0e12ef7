"""Networks that learn while they are compressed."""

from waterfill.learn.distill import Distillation, distill
from waterfill.learn.learners.frozen_codes import FrozenCodes
from waterfill.learn.learners.lc import LC
from waterfill.learn.learners.learner import Learner
from waterfill.learn.learners.schedule import Schedule
from waterfill.learn.learners.straight_through import StraightThrough
from waterfill.learn.loop.run import run
from waterfill.learn.loop.training import Training
from waterfill.learn.losses import Imitation
from waterfill.learn.train_big import Pareto, train_big

__all__ = [
    "LC",
    "Distillation",
    "FrozenCodes",
    "Imitation",
    "Learner",
    "Pareto",
    "Schedule",
    "StraightThrough",
    "Training",
    "distill",
    "run",
    "train_big",
]
