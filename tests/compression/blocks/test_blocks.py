"""Options.blocks: a network block by block is as good as a whole, exact in size, and left as it was."""

import copy
import gc
import warnings
from dataclasses import replace

import pytest
import torch
from tests.support.small_networks import Normed
from tests.support.stacks import Block, InDict, InTuple, Skipping, Stack, stack, tokens
from torch import Tensor, nn

import waterfill
from waterfill import Options
from waterfill.assignment import Assignment
from waterfill.compression.blocks import in_memory
from waterfill.compression.blocks.source import source_in_memory
from waterfill.compression.options import Steps
from waterfill.errors import BadInput, BudgetError
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.find import blocks_of
from waterfill.network.running.forward import as_deployed

ONE_BY_ONE = Options(blocks="layers", threads=1)
QUICK = "Quantize()"


def divergence(made: waterfill.CompressedModel, model: nn.Module) -> float:
    other = made.install(copy.deepcopy(model))
    with torch.no_grad():
        pairs = [(model(b).log_softmax(-1), other(b).log_softmax(-1)) for b in tokens(seed=1)]
    return sum(float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs) / len(pairs)


def trained() -> Stack:
    """A network that has learned which token follows which: its weights matter differently, as in real ones."""
    model = stack(Block, Block, Block)
    random = torch.Generator().manual_seed(3)
    step = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        x = torch.randint(0, 48, (16, 24), generator=random)
        y = (5 * x + x.roll(1, 1)) % 48
        loss = nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        step.zero_grad()
        loss.backward()
        step.step()
    return model.eval()


@pytest.mark.slow
def test_it_is_as_good_as_the_network_as_a_whole_and_better_than_without_inputs():
    model = trained()
    made = waterfill.compress(model, tokens(), bits=3, options=ONE_BY_ONE)
    whole = waterfill.compress(model, tokens(), bits=3, options=Options(steps=Steps(stages=0, repair=False)))
    plain = waterfill.compress(model, bits=3)
    assert made.size <= int(3 * made.weights / 8) and made.size >= 0.97 * whole.size
    assert divergence(made, model) < 1.1 * divergence(whole, model)
    assert divergence(made, model) < 0.5 * divergence(plain, model)
    assert made.notes["blocks"] == "layers" and made.notes["samples"] == 12 * 24 and not made.warnings


