"""Networks as chains of blocks: which are found, how they are called, and what is refused."""

import pytest
import torch
from tests.support.small_networks import Normed
from tests.support.stacks import Block, Cached, Growing, InDict, InTuple, Skipping, Stack, stack, tokens
from torch import nn

from waterfill.errors import BadInput
from waterfill.network.blocks.chain import Chain
from waterfill.network.blocks.find import blocks_of
from waterfill.network.running.forward import as_deployed, copy_of


def chain_of(model: nn.Module) -> Chain:
    blocks, other = blocks_of(model), copy_of(model, sharing=True)
    return Chain(model, blocks, lambda i: other.get_submodule(blocks.names[i]))


def through(chain: Chain, batch: torch.Tensor) -> torch.Tensor:
    state, calls = chain.begin(batch)
    for i, how in enumerate(calls):
        state = chain.run(chain.original(i), how, state)
    return chain.end(batch, state)


@pytest.mark.parametrize("kind", [Block, InTuple, InDict, Cached])
def test_blocks_run_one_by_one_give_the_outputs_of_the_network(kind):
    model, batch = stack(kind, kind, kind), tokens(2)[0]
    expected = model(batch)
    chain = chain_of(model)
    with as_deployed(model):
        chain.check(batch)
        assert torch.equal(through(chain, batch), expected)
        assert torch.equal(through(chain, batch), expected)  # a cache that was written to is not used again
    assert torch.equal(model(batch), expected)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (stack(Block, Block, of=Skipping), "something else passes"),
        (stack(Growing, Growing), "without a tensor of that shape"),
    ],
)
def test_a_network_that_is_no_chain_is_refused_with_the_reason(model, said):
    with pytest.raises(BadInput, match=said), as_deployed(model):
        chain_of(model).check(tokens(2)[0])


def test_the_largest_list_is_found_and_any_can_be_named():
    model = stack(Block, Block, Block)
    model.extra = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
    assert blocks_of(model).names == ("layers.0", "layers.1", "layers.2")
    assert blocks_of(model, "extra").names[-1] == "extra.8"
    assert blocks_of(model).owner_of("layers.1.q.weight") == 1 and blocks_of(model).owner_of("norm.weight") is None


@pytest.mark.parametrize(
    ("model", "prefix", "said"),
    [
        (stack(Block, InTuple), None, "not alike: 0 is a Block, 1 a InTuple"),
        (stack(Block, Block), "layerz", "no module 'layerz'.*: layers"),
        (stack(Block, Block), "norm", "holds 0 modules"),
        (Normed(), None, "no list of modules"),
        (nn.Sequential(nn.Linear(90, 90), nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))), None, "holds 2% of"),
        (nn.Sequential(nn.Sequential(nn.ReLU(), nn.ReLU())), "0", "hold no parameters"),
    ],
)
def test_what_is_no_run_of_like_blocks_is_refused_with_the_reason(model, prefix, said):
    with pytest.raises(BadInput, match=said):
        blocks_of(model, prefix)


def test_blocks_that_run_twice_or_not_at_all_are_refused():
    class Twice(Stack):
        def through(self, layer: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return layer(layer(x, mask=mask), mask=mask)

    model = stack(Block, Block, of=Twice)
    with pytest.raises(BadInput, match="another order .* or more than once"), as_deployed(model):
        chain_of(model).check(tokens(2)[0])
