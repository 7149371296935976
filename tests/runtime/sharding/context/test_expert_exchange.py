"""Entries that ranks send to each other's experts, and their way back."""

import torch

from autopart.runtime.sharding.context.expert_exchange import (
    from_experts,
    gather_counts,
    own_ends,
    to_experts,
)
from autopart.runtime.sharding.context.states import EXPERT
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.thread_ranks import ThreadRanks

COUNTS = torch.tensor([[3, 0, 2, 1], [1, 2, 0, 0], [0, 0, 0, 0], [4, 1, 1, 7]])
"""Entries of four ranks for four experts; one rank has none."""


def on_ranks(degree: int) -> dict[int, tuple[torch.Tensor, ...]]:
    found: dict[int, tuple[torch.Tensor, ...]] = {}
    group = ThreadRanks(degree)

    def ranked(rank: int) -> None:
        found[rank] = exchange(rank, degree)

    with registered(EXPERT, group.part(1, degree)):
        group.run(ranked)
    return found


def entries(rank: int) -> torch.Tensor:
    """Each entry as its rank, its expert and its number, sorted by expert."""
    rows = [[rank, e, n] for e, count in enumerate(COUNTS[rank].tolist()) for n in range(count)]
    return torch.tensor(rows, dtype=torch.float64).view(-1, 3)


def exchange(rank: int, degree: int) -> tuple[torch.Tensor, ...]:
    own = entries(rank).requires_grad_()
    counts = gather_counts(COUNTS[rank].cumsum(0).to(torch.int32), "layer", degree, EXPERT)
    there = to_experts(own, counts, degree, EXPERT)
    back = from_experts(there * 2, counts, degree, EXPERT)
    weights = torch.arange(back.numel(), dtype=torch.float64).view_as(back)
    (back * weights).sum().backward()
    assert own.grad is not None
    ends = own_ends(counts, len(own), degree, EXPERT)
    return own.detach(), there.detach(), back.detach(), own.grad, weights, ends


def test_entries_arrive_sorted_by_expert_and_come_back_in_their_order() -> None:
    for rank, (own, there, back, gradient, weights, ends) in on_ranks(4).items():
        expected = [row for r in range(4) for row in entries(r).tolist() if row[1] == rank]
        assert there.tolist() == expected
        assert ends.tolist() == [len(expected)]
        assert back.equal(own * 2) and gradient.equal(weights * 2)


def test_runs_of_several_experts_join_the_ranks() -> None:
    global_rows = torch.cat([entries(r) for r in range(2)])
    for rank, (_, there, _, _, _, ends) in on_ranks(2).items():
        experts = [2 * rank, 2 * rank + 1]
        expected = [row for e in experts for row in global_rows.tolist() if row[1] == e]
        assert there.tolist() == expected
        counts = COUNTS[:2, experts].sum(0)
        assert ends.tolist() == counts.cumsum(0).tolist()


def test_a_rank_alone_stands_for_balanced_load() -> None:
    with registered(EXPERT, LoneRank(2)):
        counts = gather_counts(torch.tensor([5, 5, 6, 12], dtype=torch.int32), "layer", 2, EXPERT)
        assert counts.shape == (2, 4)
        assert own_ends(counts, 12, 2, EXPERT).tolist() == [6, 12]
        own = torch.randn(12, 3)
        assert to_experts(own, counts, 2, EXPERT).shape == own.shape


def test_a_rank_alone_may_get_more_entries_than_it_sends() -> None:
    with registered(EXPERT, LoneRank(4, load=2.5)):
        counts = gather_counts(torch.tensor([1, 2, 3, 5], dtype=torch.int32), "layer", 4, EXPERT)
        assert own_ends(counts, 5, 4, EXPERT).tolist() == [12]
        own = torch.randn(5, 3, requires_grad=True)
        there = to_experts(own, counts, 4, EXPERT)
        assert there.shape == (12, 3) and there[5:10].equal(own)
        back = from_experts(there, counts, 4, EXPERT)
        assert back.equal(own)
        back.sum().backward()
        assert own.grad is not None and own.grad.equal(torch.ones(5, 3))