@pytest.mark.parametrize(
    ("budget", "tied"),
    [
        pytest.param({"bits": 2.5}, True, marks=pytest.mark.slow),
        ({"size": 9000}, False),
        pytest.param({"ratio": 9.0}, True, marks=pytest.mark.slow),
        pytest.param({"price": 1e-6}, False, marks=pytest.mark.slow),
    ],
)
def test_every_budget_is_met(budget, tied):
    model = stack(Block, Block, tied=tied)
    made = waterfill.compress(model, tokens(2), spec=QUICK, **budget, options=ONE_BY_ONE)
    if "price" not in budget:
        allowed = {"bits": 2.5 * made.weights / 8, "size": 9000, "ratio": made.notes["original"] / 9}[
            next(iter(budget))
        ]
        assert 0.97 * allowed <= made.size <= allowed
    assert set(made.install(stack(Block, Block, tied=tied)).state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("kind", [InTuple, pytest.param(InDict, marks=pytest.mark.slow)])
def test_blocks_that_return_or_take_other_things_give_the_same_file(kind):
    plain, made = (
        waterfill.compress(stack(each, each), tokens(2), spec=QUICK, price=1e-5, options=ONE_BY_ONE)
        for each in (Block, kind)
    )
    assert {n: e.blob for n, e in made.entries.items()} == {n: e.blob for n, e in plain.entries.items()}


def test_the_network_is_left_as_it_was():
    model = stack(Block, Block).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    waterfill.compress(model, tokens(2), spec=QUICK, price=1e-5, options=ONE_BY_ONE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_network_of_inference_mode_gives_the_same_file():
    plain = waterfill.compress(stack(Block, Block), tokens(2), spec=QUICK, price=1e-5, options=ONE_BY_ONE)
    with torch.inference_mode():
        made = waterfill.compress(stack(Block, Block), tokens(2), spec=QUICK, price=1e-5, options=ONE_BY_ONE)
    assert {n: e.blob for n, e in made.entries.items()} == {n: e.blob for n, e in plain.entries.items()}


def test_hooks_of_blocks_run_once():
    # they ran with the block and with what stands in its place: another network was measured
    model = stack(Block, Block)
    model.layers[0].register_forward_pre_hook(lambda _, given: (3 * given[0], *given[1:]))
    model.layers[1].register_forward_hook(lambda _, given, result: 0.2 * result)
    source = source_in_memory(model, blocks_of(model), Assignment.of(None))
    chain = Chain(source.model, source.blocks, source.original)
    batch = tokens(2)[0]
    with torch.no_grad(), as_deployed(source.model):
        chain.check(batch)
        state, calls = chain.begin(batch)
        for i, how in enumerate(calls):
            state = chain.run(source.original(i), how, state)
        assert torch.allclose(chain.end(batch, state), model(batch), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_network_that_is_no_chain_of_like_blocks_is_refused_by_name_and_taken_as_a_whole_by_itself(monkeypatch):
    monkeypatch.setattr(in_memory, "MANY", 1)
    images = list(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).split(4))
    with pytest.warns(UserWarning, match=r"as a whole, not block by block: .* no list of modules"):
        whole = waterfill.compress(Normed().eval(), images, spec=QUICK, bits=4)
    assert "blocks" not in whole.notes
    with pytest.raises(BadInput, match="no module 'layers'"):
        waterfill.compress(Normed().eval(), images, spec=QUICK, bits=4, options=ONE_BY_ONE)
    with pytest.raises(BadInput, match="something else passes"):
        waterfill.compress(stack(Block, Block, of=Skipping), tokens(4), bits=4, options=ONE_BY_ONE)


@pytest.mark.slow
def test_only_large_networks_are_taken_block_by_block_unless_told(monkeypatch):
    model = stack(Block, Block)
    with warnings.catch_warnings(record=True) as caught:
        assert "blocks" not in waterfill.compress(model, tokens(4), spec=QUICK, bits=4).notes
        monkeypatch.setattr(in_memory, "MANY", 1)
        assert waterfill.compress(model, tokens(4), spec=QUICK, bits=4).notes["blocks"] == "layers"
        none = replace(ONE_BY_ONE, blocks="none")
        assert "blocks" not in waterfill.compress(model, tokens(4), spec=QUICK, bits=4, options=none).notes
    assert not caught


def test_weights_that_no_input_reaches_are_in_the_file_with_a_warning():
    model = stack(Block, Block)
    model.layers[1].spare = nn.Linear(32, 32)
    model.unused = nn.Linear(32, 32)
    made = waterfill.compress(model, tokens(2), spec=QUICK, price=1e-7, options=ONE_BY_ONE)
    assert made.notes["unreached"] == ["layers.1.spare.weight", "unused.weight"]
    assert {row["name"] for row in made.table() if "assumed" in row["warning"]} >= {*made.notes["unreached"]}
    assert 1 < next(8 * row["bytes"] / 1024 for row in made.table() if row["name"] == "unused.weight") < 8


def test_a_budget_below_the_smallest_file_is_refused():
    with pytest.raises(BudgetError, match="of 200 bytes is asked for"):
        waterfill.compress(stack(Block, Block), tokens(4), spec=QUICK, size=200, options=ONE_BY_ONE)


def test_blocks_that_share_weights_are_refused():
    model = stack(Block, Block)
    model.layers[1].q.weight = model.layers[0].q.weight
    with pytest.raises(BadInput, match="blocks share no weights"):
        waterfill.compress(model, tokens(4), bits=4, options=ONE_BY_ONE)


def test_tokens_that_make_nan_name_the_weight():
    model = stack(Block, Block)
    with torch.no_grad():
        model.layers[1].up.weight[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"layers\.1\.up\.weight"):
        waterfill.compress(model, tokens(4), bits=4, options=ONE_BY_ONE)


@pytest.mark.slow
def test_hidden_states_beyond_the_memory_go_to_disk_and_change_nothing():
    model = stack(Block, Block)
    made = [
        waterfill.compress(model, tokens(4), spec=QUICK, bits=3, options=replace(ONE_BY_ONE, memory=memory))
        for memory in (1 << 20, 40_000)
    ]
    assert made[0].size == made[1].size
    assert [e.blob for e in made[0].entries.values()] == [e.blob for e in made[1].entries.values()]


class Experts(Block):
    """A block whose gated layer is one of several, chosen token by token, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = super().forward(x, mask)
        flat = x.reshape(-1, x.shape[-1])
        chosen, out = flat[:, :3].argmax(1), torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            out[chosen == i] = expert(flat[chosen == i])
        return x + out.reshape(x.shape)


def test_experts_in_a_loop_have_matrices_each():
    made = waterfill.compress(stack(Experts, Experts), tokens(2), spec=QUICK, price=1e-8, options=ONE_BY_ONE)
    rows = {row["name"]: row for row in made.table() if "experts" in row["name"]}
    assert len(rows) == 6 and all(row["error"] < 0.9 for row in rows.values())


class Stacked(Block):
    """A block whose experts are matrices of one tensor; hardly a token is given to the second, none to the third."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.randn(3, 32, 32) / 6)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = super().forward(x, mask)
        flat = x.reshape(-1, x.shape[-1])
        chosen, out = (flat[:, 0] > 3 * flat[:, 1:].std()).long(), torch.zeros_like(flat)
        for i in range(3):
            if bool((chosen == i).any()):
                out[chosen == i] = nn.functional.linear(flat[chosen == i], self.experts[i])
        return x + out.reshape(x.shape)


@pytest.mark.slow
def test_of_stacked_experts_the_one_with_most_tokens_is_kept_best():
    model = stack(Stacked, Stacked)
    made = waterfill.compress(model, tokens(8), spec=QUICK, price=1e-6, options=ONE_BY_ONE)
    for name in ("layers.0.experts", "layers.1.experts"):
        gaps = (made.state_dict()[name] - model.state_dict()[name]).flatten(1).norm(dim=1)
        assert gaps[0] < 0.7 * gaps[1] and gaps[0] < 0.7 * gaps[2]


@pytest.mark.slow
def test_gram_matrices_of_finished_blocks_are_given_back():
    # weights hold themselves in cycles, which the collector does not look at for tens of blocks
    shapes, alive = {(32, 32), (48, 48)}, list[int]()

    def count(_):
        found = (o for o in gc.get_objects() if type(o) is Tensor)  # asking others for their class may warn
        alive.append(sum(one.dtype == torch.float32 and tuple(one.shape) in shapes for one in found))

    gc.collect()
    gc.disable()
    try:
        how = replace(ONE_BY_ONE, progress=count)
        waterfill.compress(stack(*[Block] * 6), tokens(2), spec=QUICK, price=1e-5, options=how)
    finally:
        gc.enable()
    measuring, fitting = alive[:6], alive[6:]
    assert max(measuring[1:]) <= measuring[0] + 20 and max(fitting[2:]) <= fitting[1] + 20
