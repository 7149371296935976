"""Attention whose keys and values go around a ring, beside torch's own over the whole sequence."""

# pyright: reportPrivateUsage=false

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from autopart.runtime.measuring.saved_tensors import storage_bytes
from autopart.runtime.profiling.op_costs import OpCosts
from autopart.runtime.sharding.context import ring
from autopart.runtime.sharding.context.exchange import own_chunks
from autopart.runtime.sharding.context.ring import ring_attention
from autopart.runtime.sharding.context.states import CONTEXT
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.thread_ranks import ThreadRanks
from tests.runtime.sharding.context.test_causal import RankOf

LENGTH = 16


def drawn(heads: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, heads, length, 6, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_rows_and_all_gradients_are_those_of_the_whole(degree: int, is_causal: bool) -> None:
    torch.manual_seed(0)
    query, key, value, weights = drawn(4), drawn(2), drawn(2), drawn(4).detach()
    whole = functional.scaled_dot_product_attention(
        query, key, value, is_causal=is_causal, enable_gqa=True
    )
    wanted = (whole, *torch.autograd.grad((whole * weights).sum(), (query, key, value)))
    found: dict[int, tuple[torch.Tensor, ...]] = {}

    def work(rank: int) -> None:
        def part(x: torch.Tensor) -> torch.Tensor:
            return own_chunks(x.detach(), (2, 1), degree, rank, CONTEXT)

        own = [part(x).requires_grad_() for x in (query, key, value)]
        output = ring_attention(own[0], own[1], own[2], is_causal, None, degree, "group")
        found[rank] = (output, *torch.autograd.grad((output * part(weights)).sum(), own))

    ranks = ThreadRanks(degree)
    with registered("group", ranks):
        ranks.run(work)
    for rank, those in found.items():
        for one, other in zip(those, wanted, strict=True):
            expected = own_chunks(other, (2, 1), degree, rank, CONTEXT)
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


def test_keys_of_another_sequence_may_have_another_length() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(2), drawn(2, 8), drawn(2, 8)
    wanted = functional.scaled_dot_product_attention(query, key, value)
    found: dict[int, torch.Tensor] = {}

    def work(rank: int) -> None:
        own = [own_chunks(x.detach(), (2, 1), 2, rank, CONTEXT) for x in (query, key, value)]
        found[rank] = ring_attention(own[0], own[1], own[2], False, None, 2, "group")

    ranks = ThreadRanks(2)
    with registered("group", ranks):
        ranks.run(work)
    for rank, one in found.items():
        expected = own_chunks(wanted, (2, 1), 2, rank, CONTEXT)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_turns_of_all_ranks_have_equal_work(degree: int) -> None:
    """Under a causal mask, each turn has a c-th of the rank's rows times half of the keys."""
    shape = (1, 2, 64 // degree, 8)
    for rank in range(degree):
        own = [torch.zeros(shape, requires_grad=True) for _ in range(3)]
        with registered("group", RankOf(degree, rank)), OpCosts() as costs:
            output = ring_attention(own[0], own[1], own[2], True, None, degree, "group")
            forward = [one for one in costs.take() if one.kind == "attention"]
            output.sum().backward()
            backward = [one for one in costs.take() if one.kind == "attention"]
        turn = 4 * 2 * shape[2] * 64 // 2 * 8 // degree
        assert [one.flops // (1 + one.causal) for one in forward] == [turn] * degree
        assert {one.flops // (1 + one.causal) for one in backward} == {turn * 5 // 2}
        # The forward begins with the rank's own block, and the backward ends with it.
        assert [one.causal for one in forward] == [True, *[False] * (degree - 1)]
        assert [one.causal for one in backward] == [*[False] * (degree - 1), True]


def test_one_block_stays_for_the_backward() -> None:
    own = [torch.zeros(1, 2, 8, 4, requires_grad=True) for _ in range(3)]
    kept: list[torch.Tensor] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
    with registered("group", LoneRank(4)), hooks:
        output = ring_attention(own[0], own[1], own[2], True, None, 4, "group")
    one, per_row = own[0].nbytes, own[0].nbytes // 4
    assert sum(map(storage_bytes, kept)) == one + 2 * one + output.nbytes + per_row


class Counting(LoneRank):
    """A lone rank that notes the bytes that it would send, and to whom."""

    def __init__(self, degree: int) -> None:
        super().__init__(degree)
        self.sent: list[tuple[int, int]] = []

    def shift(self, tensor: torch.Tensor, by: int):
        self.sent.append((by, tensor.nbytes))
        return super().shift(tensor, by)


def test_a_ring_sends_one_block_less_than_it_has_turns_and_as_many_gradients_back() -> None:
    own = [torch.zeros(1, 2, 8, 4, requires_grad=True) for _ in range(3)]
    ranks, block = Counting(4), 2 * own[0].nbytes
    with registered("group", ranks):
        output = ring_attention(own[0], own[1], own[2], True, None, 4, "group")
        assert ranks.sent == [(1, block)] * 3
        output.sum().backward()
    assert ranks.sent[3:] == [(-1, block)] * 6


def test_narrow_dtypes_merge_in_float32() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(1, 2, 64, 8) for _ in range(3)]
    query, key, value = (x.bfloat16() for x in exact)
    wanted = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    found: dict[int, torch.Tensor] = {}

    def work(rank: int) -> None:
        own = [own_chunks(x, (2, 1), 8, rank, CONTEXT) for x in (query, key, value)]
        found[rank] = ring_attention(own[0], own[1], own[2], True, None, 8, "group")

    ranks = ThreadRanks(8)
    with registered("group", ranks):
        ranks.run(work)
    for rank, one in found.items():
        expected = own_chunks(wanted, (2, 1), 8, rank, CONTEXT)
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, expected, rtol=2e-2, atol=2e-2)


def test_a_gpu_s_kernels_take_what_a_ring_gives_them() -> None:
    """Shapes only: no GPU is needed for tensors without memory."""
    with FakeTensorMode(), torch.no_grad():
        query, keys, values = (
            torch.empty(1, h, n, 64, dtype=torch.bfloat16, device="cuda")
            for h, n in ((4, 8), (2, 16), (2, 16))
        )
        output, logarithm = ring._attend(query, keys, values, None, causal=False)
        rows = [output, query, output, logarithm]
        gradients = ring._attend_backward(rows, keys, values, None, causal=False)
    assert (output.shape, logarithm.shape) == (query.shape, query.shape[:3])
    assert [x.shape for x in gradients] == [x.shape for x in (query, keys, values)]
