"""What a file gives back does not depend on the processor, on threads, on the compiled core or on PyTorch's state."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from tests.golden.models import digests, network
from tests.support.restored import digest
from torch import nn

import waterfill
from waterfill import Options, Steps
from waterfill.cli import main
from waterfill.model.entry import Entry, encode
from waterfill.network.layout import layout_of
from waterfill.parts.dense import DensePart
from waterfill.parts.lowrank import LowRankPart

CHECKOUT = Path(__file__).resolve().parent.parent
GOLDEN = sorted(map(str, (CHECKOUT / "tests/golden").glob("models-*/*.wf")))
RECIPES = (
    "Quantize(states=8)",
    "LowRank(rank=6)",
    "LowRank() + Quantize() + Prune(keep=0.02)",
    "Sampled() + Codebook()",
)
ENVIRONMENTS = {
    "as it is": {},
    "no vectors": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL the same everywhere": {"MKL_CBWR": "COMPATIBLE"},
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "no core": {"WATERFILL_PURE_PYTHON": "1"},
}
# To start a process takes seconds. Settings that do not touch one another share one in the fast tests; where these
# fail, the slow ones, each by itself, tell which it was.
TOGETHER = (("no vectors", "MKL the same everywhere"), ("AVX2", "two threads", "no core"))


class Wide(nn.Module):
    """Products long enough for every path of a matrix multiplication."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(150, 130), nn.Linear(130, 9).to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu().to(torch.bfloat16)).float()


