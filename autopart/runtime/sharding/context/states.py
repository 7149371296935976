"""States of the context and the expert pass: how a rank's local value relates to the whole one.

The positions of a sequence are divided into 2c equal chunks. Rank i of c has chunks i and 2c - 1 - i, in this
order. Under a causal mask, all ranks then have equal work.

In the expert pass the samples of a microbatch stand for the positions. Rank i of e has the i-th of e equal parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autopart.errors import ModelError
from autopart.text import counted

CONTEXT = "context"
"""The name under which local graphs expect the group of their context ranks."""
EXPERT = "expert"
"""The name under which local graphs expect the group of their expert ranks."""


def chunks_of(group: str, degree: int, rank: int) -> tuple[int, tuple[int, ...]]:
    """Return how many chunks a whole dimension has, and which are the rank's."""
    if group == EXPERT:
        return degree, (rank,)
    return 2 * degree, (rank, 2 * degree - 1 - rank)


@dataclass(frozen=True, slots=True)
class Rows:
    """A dimension that runs over positions, of which each rank has its own chunks.

    The whole dimension has `outer` x `size` x inner elements: a merged dimension may have samples outside and
    parts of a token inside.
    """

    dim: int
    size: int
    """Positions of the whole sequence."""
    outer: int = 1
    """Elements of the dimension outside the positions."""
    kind: Literal["chunks", "pool", "experts", "sent"] = "chunks"
    """pool: the entries of the rank's own tokens, in an order that depends on the data. experts: a dimension of
    experts, of which each rank has its slice, for the samples of all. sent: the entries of all ranks for the
    rank's own experts; their number is the pool's if all experts have equally many."""
    slices: int = 1
    """Ranks of a tensor group that have a slice each of the rank's chunks (sequence parallelism)."""
    refers: "Reference | None" = None
    """For places in a dimension that is itself cut: that dimension. Places count in the local one."""
    counts: str = ""
    """For sent entries: the node that has their numbers."""

    def at(self, dim: int) -> "Rows":
        """The same positions along another dimension."""
        return replace(self, dim=dim)

    @property
    def count(self) -> int:
        """Positions in the dimension of the captured value: those of a tensor rank's slice."""
        return self.size // self.slices

    @property
    def plain(self) -> "Rows":
        """The same positions of values that refer to nothing."""
        return replace(self, refers=None)


@dataclass(frozen=True, slots=True)
class Reference:
    """A cut dimension into which places point, and its whole length."""

    rows: Rows
    length: int


@dataclass(frozen=True, slots=True)
class OwnCounts:
    """Counts over the rank's own tokens, such as tokens per expert. Only work on these tokens reads them."""


State = Rows | OwnCounts | None
"""None: the value is whole, and equal on all ranks."""


class ContextRefused(ModelError):
    """An operation mixes positions in a way that no rule knows."""


def viewed(rows: Rows, before: Sequence[int], after: Sequence[int]) -> Rows | None:
    """Return where the positions stand after a view, from the whole shapes; None where they are torn apart.

    An element's place in memory order is (p, s, q), with p < outside, s the position, and q inside. A dimension of
    the new shape holds the positions if it is made of a divisor of `outside`, all positions, and some of q.
    """
    outside = math.prod(before[: rows.dim]) * rows.outer
    prefix = 1
    for dim, size in enumerate(after):
        outer = outside // prefix
        if outer and size and outside % prefix == 0 and size % (outer * rows.count) == 0:
            return replace(rows, dim=dim, outer=outer)
        prefix *= size
    return None


def check_samples(size: int, degree: int, experts: int) -> None:
    """Raise ContextRefused where the samples of a microbatch do not fall into e equal parts.

    `experts` is what all degrees must divide too.
    """
    if size % degree:
        able = [str(d) for d in range(2, size + 1) if size % d == experts % d == 0]
        raise ContextRefused(
            f"expert degree {degree}: a microbatch has {counted(size, 'sample')}, which {counted(degree, 'GPU')} do not "
            f"share equally; use another microbatch size, or degree {' or '.join(able) or '1'}"
        )


def check_length(size: int, degree: int, what: str) -> None:
    """Raise ContextRefused where the positions of a sequence do not fall into 2c equal chunks."""
    if size % (2 * degree):
        able = [str(d) for d in (2, 3, 4, 5, 6, 7, 8, 16) if size % (2 * d) == 0]
        raise ContextRefused(
            f"context degree {degree}: {what} has sequences of {size} positions, which is no multiple of "
            f"{2 * degree}; pad them, or use degree {' or '.join(able) or '1'}"
        )
