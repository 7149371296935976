"""States of the context pass: how a rank's local value relates to the whole one.

The positions of a sequence are divided into 2c equal chunks. Rank i of c has chunks i and 2c - 1 - i, in this
order. Under a causal mask, all ranks then have equal work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autopart.errors import ModelError

CONTEXT = "context"
"""The name under which local graphs expect the group of their context ranks."""


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
    kind: Literal["chunks", "pool"] = "chunks"
    """pool: the entries of the rank's own tokens, in an order that depends on the data."""
    slices: int = 1
    """Ranks of a tensor group that have a slice each of the rank's chunks (sequence parallelism)."""
    refers: "Reference | None" = None
    """For places in a dimension that is itself cut: that dimension. Places count in the local one."""

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


def check_length(size: int, degree: int, what: str) -> None:
    """Raise ContextRefused where the positions of a sequence do not fall into 2c equal chunks."""
    if size % (2 * degree):
        able = [str(d) for d in (2, 3, 4, 5, 6, 7, 8, 16) if size % (2 * d) == 0]
        raise ContextRefused(
            f"context degree {degree}: {what} has sequences of {size} positions, which is no multiple of "
            f"{2 * degree}; pad them, or use degree {' or '.join(able) or '1'}"
        )
