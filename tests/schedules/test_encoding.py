"""The result that each action awaits, against two older computations, entry by entry."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from autopart.errors import ScheduleError
from autopart.schedules.actions import Schedule, StageRanks, parse_order, without_pairs
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.encoding import encode, every_action, takers
from autopart.schedules.lending import computing
from tests.support.pictures import copies, place_stages
from tests.support.waits import predecessors

IntArray = npt.NDArray[np.int64]

PHASE = np.array([0, 1, 1, 2])
"""B and I share one place: an action on another stage awaits either."""


class Case(NamedTuple):
    name: str
    schedule: Schedule
    ranks: StageRanks


def awaited(case: Case) -> IntArray:
    """The former computation in the check of schedules, for a complete schedule.

    The entry for an action is the action on another rank that it awaits. It is the number of
    actions where it awaits none. It is one more where a needed action stands later on the same
    rank.
    """
    actions = every_action(case.schedule)
    rank = np.repeat(np.arange(len(case.schedule)), [len(order) for order in case.schedule])
    stage = np.array([action.stage for action in actions])
    op = np.array(["FBIW".index(action.op) for action in actions])
    microbatch = np.array([action.microbatch for action in actions])
    num_stages, count = len(case.ranks), len(actions)
    here, free, never = np.arange(count), count, count + 1
    at = np.full((num_stages, 3, microbatch.max() + 1), never)
    at[stage, PHASE[op], microbatch] = here
    ends = np.zeros(num_stages + 1, dtype=bool)
    ends[[0, num_stages]] = True
    before = np.full(count, free)
    forward = (op == 0) & ~ends[stage]
    before[forward] = at[stage[forward] - 1, 0, microbatch[forward]]
    backward = ((op == 1) | (op == 2)) & ~ends[stage + 1]
    before[backward] = at[stage[backward] + 1, 1, microbatch[backward]]
    later = op > 0
    own = np.full(count, -1)
    own[later] = at[stage[later], PHASE[op[later]] - 1, microbatch[later]]
    local = np.append(rank, [-1, -1])[before] == rank
    before[local] = np.where(before[local] < here[local], free, never)
    before[own > here] = never
    return before


def by_name(case: Case) -> list[int]:
    """The same from `predecessors`, action by action."""
    actions = every_action(case.schedule)
    number = {action: at for at, action in enumerate(actions)}
    rank = {a: r for r, order in enumerate(case.schedule) for a in order}
    found: list[int] = []
    for at, action in enumerate(actions):
        needed = predecessors(action, len(case.ranks), ("B", "I"))
        there = [other for other in needed if other in number]
        away = [number[other] for other in there if rank[other] != rank[action]]
        early = all(number[other] < at for other in there if rank[other] == rank[action])
        found.append(len(actions) + 1 if not early else (*away, len(actions))[0])
    return found


def cases() -> Iterator[Case]:
    """Every named schedule with several numbers of ranks, stages per rank and replicas."""
    for kind, ranks, microbatches, replicas in itertools.product(
        KINDS.values(), (1, 2, 3, 4), (2, 4, 6, 12), (1, 2)
    ):
        for per_rank in [kind.stages_per_rank] if kind.stages_per_rank else [2, 3]:
            one = place_stages(kind, ranks, per_rank)
            placed = copies(one, [copy * ranks for copy in range(replicas)])
            try:
                schedule = make_schedule(kind.name, placed, microbatches * replicas)
            except ScheduleError:
                continue
            name = f"{kind.name} {ranks} x {per_rank} x {microbatches} x {replicas}"
            yield Case(name, schedule, placed)
    for kind in KINDS.values():
        for counts in ([2, 1], [1, 3], [3, 1, 2]) if kind.uneven else ():
            first = [0, *itertools.accumulate(counts)]
            placed = [tuple(range(a, b)) for a, b in itertools.pairwise(first)]
            schedule = make_schedule(kind.name, placed, 7)
            yield Case(f"{kind.name} {counts}", schedule, placed)


CASES = list(cases())


def shuffled(schedule: Schedule, seed: int) -> Schedule:
    """The schedule with two actions exchanged on each rank. It is complete, but may not run."""
    rng = np.random.default_rng(seed)
    orders: list[Sequence[object]] = []
    for order in schedule:
        changed = list(order)
        if len(changed) > 1:
            one, other = rng.choice(len(changed), 2, replace=False)
            changed[one], changed[other] = changed[other], changed[one]
        orders.append(tuple(changed))
    return tuple(orders)  # pyright: ignore[reportReturnType]


def test_the_cases_have_every_named_schedule():
    assert len(CASES) >= 135
    assert {case.name.split()[0] for case in CASES} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_every_action_awaits_the_same_result_as_in_the_older_computations(name: str):
    for case in CASES:
        if case.name.split()[0] != name:
            continue
        for schedule in (case.schedule, *(shuffled(case.schedule, seed) for seed in range(3))):
            # What an action awaits does not change in an overlapped pair.
            tried = case._replace(schedule=tuple(map(without_pairs, computing(schedule))))
            need = encode(tried.schedule, len(case.ranks)).need.tolist()
            assert need == awaited(tried).tolist(), case.name
            assert need == by_name(tried), case.name


def test_a_split_backward_is_awaited_as_a_whole_one():
    for split in (("0F0 0I0 0W0", "1F0 1B0"), ("0F0 0B0", "1F0 1I0 1W0")):
        schedule = tuple(map(parse_order, split))
        actions = encode(schedule, 2)
        each = every_action(schedule)
        handed = {str(each[a]): str(each[b]) for a, b in takers(actions).items()}
        assert handed == {"0F0": "1F0", str(schedule[1][1]): str(schedule[0][1])}


def test_a_missing_action_is_awaited_forever():
    schedule = (parse_order("0F0 0B0"), parse_order("1B0"))
    actions = encode(schedule, 2)
    assert actions.need.tolist() == [actions.nothing, 2, actions.never]


def test_idle_ranks_and_empty_schedules_have_no_actions():
    assert encode((), 1).num_actions == 0
    actions = encode((parse_order("0F0"), ()), 1)
    assert actions.first == (0, 1, 1)
    assert actions.need.tolist() == [actions.nothing]