def denormal() -> waterfill.CompressedModel:
    """Products, and numbers of other types, below the least float32 with a leading one."""
    factors = (DensePart((12, 3), 1e-20 * torch.randn(12, 3)), DensePart((3, 10), 1e-20 * torch.randn(3, 10)))
    halves = waterfill.compress(
        {"b": torch.randn(200).mul(1e-39).bfloat16(), "h": torch.randn(200).mul(1e-6).half()}, price=1e-9
    )
    parts = (LowRankPart((12, 10), factors),)
    product = Entry("w", layout_of((12, 10), torch.float32), parts, encode(parts))
    return waterfill.CompressedModel({"w": product, **halves.entries})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The golden files, and one for each recipe made here and now."""
    torch.manual_seed(3)
    folder, made = tmp_path_factory.mktemp("settings"), []
    for i, recipe in enumerate(RECIPES):
        path = folder / f"{i}.wf"
        waterfill.compress(Wide(), spec=recipe, price=1e-4).save(path)
        made.append(str(path))
    denormal().save(folder / "denormal.wf")
    return [str(folder / "denormal.wf"), *GOLDEN, *made]


@pytest.fixture(scope="module")
def wanted(files: list[str]) -> list[str]:
    return [digest(path) for path in files]


@pytest.mark.parametrize(
    "names", [*TOGETHER, *(pytest.param((name,), marks=pytest.mark.slow) for name in ENVIRONMENTS)]
)
def test_restored_weights_are_the_same_in_every_environment(
    names: tuple[str, ...], files: list[str], wanted: list[str]
) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in names:
        environment |= ENVIRONMENTS[name]
    command = [sys.executable, "-m", "tests.support.restored", *files]
    done = subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said, *found = done.stdout.splitlines()
    if "no core" in names:
        assert said.startswith("no core")
    if "two threads" in names:
        assert said.split()[-2] == "2"
    assert found == wanted


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def set_by(function: Callable[[object], object], value: object, before: object) -> Iterator[None]:
    function(value)
    try:
        yield
    finally:
        function(before)


STATES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu"),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "meta": lambda: torch.device("meta"),
    "medium precision": lambda: set_by(torch.set_float32_matmul_precision, "medium", "highest"),
    "no denormals": lambda: set_by(torch.set_flush_denormal, True, False),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": lambda: set_by(torch.use_deterministic_algorithms, True, False),
}
# A compression takes a second: here, too, several states at once, and the slow tests tell which it was.
WITH_GRADIENTS = [("float64", "medium precision", "no denormals"), ("float16", "gradients"), ("bfloat16", "meta")]
AT_ONCE = [(*WITH_GRADIENTS[0], "autocast"), WITH_GRADIENTS[1], (*WITH_GRADIENTS[2], "inference mode")]
AT_ONCE += [("deterministic", "autocast to float16")]
WITH_GRADIENTS += [("deterministic",)]


@contextmanager
def all_of(names: tuple[str, ...]) -> Iterator[None]:
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(STATES[name]())
        yield


def alone(states: Iterable[str]) -> list[object]:
    """Each state by itself, in the slow tests."""
    return [pytest.param((name,), marks=pytest.mark.slow) for name in states]


@pytest.mark.parametrize("state", STATES)
def test_restored_weights_are_the_same_whatever_the_state_of_torch(
    state: str, files: list[str], wanted: list[str]
) -> None:
    with STATES[state]():
        found = [digest(path) for path in files]
        one = digests({"w": waterfill.load_tensor(files[-3], "first.weight")})["w"]
        assert main(["verify", "--deep", files[-2]]) == 0
    assert found == wanted
    assert one == digests(waterfill.load(files[-3]).state_dict())["first.weight"]


@pytest.mark.parametrize("state", STATES)
def test_a_module_gets_the_same_weights_whatever_the_state_of_torch(state: str, files: list[str]) -> None:
    own, other = Wide(), Wide()
    waterfill.load(files[-2]).install(own)
    with STATES[state]():
        waterfill.load(files[-2]).install(other)
    assert digests(own.state_dict()) == digests(other.state_dict())


def test_a_module_under_autocast_runs_with_the_weights_that_were_installed() -> None:
    own, batch = Wide(), torch.randn(4, 150)
    made = waterfill.compress(Wide(), price=1e-3)
    with torch.autocast("cpu"):
        before = own(batch)
        after = made.install(own)(batch)
    with torch.autocast("cpu"):
        assert torch.equal(own(batch), after) and not torch.equal(before, after)


MADE = (
    RECIPES[0],
    "Prune() | Quantize(bits=4, group=16)",
    "LowRank(factors=Codebook(levels=8))",
)


def kinds() -> nn.ModuleDict:
    """Kernels, the matrices and vectors of a recurrent layer, stacked matrices and a buffer."""
    net = network()
    assert isinstance(net, nn.ModuleDict)
    for name in ("depthwise", "norm", "embed", "head"):
        del net[name]
    return net


@pytest.fixture(scope="module")
def blobs() -> list[str]:
    return made_without_data(kinds())


def made_without_data(net: nn.Module) -> list[str]:
    """Digests of whole blobs."""
    found = [waterfill.compress(net, spec=recipe, price=1e-3) for recipe in MADE]
    return [hashlib.sha256(b"".join(entry.blob for entry in model.entries.values())).hexdigest() for model in found]


@pytest.mark.parametrize("states", [*AT_ONCE, *alone(STATES)])
def test_compression_is_the_same_whatever_the_state_of_torch(states: tuple[str, ...], blobs: list[str]) -> None:
    net = kinds()
    with all_of(states):
        assert made_without_data(net) == blobs


def small_net() -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 8)).eval()
    return net, list(torch.randn(24, 3, 6, 6).split(8))


def blob_of_data(net: nn.Module, batches: list[torch.Tensor], **options: object) -> str:
    recipe = "Quantize(states=8) | LowRank()"
    model = waterfill.compress(net, batches, spec=recipe, price=1e-2, options=Options(steps=Steps(stages=1)), **options)
    return hashlib.sha256(b"".join(entry.blob for entry in model.entries.values())).hexdigest()


@pytest.fixture(scope="module")
def blob() -> str:
    return blob_of_data(*small_net())


@pytest.mark.parametrize(
    "states",
    [*WITH_GRADIENTS, *alone(name for name in STATES if "autocast" not in name and name != "inference mode")],
)
def test_compression_with_data_is_the_same_whatever_the_state_of_torch(states: tuple[str, ...], blob: str) -> None:
    """Under autocast the network itself says something else, and under inference mode it has no gradients."""
    net, batches = small_net()
    with all_of(states):
        assert blob_of_data(net, batches) == blob


def test_the_network_runs_under_the_autocast_of_the_user_and_nothing_else_does(blob: str) -> None:
    net, batches = small_net()

    def run(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu"):
            return model(batch)

    seen: list[bool] = []

    def look(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return model(batch)

    wanted = blob_of_data(net, batches, forward=run)
    with torch.autocast("cpu"):
        found = blob_of_data(net, batches, forward=look)
        assert torch.is_autocast_enabled("cpu")
    assert seen and all(seen)
    assert found == wanted != blob


@pytest.mark.parametrize("state", ["float64", "bfloat16", "autocast", "medium precision"])
def test_a_spec_fits_the_same_part_whatever_the_state_of_torch(state: str) -> None:
    target, inputs = torch.randn(40, 30), torch.randn(90, 30)
    importance = waterfill.Importance(gram=inputs.T @ inputs / 90)
    specs = [
        waterfill.parse(recipe)
        for recipe in ("LowRank()", "Prune(keep=0.3)", "Quantize(states=8)", "LowRank() + Quantize()")
    ]
    wanted = [spec.fit(target, importance, 1e-2).encode() for spec in specs]
    with STATES[state]():
        assert [spec.fit(target, importance, 1e-2).encode() for spec in specs] == wanted
