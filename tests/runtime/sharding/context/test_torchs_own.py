"""The pass's attention beside torch's own context parallelism, on two processes with gloo."""

import math

import pytest
import torch

from autopart.records.rank_group import Group
from autopart.runtime.sharding.context.causal import causal_attention
from autopart.runtime.sharding.context.exchange import gather_positions, own_chunks
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import graphs_of
from autopart.runtime.sharding.groups import Arrival, LoneRank, registered
from autopart.runtime.sharding.thread_ranks import ThreadRanks
from tests.support.runtime.context_models import CausalAttention, Decoder
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.sharded_models import small_model
from tests.support.runtime.torch_context import TorchsAttention, torchs_attention

pytestmark = pytest.mark.slow

SHAPE = (2, 2, 8, 4)
"""Samples, heads, positions, width of a head: keys and values of `CausalAttention`."""


@pytest.fixture(scope="module")
def whole() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    return tuple(
        torch.randn(SHAPE, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(4)
    )


@pytest.fixture
def torchs(two_ranks: RankPool, whole: tuple[torch.Tensor, ...]) -> list[TorchsAttention]:
    return torchs_with(two_ranks, whole, "allgather")


def torchs_with(
    ranks: RankPool, whole: tuple[torch.Tensor, ...], rotation: str
) -> list[TorchsAttention]:
    *tensors, weights = (x.detach() for x in whole)
    return ranks.call(torchs_attention, tuple(tensors), weights, rotation)


@pytest.mark.parametrize("has_ring", [False, True])
def test_each_rank_has_torchs_rows_and_gradients(
    torchs: list[TorchsAttention], whole: tuple[torch.Tensor, ...], has_ring: bool
) -> None:
    group = ThreadRanks(2)
    found: dict[int, tuple[torch.Tensor, ...]] = {}

    def work(rank: int) -> None:
        own = [own_chunks(x.detach(), (2, 1), 2, rank, "group").requires_grad_() for x in whole]
        query, key, value, weights = own
        if has_ring:
            output = ring_attention(query, key, value, True, None, 2, "group")
        else:
            keys, values = gather_positions((key, value), (2, 2), (1, 1), 2, "group")
            output = causal_attention(query, keys, values, 0.0, None, False, 2, "group")
        gradients = torch.autograd.grad((output * weights).sum(), (query, key, value))
        found[rank] = (output.detach(), *gradients)

    with registered("group", group):
        group.run(work)
    for rank, theirs in enumerate(torchs):
        for own, other in zip(found[rank], (theirs.output, *theirs.gradients), strict=True):
            torch.testing.assert_close(own, other.double(), rtol=0, atol=1e-5)


def test_the_forward_s_collectives_are_torchs_in_kind_bytes_and_number(
    torchs: list[TorchsAttention],
) -> None:
    """Keys and values are gathered in one message on both sides.

    In its backward torch gathers them again, and hands gradients around in c messages of the rank's own keys and values.
    Here they stay, and one reduce-scatter of the same bytes adds the gradients up.
    """
    case = small_model(Decoder(CausalAttention("fused")))
    graphs = graphs_of(case.captured, Group(context=2))
    listed = count_collectives(graphs, graphs.local(0))["block"]
    forward = [(one.kind, one.bytes) for one in listed if one.phase == "forward"]
    backward = [(one.kind, one.bytes) for one in listed if one.phase == "input_grad"]
    size = 2 * 8 * math.prod(SHAPE)  # keys and values in float64
    for theirs in torchs:
        assert theirs.forward == [("all_gather_into_tensor", size)]
        assert forward == [("all_gather", size)]
        names = [name for name, _ in theirs.backward]
        assert names.count("all_gather_into_tensor") == 1
        # Torch adds gradients up in float32: half of the bytes.
        handed = [2 * n for name, n in theirs.backward if name.startswith("all_to_all")]
        assert handed == [size // 2] * 2
        assert backward == [("reduce_scatter", size)]
        assert theirs.counted == {"all_gather_into_tensor": 1, "all_to_all_single": 2}


class Counting(LoneRank):
    """A lone rank that notes the bytes that it would send."""

    def __init__(self) -> None:
        super().__init__(2)
        self.sent: list[int] = []

    def shift(self, tensor: torch.Tensor, by: int) -> Arrival:
        self.sent.append(tensor.nbytes)
        return super().shift(tensor, by)


def test_the_ring_s_messages_are_torchs_but_for_the_gradients_way_home(
    two_ranks: RankPool, whole: tuple[torch.Tensor, ...]
) -> None:
    """Torch begins its backward with the rank's own block, so its gradients need one more message to come home."""
    block = 2 * 8 * math.prod(SHAPE) // 2
    own = [own_chunks(x.detach(), (2, 1), 2, 0, "group").requires_grad_() for x in whole[:3]]
    ranks = Counting()
    with registered("group", ranks):
        output = ring_attention(own[0], own[1], own[2], True, None, 2, "group")
        forward = list(ranks.sent)
        output.sum().backward()
        backward = ranks.sent[len(forward) :]
    for theirs in torchs_with(two_ranks, whole, "alltoall"):
        assert theirs.forward == [("all_to_all_single", block)]
        # Torch adds gradients up in float32: half of the bytes.
        home = [("all_to_all_single", block // 2)] * 2
        assert theirs.backward == [("all_to_all_single", block), *home]
        assert theirs.counted == {"all_to_all_single": 3}
    assert forward == [block] and backward == [block, block]
