"""A chain for `chain_bisection`: its layers' seconds and bytes, and a cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]


class Sizes(NamedTuple):
    """Bytes for each stage [i, j]: layers[j] - layers[i] + received[i] + sent[j]."""

    layers: Array
    """Bytes in the layers before each cut, shape (n + 1,)."""
    received: Array
    """Received bytes that a stage starting at the cut keeps, shape (n + 1,)."""
    sent: Array
    """Sent bytes that a stage ending at the cut keeps, shape (n + 1,)."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Each stage's memory limit. Bytes are Sizes, or a matrix [i, j] with shape (n + 1, n + 1)."""

    capacity: int
    state: Sizes | Array
    """Stage bytes with nothing in flight."""
    stash: Sizes | Array
    """Bytes per microbatch in flight."""
    beside: Sequence[Array] = ()
    """Bytes beyond these with 0, 1, … microbatches in flight, as matrices. The last one holds for more."""
    most: int | None = None
    """All microbatches of a rank. With as many in flight, `all_at_once` holds in place of `beside`."""
    all_at_once: Array | None = None

    def number_of(self, in_flight: int) -> int:
        """The number of `beside` that holds; -1 for none, or for `all_at_once`."""
        alone = self.most is not None and in_flight >= self.most
        return -1 if alone else min(in_flight, len(self.beside) - 1)

    def beside_in_flight(self, number: int) -> Sizes | Array | None:
        """The bytes with a number from `number_of`."""
        return self.beside[number] if number >= 0 else self.all_at_once


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain with n layers, before its stages have places."""

    work: Floats
    """Layer seconds before each cut, shape (n + 1,). They start at 0 and never fall: see `prefix`.
    """
    sends: tuple[Floats, ...]
    """Send seconds over each cut at each end, per link kind: shape (n + 1,), 0 at cuts 0 and n."""
    overhead: float = 0.0
    """Fixed seconds per stage."""
    memory: MemoryLimit | None = None


class ChainCut(NamedTuple):
    """A cut with the smallest bottleneck."""

    bottleneck: float
    cuts: tuple[int, ...]
    """The cut 0, the k - 1 cuts between the stages, and the cut n."""
    infeasible: float | None
    """The largest infeasible stage seconds below `bottleneck`.

    None where every stage takes at least `bottleneck`.
    """


def prefix(values: Sequence[float] | Array) -> Array:
    """Sums over the first 0, 1, … n values, shape (n + 1,).

    Whole numbers are exact. Each float sum has one rounding error, for any n.
    """
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return np.concatenate(([0], np.cumsum(array)))
    sums = np.cumsum(array.astype(np.longdouble)).astype(np.float64)
    return np.concatenate(([0.0], np.maximum.accumulate(sums)))
