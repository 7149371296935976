"""Each schedule with the smallest and largest numbers of microbatches that it takes, and beyond.

The numbers that fit stand here again, from the papers. The tests do not ask the generators.
"""

from collections.abc import Callable

import pytest

from autopart.errors import ScheduleError
from autopart.schedules.actions import Schedule
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.check import check_schedule
from autopart.schedules.kind import Kind
from autopart.schedules.pipeline import Pipeline
from tests.support.pictures import copies, place_stages
from tests.support.waits import most_in_flight

Takes = Callable[[int, int, int], bool]
"""Tells whether a number of ranks, stages per rank and microbatches fits."""


def any_number(k: int, v: int, m: int) -> bool:
    return m >= 1


def equal_rounds(k: int, v: int, m: int) -> bool:
    """Narayanan et al. need multiples of k. Torch needs rounds with the same size, about k."""
    return m >= 1 and (v == 1 or m < 2 * k or m % (m // k) == 0)


TAKES: dict[str, Takes] = {
    "interleaved-1f1b": equal_rounds,
    "paired-interleaved-1f1b": equal_rounds,
    "interleaved-zb": equal_rounds,
    "dualpipev": lambda k, v, m: m >= 2 * k,
    "paired-dualpipev": lambda k, v, m: m >= 2 * k,
    "bpipe": lambda k, v, m: k % 2 == 0 and m >= 1,
    "chimera": lambda k, v, m: k % 2 == 0 and m >= 2 and m % 2 == 0,
    "gems": lambda k, v, m: k % 2 == 0 and m >= 2 and m % 2 == 0,
    "hanayo": lambda k, v, m: v % 2 == 0 and m >= 1 and m % k == 0,
}


def edges(k: int, v: int) -> list[int]:
    """A few microbatches, many, and numbers around ranks, stages and their doubles."""
    around = {n + step for n in (k, 2 * k, k * v, 2 * k * v, 5 * k * v) for step in (-1, 0, 1)}
    return sorted({0, 1, 2, 3, *around})


def cases() -> list[tuple[Kind, int, int]]:
    return [
        (kind, k, v)
        for kind in KINDS.values()
        for k in (1, 2, 3, 4)
        for v in ([kind.stages_per_rank] if kind.stages_per_rank else [1, 2, 3, 4])
    ]


def work(schedule: Schedule, stage: int) -> list[tuple[str, int]]:
    return sorted((a.op, a.microbatch) for order in schedule for a in order if a.stage == stage)


@pytest.mark.parametrize(("kind", "k", "v"), cases(), ids=lambda of: getattr(of, "name", str(of)))
def test_a_schedule_runs_every_allowed_number_of_microbatches_and_refuses_the_others(
    kind: Kind, k: int, v: int
):
    takes, ranks = TAKES.get(kind.name, any_number), place_stages(kind, k, v)
    for m in edges(k, v):
        if not takes(k, v, m):
            with pytest.raises(ScheduleError, match=r"microbatch.*(would do|at least 1)"):
                make_schedule(kind.name, ranks, m)
            continue
        schedule = make_schedule(kind.name, ranks, m)
        check_schedule(schedule, ranks, m)
        limits = kind.in_flight(Pipeline(k, v, m))
        counts = [most_in_flight(order) for order in schedule]
        assert all(h <= limit for h, limit in zip(counts, limits, strict=True)), m
        assert all(h <= m * v for h in counts)
        for stage in range(len(ranks)):
            done = [(op, n) for op, n in work(schedule, stage) if op not in "LT"]
            assert [n for op, n in done if op == "F"] == list(range(m))
            assert sorted(n for op, n in done if op in "BI") == list(range(m))


@pytest.mark.parametrize("name", [n for n, kind in KINDS.items() if kind.uneven])
@pytest.mark.parametrize("ranks", [[[0, 1], [2]], [[0], [1, 2, 3]], [[0, 1, 2], [3], [4, 5]]])
def test_unequal_replicas_run_with_one_microbatch_or_more(name: str, ranks: list[list[int]]):
    for m in (1, 2, 3, 5, 6, 7, 13):
        check_schedule(make_schedule(name, ranks, m), ranks, m)
    with pytest.raises(ScheduleError, match=r"a step of 0 microbatches: .* at least 1"):
        make_schedule(name, ranks, 0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_numbers_that_do_not_fit_on_replicas_are_refused_with_totals_that_fit(kind: Kind):
    """Each of two replicas, or pairs of replicas, is dealt half of the total: both numbers must fit."""
    takes, v = TAKES.get(kind.name, any_number), kind.stages_per_rank or 2
    one = place_stages(kind, 2, v)
    ranks, together = copies(one, (0, 2)), len(one[0])
    for m in range(1, 14):
        owner = [at // together % 2 for at in range(m)]
        shares = [n for n in (owner.count(0), owner.count(1)) if n]
        if all(takes(2, v, n) for n in shares):
            check_schedule(make_schedule(kind.name, ranks, m), ranks, m)
        else:
            with pytest.raises(ScheduleError, match=r"next to it .* in all would do"):
                make_schedule(kind.name, ranks, m)
