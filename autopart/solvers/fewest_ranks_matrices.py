"""Stage seconds from matrices over pairs of downsets: for any cost model (fewest_ranks.py)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.solvers.fewest_ranks import TOLERANCE, DownsetStage, Flags, Floats, Ints


class BytesMatrices(NamedTuple):
    """Stage bytes: a fixed part, and a stash for each microbatch in flight."""

    fixed: Sequence[Floats | float]
    """Bytes at [start, end], independent of the microbatches in flight, for each choice."""
    stash: Floats
    """Bytes at [start, end] for each microbatch in flight."""
    in_flight: Callable[[int, int], int]
    """Microbatches in flight for a choice and the ranks behind the stage; it grows with these
    ranks."""
    limit: float
    """Bytes on one rank."""
    beside: Sequence[Sequence[Floats | float]] = ((0.0,),)
    """For each choice, or for all, bytes at [start, end] beyond these with 0, 1, … microbatches in flight.

    The last one holds for more.
    """
    all_at_once: Sequence[Floats | float] = ()
    """For each choice, the same with all its microbatches in flight; empty where that changes nothing."""
    most: Sequence[int] = ()
    """For each choice, all its microbatches."""


class SecondsMatrices:
    """Stage seconds for `fewest_ranks`, given for all pairs of downsets."""

    def __init__(
        self,
        ranks: Sequence[int],
        seconds: Sequence[Floats],
        work: Floats,
        memory: BytesMatrices | None = None,
    ) -> None:
        """`seconds` holds a matrix at [start, end] for each choice, infinite where there is no
        stage.

        Row 0 is for first stages. A stage on q ranks within T seconds has at most q T seconds of
        `work`.
        """
        self.ranks, self.work = ranks, work
        self.num_downsets = len(work)
        self.matrices = _by_end(seconds)
        self.memory = memory
        if memory is not None:
            shape = self.matrices.shape[1:]
            self.fixed = _by_end([np.broadcast_to(fixed, shape) for fixed in memory.fixed])
            self.stash = _by_end([memory.stash])[0]
            self.beside = [
                _by_end([np.broadcast_to(b, shape) for b in own]) for own in memory.beside
            ]
            self.all_at_once = [_by_end([np.broadcast_to(b, shape)])[0] for b in memory.all_at_once]

    def seconds_of(self, stage: DownsetStage) -> float:
        """Seconds that one stage takes."""
        return float(self.matrices[stage.choice, stage.end, stage.start])

    def ranks_ahead(self, limit: float) -> Ints:
        """For each downset the least number of ranks that its layers need within `limit`
        seconds."""
        if limit <= 0:
            return np.zeros(self.num_downsets, dtype=np.int64)
        # Sums are rounded: a relative and an absolute slack keep the count a lower bound.
        return np.ceil(self.work / limit * (1 - 1e-12) - 1e-12).astype(np.int64)

    def reach(
        self, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
    ) -> tuple[int, Flags]:
        """See `StageSeconds.reach`."""
        rows = self.matrices[choices[:, None], ends, 1:] <= limit
        rows &= (self.work[1:] <= (room * limit * (1 + TOLERANCE))[:, None])[:, None, :]
        if self.memory is not None:
            rows &= self._bytes(choices, later, ends, slice(1, None)) <= self.memory.limit
        return 1, rows

    def first_reach(self, choices: Ints, limit: float, later: int, ends: Ints) -> Flags:
        """See `StageSeconds.first_reach`."""
        flags = self.matrices[choices[:, None], ends, 0] <= limit
        if self.memory is not None:
            kept = self._bytes(choices, later, ends, slice(0, 1))[:, :, 0]
            flags &= kept <= self.memory.limit
        return flags

    def _bytes(self, choices: Ints, later: int, ends: Ints, starts: slice) -> Floats:
        """Stage bytes at [choice, end, start]."""
        assert self.memory is not None
        in_flight = np.array([self.memory.in_flight(choice, later) for choice in choices.tolist()])
        stash = in_flight[:, None, None] * self.stash[ends, starts]
        pairs = zip(choices.tolist(), in_flight.tolist(), strict=True)
        every = np.broadcast_to(ends, (len(choices), ends.shape[-1]))
        beside = [self._beside(*pair)[own, starts] for own, pair in zip(every, pairs, strict=True)]
        return self.fixed[choices[:, None], ends, starts] + stash + np.stack(beside)

    def _beside(self, choice: int, in_flight: int) -> Floats:
        """The bytes at [end, start] beyond the fixed ones and the stash."""
        if self.all_at_once and self.memory and in_flight >= self.memory.most[choice]:
            return self.all_at_once[choice]
        own = self.beside[choice if len(self.beside) > 1 else 0]
        return own[min(in_flight, len(own) - 1)]


def _by_end(matrices: Sequence[Floats]) -> Floats:
    """Matrices at [start, end] as one array at [matrix, end, start]: the solver reads whole rows by
    end."""
    return np.ascontiguousarray(np.swapaxes(np.array(matrices), 1, 2))
