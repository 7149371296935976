"""Entries of tokens that expert ranks send to each other.

Each rank has its own entries (token, expert), sorted by expert. Rank i of e has the i-th of e equal parts of the
experts. So the entries for one rank are consecutive, and one all-to-all brings them there. They come back by another.

| function | forward | backward |
|---|---|---|
| `to_experts` | all-to-all; entries of one expert from all ranks stand together | all-to-all back |
| `from_experts` | all-to-all back, to the places where the entries stood | all-to-all |

How many entries each expert gets from each rank is exchanged first (`gather_counts`). A rank alone stands for balanced
load: it gets as many entries as it sends, equally many for each of its experts. With a `load` of its group it gets so many
times more, copies of its own.
"""

from typing import Any

import torch

from autopart.runtime.sharding.context.expert_loads import note_counts
from autopart.runtime.sharding.groups import TensorGroup, group_named


def gather_counts(ends: torch.Tensor, layer: str, degree: int, group: str) -> torch.Tensor:
    """Return how many entries each rank (row) has for each expert (column); `ends` has where the own ones end."""
    own = torch.diff(ends.to(torch.int64), prepend=ends.new_zeros(1, dtype=torch.int64))
    counts = torch.stack(list(group_named(group).all_gather(own)))
    note_counts(layer, counts)
    return counts


def own_ends(counts: torch.Tensor, entries: int, degree: int, group: str) -> torch.Tensor:
    """Return where the entries of each of the rank's experts end; alone, of `entries` that are balanced."""
    ranks = group_named(group)
    if ranks.is_alone:
        experts, arrived = counts.shape[1] // degree, round(ranks.load * entries)
        shares = torch.arange(1, experts + 1, device=counts.device) * arrived // experts
        return shares.to(torch.int32)
    return _of_own_experts(counts, degree, ranks.rank()).sum(0).cumsum(0).to(torch.int32)


def to_experts(x: torch.Tensor, counts: torch.Tensor, degree: int, group: str) -> torch.Tensor:
    """Return the entries of all ranks for the rank's experts, sorted by expert, and then by rank."""
    return _Move.apply(x, counts, True, degree, group)  # pyright: ignore[reportReturnType]


def from_experts(x: torch.Tensor, counts: torch.Tensor, degree: int, group: str) -> torch.Tensor:
    """Return the rank's own entries from the ranks that worked on them, in the order in which they were sent."""
    return _Move.apply(x, counts, False, degree, group)  # pyright: ignore[reportReturnType]


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, counts: torch.Tensor, to: bool, degree: int, group: str
    ) -> torch.Tensor:
        ctx.counts, ctx.to, ctx.places = counts, to, (degree, group)
        return _moved(x, counts, to, degree, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        back = _moved(gradients[0], ctx.counts, not ctx.to, *ctx.places)
        return back, None, None, None, None


def _moved(
    x: torch.Tensor, counts: torch.Tensor, to: bool, degree: int, group: str
) -> torch.Tensor:
    ranks = group_named(group)
    if ranks.is_alone:
        # The entries that arrive are written in the order of the experts.
        return _alone(x, ranks.load if to else 1 / ranks.load)
    return _sent(x, counts, degree, ranks) if to else _returned(x, counts, degree, ranks)


def _alone(x: torch.Tensor, load: float) -> torch.Tensor:
    """Return `load` times as many rows, copies of those of `x`."""
    if load == 1:
        return x.clone(memory_format=torch.contiguous_format)
    rows = round(load * x.shape[0])
    whole, rest = divmod(rows, x.shape[0])
    return torch.cat([*[x] * whole, x[:rest]])


def _sent(x: torch.Tensor, counts: torch.Tensor, degree: int, ranks: TensorGroup) -> torch.Tensor:
    given, taken = _sizes(counts, degree, ranks.rank())
    arrived = ranks.all_to_all(list(x.split(given)), taken)
    return torch.cat(list(arrived))[_order(counts, degree, ranks.rank())]


def _returned(
    x: torch.Tensor, counts: torch.Tensor, degree: int, ranks: TensorGroup
) -> torch.Tensor:
    given, taken = _sizes(counts, degree, ranks.rank())
    by_rank = torch.empty_like(x, memory_format=torch.contiguous_format)
    by_rank[_order(counts, degree, ranks.rank())] = x
    return torch.cat(list(ranks.all_to_all(list(by_rank.split(taken)), given)))


def _sizes(counts: torch.Tensor, degree: int, rank: int) -> tuple[list[int], list[int]]:
    """Return how many entries the rank sends to each rank, and gets from each."""
    given = counts[rank].view(degree, -1).sum(1).tolist()
    return given, _of_own_experts(counts, degree, rank).sum(1).tolist()


def _of_own_experts(counts: torch.Tensor, degree: int, rank: int) -> torch.Tensor:
    return counts.view(counts.shape[0], degree, -1)[:, rank]


def _order(counts: torch.Tensor, degree: int, rank: int) -> torch.Tensor:
    """Return the arrived entries, which stand by rank and then by expert, in the order of the experts."""
    own = _of_own_experts(counts, degree, rank)
    experts = torch.arange(own.shape[1], device=own.device).repeat(own.shape[0])
    return experts.repeat_interleave(own.flatten()).argsort(stable=True)
