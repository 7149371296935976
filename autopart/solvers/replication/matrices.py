"""Loads of stages given as matrices over pairs of states: for any cost model (solvers/replication/dual.py)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autopart.solvers.replication.dual import TOLERANCE, Flags, Floats, Ints, Stage


class MatrixMemory(NamedTuple):
    """Bytes of a stage: what it holds anyway, and its stash for each microbatch in flight."""

    fixed: Sequence[Floats | float]
    """For each choice, at [start, end]."""
    stash: Floats
    """At [start, end]."""
    held: Callable[[int, int], int]
    """Microbatches in flight, for a choice and the machines behind the stage; more with more of these."""
    limit: float


class MatrixLoads:
    """Loads that `fewest_machines` asks about, given for all pairs of states."""

    def __init__(
        self,
        machines: Sequence[int],
        loads: Sequence[Floats],
        work: Floats,
        memory: MatrixMemory | None = None,
    ) -> None:
        """`loads`, one for each choice, at [start, end], infinite where there is no stage; row 0 is
        the first stage's. A stage on q machines within T seconds holds at most q T of `work`."""
        self.machines, self.work = machines, work
        self.num_states = len(work)
        self.loads = _by_end(loads)
        self.memory = memory
        if memory is not None:
            shape = self.loads.shape[1:]
            self.fixed = _by_end([np.broadcast_to(fixed, shape) for fixed in memory.fixed])
            self.stash = _by_end([memory.stash])[0]

    def load(self, stage: Stage) -> float:
        """Seconds of one stage."""
        return float(self.loads[stage.choice, stage.end, stage.start])

    def machines_ahead(self, limit: float) -> Ints:
        """Machines that everything ahead of each state needs at least within `limit` seconds."""
        if limit <= 0:
            return np.zeros(self.num_states, dtype=np.int64)
        return np.ceil(self.work / limit * (1 - 1e-12) - 1e-12).astype(np.int64)

    def reach(
        self, choices: Ints, limit: float, later: int, ends: Ints, room: Ints
    ) -> tuple[int, Flags]:
        """As `dual.Loads.reach`."""
        rows = self.loads[choices[:, None], ends, 1:] <= limit
        rows &= (self.work[1:] <= (room * limit * (1 + TOLERANCE))[:, None])[:, None, :]
        if self.memory is not None:
            rows &= self._bytes(choices, later, ends, slice(1, None)) <= self.memory.limit
        return 1, rows

    def first_reach(self, choices: Ints, limit: float, later: int, ends: Ints) -> Flags:
        """As `dual.Loads.first_reach`."""
        flags = self.loads[choices[:, None], ends, 0] <= limit
        if self.memory is not None:
            kept = self._bytes(choices, later, ends, slice(0, 1))[:, :, 0]
            flags &= kept <= self.memory.limit
        return flags

    def _bytes(self, choices: Ints, later: int, ends: Ints, starts: slice) -> Floats:
        assert self.memory is not None
        held = [self.memory.held(choice, later) for choice in choices.tolist()]
        stash = np.array(held)[:, None, None] * self.stash[ends, starts]
        return self.fixed[choices[:, None], ends, starts] + stash


def _by_end(matrices: Sequence[Floats]) -> Floats:
    """Matrices at [start, end] as one array at [matrix, end, start]."""
    return np.ascontiguousarray(np.swapaxes(np.array(matrices), 1, 2))
