"""A classification problem that a small network learns in a second: ten noisy prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from waterfill.learn import Imitation, Learner

CLASSES, INPUTS = 10, 24


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, CLASSES))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    prototypes = torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return prototypes[labels] + 1.1 * torch.randn(count, INPUTS, generator=generator), labels


X, Y = samples(1024, 2)
X_TEST, Y_TEST = samples(1024, 3)


def trained(epochs: int = 8, model: nn.Sequential | None = None) -> nn.Sequential:
    """The network, or another one, trained."""
    model = net() if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(epochs):
        for x, y in zip(X.split(64), Y.split(64), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(X_TEST).argmax(1) == Y_TEST).float().mean())


def learned(learner: Learner, teacher: nn.Module, epochs: int = 6, rate: float = 3e-2) -> Learner:
    """After some epochs without labels."""
    optimizer, loss = torch.optim.Adam(learner.groups(), rate), Imitation()
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - epoch / epochs) * group["pace"]
        for x in X.split(64):
            learner.model.zero_grad()
            optimizer.zero_grad()
            with torch.no_grad():
                expected = teacher(x)
            (loss(learner.model(x), expected) + learner.penalty()).backward()
            learner.after_backward()
            optimizer.step()
            learner.after_step()
        learner.c_step()
    return learner


def goes_on_alike(learner: Learner, again: Learner) -> None:
    """A new learner with the state of another has its network, and ends in the same file."""
    again.load({name: value.clone() for name, value in learner.state().items()})
    assert all(torch.equal(a, b) for a, b in zip(learner.model.parameters(), again.model.parameters(), strict=True))
    found, expected = again.result().entries, learner.result().entries
    assert all(found[name].blob == entry.blob for name, entry in expected.items())
