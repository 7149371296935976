"""Plans with uneven replicas that may take less than a value, by the bounds on their stages.

To take less than a value, each stage must have its bounds below it, and fit
(autopart/bounds/uneven_replicas.py). So e ranks can run everything behind cut i exactly if L(e, i)
lies below the value (autopart/bounds/replicas_behind.py). If L(e, first) does so for no e up to G,
under each schedule, no plan takes less than the value. Microbatches in flight, and with them the
memory, are as in a plan.
"""

import itertools
import math
from collections.abc import Iterator

import msgspec
import numpy as np

from autopart.bounds.microbatch_path import Mask, Matrix
from autopart.bounds.replicas_behind import replicas_behind
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.bounds.waiting_replicas import (
    Rows,
    SecondsOnRanks,
    Waiting,
    at_first_cut,
    behind_stage,
    lateness,
    round_trips,
)
from autopart.cost.cuts import Cuts
from autopart.records.cluster import num_gpus, slowest_speed
from autopart.records.problem import Problem
from autopart.schedules.named.one_f_one_b import warmup
from autopart.stopping.time_limit import OutOfTime, check_time

Path = tuple[int, ...]
Counts = tuple[int, ...]
"""Replicas for each stage."""

MOST_COUNTS = 4000
"""Most lists of replicas that are looked at one by one."""


MOST_WAITING = 128
"""Most replicas on a stage for which lists of replicas are bounded by their waiting."""


class OpenStages:
    """The stages with bounds below a value under a schedule, and the cuts that they connect."""

    def __init__(self, bounds: ReplicaBounds, schedule: str, value: float) -> None:
        self.bounds, self.schedule, self.value = bounds, schedule, value
        self.num_stages = bounds.problem.demands.num_stages
        self._least = replicas_behind(bounds, schedule)
        self._stages: dict[tuple[int, int], tuple[Mask, Mask]] = {}
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
        if (count, behind) not in self._stages:
            stages = self.stage(count, behind)
            self._stages[count, behind] = stages, np.asarray(stages.any(axis=1))
        stages, some = self._stages[count, behind]
        starts = np.flatnonzero(reached & some)
        may: Mask = np.asarray(stages[starts] & ends)
        if ahead is None or not may.any():
            return starts, may
        # Step 1: ranks whose microbatches come late.
        gpipe, m, seconds = self.schedule == "gpipe", self.bounds.m, self.seconds(count)
        late = lateness(ahead, seconds, starts, count, m, gpipe=gpipe)
        may = np.logical_and(may, self._through(count, behind)[starts] + late < self.value)
        # Step 2: round trips through stages ahead.
        if not gpipe and may.any():
            may &= round_trips(ahead, seconds, starts, count, behind, m) < self.value
        return starts, may

    def seconds(self, count: int) -> SecondsOnRanks:
        """Seconds of every [i, j] on `count` ranks, on GPUs alike."""
        if count not in self._seconds:
            self._seconds[count] = SecondsOnRanks.of(self.bounds.path(count))
        return self._seconds[count]

    def _through(self, count: int, behind: int) -> Matrix:
        # As in `ReplicasBehind.stage`, the ranks behind give one whole number.
        turns = (self.bounds.m - behind) // count
        key = count, turns if self.schedule == "gpipe" else warmup(behind, count)
        if key not in self._kept:
            self._kept[key] = self.bounds.through(self.schedule, count, behind)
        return self._kept[key]

    def ranks_in_all(self) -> list[int]:
        """Numbers of ranks on which all layers can run."""
        return [int(used) for used in np.flatnonzero(self.behind[-1][:, 0])]

    def behind_next(self, counts: Counts, left: int) -> Mask:
        """The cuts behind one more stage after `counts`, which leaves `left` ranks."""
        to_come = 0 if self.num_stages is None else self.num_stages - len(counts) - 1
        return self.behind[to_come][left]


def nothing_below(bounds: ReplicaBounds, value: float) -> bool:
    """Whether bounds alone say that no plan takes less than `value` seconds."""
    return not any(
        OpenStages(bounds, schedule, value).ranks_in_all()
        for schedule in bounds.problem.demands.schedules
    )


def lower_bound(bounds: ReplicaBounds, low: float, most: float) -> float:
    """Seconds that no plan can beat, from `low` to at most `most`.

    No plan lies below `low`, as the caller says. A search that is out of time gets the value so
    far.
    """
    try:
        least = [
            float(replicas_behind(bounds, schedule).in_all().min())
            for schedule in bounds.problem.demands.schedules
        ]
    except OutOfTime:
        return low
    return max(low, min(most, *least))


def least_step_of_any_cuts(problem: Problem) -> float:
    """Seconds that no plan can beat, however the graph's layers are ordered.

    All work is spread over all GPUs, and one microbatch takes its whole path.
    """
    cluster = problem.cluster
    work = sum(
        la.forward_time + la.input_grad_time + la.weight_grad_time for la in problem.graph.layers
    )
    speeds = [slowest_speed(cluster, (rank,)) for rank in range(num_gpus(cluster))]
    return max(problem.num_microbatches * work / sum(speeds), work / max(speeds))


