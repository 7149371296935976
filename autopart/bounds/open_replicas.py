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

from autopart.bounds.joined_replicas import no_list_is_open
from autopart.bounds.microbatch_path import Mask
from autopart.bounds.open_stages import OpenStages
from autopart.bounds.replicas_behind import replicas_behind
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.bounds.waiting_replicas import Waiting, at_first_cut, behind_stage
from autopart.cost.cuts import Cuts
from autopart.records.cluster import UNLIMITED, num_gpus, slowest_speed
from autopart.records.problem import Problem
from autopart.stopping.time_limit import OutOfTime, check_time

Path = tuple[int, ...]
Counts = tuple[int, ...]
"""Replicas for each stage."""

MOST_COUNTS = 4000
"""Most lists of replicas that are looked at one by one."""


MOST_WAITING = 128
"""Most replicas on a stage for which lists of replicas are bounded by their waiting."""

NARROW = 1e-3
"""The part of the largest value to which joined lists narrow the lower bound down."""


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
    if nothing_open_joined(bounds, value):
        return []
    found = list(itertools.islice(all_open_counts(bounds, value), MOST_COUNTS + 1))
    return None if len(found) > MOST_COUNTS else found


def nothing_open_joined(bounds: ReplicaBounds, value: float) -> bool:
    """Whether joined lists alone show that nothing is open below `value` seconds.

    Different GPUs have no bounds on waiting, so nothing is joined there.
    """
    if bounds.problem.cluster.gpus or value == math.inf:
        return False
    schedules = sorted(bounds.problem.demands.schedules)
    return all(no_list_is_open(OpenStages(bounds, one, value)) for one in schedules)


def raised_by_joining(bounds: ReplicaBounds, low: float, most: float) -> Iterator[float]:
    """Ever larger seconds from `low` to at most `most` that no plan can beat, by joined lists.

    No plan lies below `low`, as the caller says.
    """
    high = most
    while high - low > NARROW * most:
        middle = (low + high) / 2
        if nothing_open_joined(bounds, middle):
            low = middle
            yield low
        else:
            high = middle


def all_open_counts(bounds: ReplicaBounds, value: float) -> Iterator[Counts]:
    """The replicas that bounds leave open below `value` under some schedule, each list once."""
    seen: set[Counts] = set()
    for schedule in sorted(bounds.problem.demands.schedules):
        below = OpenStages(bounds, schedule, value)
        start, waiting = _at_start(below, bounds.counts[-1])
        # On very many GPUs the arrays of waiting are too large.
        waiting = waiting if bounds.counts[-1] <= MOST_WAITING else None
        for used in below.ranks_in_all():
            for counts in _continued(below, start, used, (), waiting):
                if counts not in seen:
                    seen.add(counts)
                    yield counts


def is_open(bounds: ReplicaBounds, counts: Counts, value: float) -> bool:
    """Whether bounds leave a list of replicas open below `value` under some schedule."""
    if bounds.problem.demands.num_stages not in (None, len(counts)):
        return False
    for schedule in sorted(bounds.problem.demands.schedules):
        below = OpenStages(bounds, schedule, value)
        (reached, ahead), left = _at_start(below, max(counts)), sum(counts)
        for stages, count in enumerate(counts):
            left -= count
            may_end = below.behind_next(stages, left)
            starts, may = below.starting_at(reached, may_end, count, left, ahead)
            reached = np.asarray(may.any(axis=0))
            if ahead is not None and may.any():
                ahead = behind_stage(ahead, below.seconds(count), starts, may, count, left)
        if reached[-1]:
            return True
    return False


def _at_start(below: OpenStages, width: int) -> tuple[Mask, Waiting | None]:
    """The first cut, and what lies ahead of it, for at most `width` ranks on a stage."""
    start = np.zeros(len(below.bounds.cuts.nested), dtype=bool)
    start[0] = True
    # Different GPUs have no bounds on waiting.
    waits = below.value < math.inf and not below.bounds.problem.cluster.gpus
    return start, at_first_cut(len(start), width) if waits else None


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
        may_end = below.behind_next(len(counts), left - count)
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
            ends = ends & below.behind_next(len(counts), left - count)
            if ends.any():
                path.append(int(ends.argmax()))
                counts.append(count)
                left -= count
                break
        else:
            # No stage starts on this rank: where GPUs differ, it is passed over.
            left -= 1
    return tuple(path), tuple(counts)
