"""The stages that bounds leave open below a value, and the cuts that they connect.

To take less than a value, each stage must have its bounds below it, and fit
(autopart/bounds/uneven_replicas.py). So e ranks can run everything behind cut i only if L(e, i) lies
below the value (autopart/bounds/replicas_behind.py). Behind known stages, a stage waits for them too
(autopart/bounds/waiting_replicas.py).
"""

from collections.abc import Collection

import numpy as np

from autopart.bounds.microbatch_path import Mask, Matrix
from autopart.bounds.replicas_behind import replicas_behind
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.bounds.waiting_replicas import (
    Rows,
    SecondsOnRanks,
    Waiting,
    lateness,
    round_trips,
)
from autopart.schedules.named.one_f_one_b import warmup


class OpenStages:
    """The stages with bounds below a value under a schedule, and the cuts that they connect."""

    def __init__(self, bounds: ReplicaBounds, schedule: str, value: float) -> None:
        self.bounds, self.schedule, self.value = bounds, schedule, value
        self.num_stages = bounds.problem.demands.num_stages
        self._least = replicas_behind(bounds, schedule)
        self._stages: dict[tuple[int, int], tuple[Mask, Mask]] = {}
        self._ends: dict[tuple[int, int], list[int]] = {}
        self._behind: dict[tuple[int, int], int] = {}
        self._by_turns = not bounds.problem.cluster.gpus
        self._seconds: dict[int, SecondsOnRanks] = {}
        self._kept: dict[tuple[int, int], Matrix] = {}
        self.behind: list[Mask] = [least < value for least in self._least.least]
        """Whether e ranks can run everything behind cut i, at [e, i].

        One for each number that stages behind may have, where the user demands one.
        """

    def stage(self, count: int, behind: int) -> Mask:
        """Whether [i, j] is below the value and fits, on `count` ranks before the last `behind`."""
        below: Mask = self._least.stage(count, behind) < self.value
        return below

    def starting_at(
        self, reached: Mask, ends: Mask, count: int, behind: int, ahead: Waiting | None
    ) -> tuple[Rows, Mask]:
        """The cuts in `reached` where a stage on `count` ranks may start, and its [i, j].

        The [i, j] have shape (starts, N) and end at cuts in `ends`. `ahead` says how late microbatches
        come; None leaves that open.
        """
        stages, some = self._stages_on(count, behind)
        starts = np.flatnonzero(reached & some)
        may: Mask = stages[starts] & ends
        if ahead is None or not may.any():
            return starts, may
        # Step 1: ranks whose microbatches come late.
        gpipe, m, seconds = self.schedule == "gpipe", self.bounds.m, self.seconds(count)
        late = lateness(ahead, seconds, starts, count, m, gpipe=gpipe)
        may = np.logical_and(may, self._through(count, behind)[starts] + late < self.value)
        # Step 2: round trips through stages ahead.
        at, last = np.nonzero(may)
        if not gpipe and len(at):
            trips = round_trips(ahead, seconds, (starts[at], last), count, behind, m)
            may[at, last] = trips < self.value
        return starts, may

    def may_start(self, cuts: Collection[int], ahead: int, count: int, behind: int) -> bool:
        """Whether a stage on `count` ranks behind `ahead` others may start at some of these cuts.

        What `starting_at` says without waiting, in a fraction of its time.
        """
        key = count, self._turns(count, behind)
        if key not in self._ends:
            self._ends[key] = _as_numbers(self._stages_on(count, behind)[0])
        ends, more = self._ends[key], self._behind_as_number(ahead, behind)
        return any(ends[cut] & more for cut in cuts)

    def _behind_as_number(self, ahead: int, left: int) -> int:
        """`behind_next` with a bit for each cut."""
        key = ahead, left
        if key not in self._behind:
            self._behind[key] = _as_numbers(self.behind_next(ahead, left)[None])[0]
        return self._behind[key]

    def _stages_on(self, count: int, behind: int) -> tuple[Mask, Mask]:
        """`stage`, and whether some [i, j] starts at cut i."""
        key = count, self._turns(count, behind) if self._by_turns else behind
        if key not in self._stages:
            stages = self.stage(count, behind)
            self._stages[key] = stages, np.asarray(stages.any(axis=1))
        return self._stages[key]

    def seconds(self, count: int) -> SecondsOnRanks:
        """Seconds of every [i, j] on `count` ranks, on GPUs alike."""
        if count not in self._seconds:
            self._seconds[count] = SecondsOnRanks.of(self.bounds.path(count))
        return self._seconds[count]

    def _turns(self, count: int, behind: int) -> int:
        # As in `ReplicasBehind.stage`, the ranks behind give one whole number.
        if self.schedule == "gpipe":
            return (self.bounds.m - behind) // count
        return warmup(behind, count)

    def _through(self, count: int, behind: int) -> Matrix:
        key = count, self._turns(count, behind)
        if key not in self._kept:
            self._kept[key] = self.bounds.through(self.schedule, count, behind)
        return self._kept[key]

    def ranks_in_all(self) -> list[int]:
        """Numbers of ranks on which all layers can run."""
        return [int(used) for used in np.flatnonzero(self.behind[-1][:, 0])]

    def behind_next(self, stages: int, left: int) -> Mask:
        """The cuts behind one more stage after so many, which leaves `left` ranks."""
        to_come = 0 if self.num_stages is None else self.num_stages - stages - 1
        return self.behind[to_come][left]


def _as_numbers(rows: Mask) -> list[int]:
    """Each row as a number with a bit for each column."""
    return [int.from_bytes(row.tobytes(), "big") for row in np.packbits(rows, axis=1)]
