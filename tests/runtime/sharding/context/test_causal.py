"""Causal attention of a rank's rows beside torch's own over the whole sequence."""

import pytest
import torch
from torch.nn import functional

from autopart.runtime.profiling.op_costs import CAUSAL_ROWS, OpCosts
from autopart.runtime.sharding.context.causal import (
    causal_attention,
    causal_rows,
    causal_rows_backward,
)
from autopart.runtime.sharding.context.exchange import own_chunks
from autopart.runtime.sharding.context.states import CONTEXT
from autopart.runtime.sharding.groups import LoneRank, registered


class RankOf(LoneRank):
    """Any rank without the others."""

    def __init__(self, degree: int, own: int) -> None:
        super().__init__(degree)
        self._rank = own

    def rank(self) -> int:
        return self._rank


@pytest.mark.parametrize("dropout", [0.0, 1e-300])
@pytest.mark.parametrize(("degree", "rank"), [(2, 0), (2, 1), (4, 0), (4, 1), (4, 3)])
def test_a_ranks_rows_and_gradients_are_those_of_the_whole(
    degree: int, rank: int, dropout: float
) -> None:
    """With dropout, of a probability that drops nothing, chunks call torch's attention with a bias."""
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 16, 6, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    )
    whole = functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    weights = torch.randn(2, 4, 16 // degree, 6, dtype=torch.float64)
    expected = own_chunks(whole, (2, 1), degree, rank, CONTEXT)
    with registered("group", RankOf(degree, rank)):
        own = own_chunks(query, (2, 1), degree, rank, CONTEXT)
        found = causal_attention(own, key, value, dropout, None, True, degree, "group")
        gradients = torch.autograd.grad((found * weights).sum(), (query, key, value))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_rank_counts_its_rows_times_all_keys_under_a_causal_mask() -> None:
    """Over the ranks that is torch's count for the whole. No tensor has a number per row and key."""
    query, key = (
        torch.randn(1, 2, size, 8, device="meta", requires_grad=True) for size in (2**18, 2**20)
    )
    with registered("group", LoneRank(4)), OpCosts() as costs:
        causal_attention(query, key, key, 0.0, None, False, 4, "group").sum().backward()
    own = [cost for cost in costs.take() if cost.kind == "attention"]
    assert [cost.name for cost in own] == [CAUSAL_ROWS, f"{CAUSAL_ROWS}_backward"]
    assert all(cost.causal for cost in own)
    assert own[0].flops == 4 * 2 * 2**18 * 2**20 * 8
    assert own[1].flops == 5 * 2 * 2 * 2**18 * 2**20 * 8
    assert max(cost.moved_bytes for cost in own) < 2**30


def test_costs_know_the_kernels_by_their_names() -> None:
    names = [
        one._opoverload._overloadpacket.__name__ for one in (causal_rows, causal_rows_backward)
    ]  # pyright: ignore
    assert names == [CAUSAL_ROWS, f"{CAUSAL_ROWS}_backward"]