UNLIMITED = 1 << 60
"""Bytes on one GPU: more than any model needs."""


def missing_bytes(problem: Problem, cuts: Cuts) -> int | None:
    """The fewest bytes that every GPU needs more so that some stages on some replicas fit.

    0 where they do; None where no memory would do.

    Pins to numbered stages are not asked.
    """
    if _fits_with(problem, cuts, 0):
        return 0
    if not _fits_with(problem, cuts, UNLIMITED):
        return None
    # Step 1: double until it fits.
    low, high = 0, 1
    while not _fits_with(problem, cuts, high):
        low, high = high, 2 * high
    # Step 2: cut the interval in two until one byte is left.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits_with(problem, cuts, middle) else (middle, high)
    return high


def _fits_with(problem: Problem, cuts: Cuts, more: int) -> bool:
    """Whether some stages on some replicas fit into GPUs with `more` bytes than they have."""
    cluster = problem.cluster
    roomy = msgspec.structs.replace(
        cluster,
        memory_bytes=cluster.memory_bytes + more,
        gpus=tuple(
            msgspec.structs.replace(group, memory_bytes=group.memory_bytes + more)
            for group in cluster.gpus
        ),
    )
    bounds = ReplicaBounds(msgspec.structs.replace(problem, cluster=roomy), cuts)
    return not nothing_below(bounds, math.inf)


def open_counts(bounds: ReplicaBounds, value: float) -> list[Counts] | None:
    """All of `all_open_counts`.

    None where there are more than `MOST_COUNTS` of them.
    """
    found = list(itertools.islice(all_open_counts(bounds, value), MOST_COUNTS + 1))
    return None if len(found) > MOST_COUNTS else found


def all_open_counts(bounds: ReplicaBounds, value: float) -> Iterator[Counts]:
    """The replicas that bounds leave open below `value` under some schedule, each list once."""
    seen: set[Counts] = set()
    for schedule in sorted(bounds.problem.demands.schedules):
        below = OpenStages(bounds, schedule, value)
        start = np.zeros(len(bounds.cuts.nested), dtype=bool)
        start[0] = True
        # Different GPUs have no bounds on waiting, and on very many GPUs its arrays are too large.
        waits = value < math.inf and bounds.counts[-1] <= MOST_WAITING
        waits = waits and not bounds.problem.cluster.gpus
        waiting = at_first_cut(len(start), bounds.counts[-1]) if waits else None
        for used in below.ranks_in_all():
            for counts in _continued(below, start, used, (), waiting):
                if counts not in seen:
                    seen.add(counts)
                    yield counts


def _continued(
    below: OpenStages, reached: Mask, left: int, counts: Counts, ahead: Waiting | None
) -> Iterator[Counts]:
    """All replicas that begin with `counts`, which may end at the cuts `reached`.

    The last `left` ranks are for the stages to come. `ahead` says how late their microbatches come.
    """
    for count in below.bounds.counts:
        if count > left:
            break
        check_time()
        # Step 1: the cuts where a stage on `count` ranks may end, and the rest can go on.
        may_end = below.behind_next(counts, left - count)
        starts, may = below.starting_at(reached, may_end, count, left - count, ahead)
        ends: Mask = np.asarray(may.any(axis=0))
        # Step 2: the last cut ends the list; all others go on.
        if ends[-1]:
            yield (*counts, count)
        ends[-1] = False
        if ends.any():
            more = ahead
            if ahead is not None:
                seconds = below.seconds(count)
                more = behind_stage(ahead, seconds, starts, may, count, left - count)
            yield from _continued(below, ends, left - count, (*counts, count), more)


def first_open(bounds: ReplicaBounds, value: float) -> Iterator[tuple[Path, Counts]]:
    """For each schedule one path over the cuts, with replicas, whose bounds are below `value`."""
    for schedule in bounds.problem.demands.schedules:
        below = OpenStages(bounds, schedule, value)
        ranks = below.ranks_in_all()
        if ranks:
            yield _first(below, ranks[0])


def _first(below: OpenStages, left: int) -> tuple[Path, Counts]:
    """A path on `left` ranks: the fewest ranks, then the first cut, stage by stage."""
    path, counts = [0], list[int]()
    last = len(below.bounds.cuts.nested) - 1
    while path[-1] != last:
        for count in below.bounds.counts[:left]:
            ends = below.stage(count, left - count)[path[-1]]
            ends = ends & below.behind_next(tuple(counts), left - count)
            if ends.any():
                path.append(int(ends.argmax()))
                counts.append(count)
                left -= count
                break
        else:
            # No stage starts on this rank: where GPUs differ, it is passed over.
            left -= 1
    return tuple(path), tuple(counts)
