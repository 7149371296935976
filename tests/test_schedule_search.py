"""The planner's choice among all schedules, and orders of its own."""

import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest

from autopart.certificate import verify
from autopart.cluster import Link
from autopart.errors import AutopartError, InfeasibleError
from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.planner import solve
from autopart.problem import CUSTOM, SCHEDULES, Demands, Problem
from autopart.profile import Profile
from autopart.report.plan_table import figures
from tests.oracle import best_step_time
from tests.problems import chain_graph, cluster, layer, profile, random_problem
from tests.seeds import seeds

NAMED = tuple(name for name in SCHEDULES if name != CUSTOM)
ROW = profile(chain_graph(*(layer(f"l{i}") for i in range(8))))


def asking(problem: Problem, schedules: Sequence[str]) -> Problem:
    demands = Demands(schedules=tuple(schedules))
    return msgspec.structs.replace(problem, demands=demands)


def solved(problem: Problem, schedule: str, **more: object) -> Plan:
    return solve(
        profile(problem.graph),
        problem.cluster,
        num_microbatches=problem.num_microbatches,
        schedule=schedule,
        **more,
    )


def assert_passes(plan: Plan, given: Profile) -> None:
    assert [check for check in verify(plan, given) if not check.passed] == []


@pytest.mark.parametrize("seed", seeds(20, 40))
def test_among_some_schedules_the_plan_is_the_fastest_of_all(seed: int):
    rng = random.Random(seed)
    problem = random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.4)
    names = rng.sample(NAMED, 3)
    best = None
    try:
        best = best_step_time(asking(problem, names))
        plan = solved(problem, ",".join(names))
    except InfeasibleError:
        assert best is None
        return
    assert best is not None
    assert plan.schedule in names
    assert plan.prediction.step_time == pytest.approx(best, rel=1e-9)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert_passes(plan, profile(problem.graph))


@pytest.mark.parametrize("seed", seeds(5, 12))
def test_orders_of_its_own_are_no_slower_than_any_schedule_and_keep_the_bound(seed: int):
    rng = random.Random(100 + seed)
    problem = random_problem(rng, branching=seed % 3 == 0, tight=seed % 2 == 0)
    try:
        plan = solved(problem, "auto")
    except InfeasibleError:
        assert best_step_time(asking(problem, NAMED)) is None
        return
    best = best_step_time(asking(problem, NAMED))
    assert best is None or plan.prediction.step_time <= best * (1 + 1e-9)
    assert plan.certificate.lower_bound <= plan.prediction.step_time * (1 + 1e-9)
    assert best is None or plan.certificate.lower_bound <= best * (1 + 1e-9)
    assert_passes(plan, profile(problem.graph))


TIGHT = profile(chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(4)), num_bytes=100))


def with_own_orders(num_ranks: int = 2, num_microbatches: int = 8) -> Plan:
    """Sends of a third of a stage, and little room for microbatches in flight."""
    slow = cluster(1, num_ranks, intra_node=Link(bandwidth=100.0), memory_bytes=1000)
    return solve(TIGHT, slow, num_microbatches=num_microbatches, schedule="auto", num_replicas=1)


@pytest.mark.parametrize("num_microbatches", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_any_schedule_or_orders_are_proven_for_few_microbatches_and_many(
    num_ranks: int, num_microbatches: int
):
    assert_passes(with_own_orders(num_ranks, num_microbatches), TIGHT)


def test_orders_of_its_own_are_told_and_verified():
    plan = with_own_orders()
    assert plan.schedule == CUSTOM
    assert plan.origin.orders is not None
    assert "list scheduling" in plan.origin.orders.method
    assert plan.origin.orders.step_time_without_cap <= plan.prediction.step_time
    assert any("memory limit" in line for line in figures(plan))
    assert "any order" in plan.certificate.assumes
    assert_passes(plan, TIGHT)


def test_an_altered_order_or_bound_of_a_plan_with_its_own_orders_is_refused():
    plan = with_own_orders()

    def passes(altered: Plan) -> bool:
        return all(check.passed for check in verify(altered, TIGHT))

    words = plan.orders[0].split()
    forwards = [at for at, word in enumerate(words) if word[1] == "F"]
    late = [*words]
    late.insert(0, late.pop(forwards[-1]))
    assert not passes(msgspec.structs.replace(plan, orders=(" ".join(late), *plan.orders[1:])))
    bound = plan.certificate.lower_bound * 1.01
    sizes = tuple(msgspec.structs.replace(size, lower_bound=bound) for size in plan.sizes)
    certificate = msgspec.structs.replace(
        plan.certificate, lower_bound=bound, gap=plan.prediction.step_time / bound - 1
    )
    assert not passes(msgspec.structs.replace(plan, certificate=certificate, sizes=sizes))
    assert passes(plan)


def test_several_stages_a_rank_share_its_memory():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(8)), num_bytes=0)
    given = profile(graph)
    plan = solve(
        given, cluster(1, 2), num_microbatches=4, schedule="interleaved-1f1b", stages_per_rank=2
    )
    assert stage_ranks(plan) == ((0,), (1,), (0,), (1,))
    held = [stage.stash_bytes * stage.in_flight for stage in plan.prediction.stages]
    peaks = plan.prediction.rank_peak_bytes
    assert max(held) < peaks[0] <= held[0] + held[2]
    least = max(peaks)
    enough = solve(
        given,
        cluster(1, 2, memory_bytes=least),
        num_microbatches=4,
        schedule="interleaved-1f1b",
        stages_per_rank=2,
    )
    assert max(enough.prediction.rank_peak_bytes) <= least
    with pytest.raises(InfeasibleError, match="the least that would do"):
        solve(
            given,
            cluster(1, 2, memory_bytes=300),
            num_microbatches=4,
            schedule="interleaved-1f1b",
            stages_per_rank=2,
        )


def test_a_step_with_less_bubble_is_found_where_microbatches_are_few():
    plain = solve(ROW, cluster(1, 4), num_microbatches=4, num_stages=4, num_replicas=1)
    free = solve(ROW, cluster(1, 4), num_microbatches=4, num_replicas=1, schedule="auto")
    assert free.prediction.step_time < 0.75 * plain.prediction.step_time
    assert any("W" in order for order in free.orders) or free.schedule != CUSTOM


def test_replicas_run_the_same_orders_on_their_own_microbatches():
    plan = solve(ROW, cluster(1, 4), num_microbatches=8, num_replicas=2, schedule="auto")
    ranks, orders = stage_ranks(plan), schedule_of(plan)
    for first, second in set(ranks):
        seen = zip(orders[first], orders[second], strict=True)
        assert all(a.stage == b.stage and a.op == b.op for a, b in seen)
        assert {a.microbatch % 2 for a in orders[first]} == {0}
        assert {a.microbatch % 2 for a in orders[second]} == {1}


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        ({"schedule": "zigzag"}, "unknown schedule 'zigzag'; known: auto, "),
        ({"schedule": "chimera"}, "holds every layer on two ranks"),
        ({"schedule": "custom"}, "unknown schedule 'custom'"),
        ({"schedule": "zb-h1", "replicas_per_stage": True}, "replicas of their own"),
        ({"schedule": "zbv", "objective": "bottleneck"}, "for the bottleneck"),
        ({"schedule": "zbv", "stages_per_rank": 3}, "suits the schedules zbv"),
        (
            {"schedule": "dualpipev", "num_stages": 8, "num_microbatches": 5},
            "dualpipev on 4 ranks takes at least as many microbatches as stages, 2 k: 8 would",
        ),
        ({"stages_per_rank": 0}, "0 stages a rank"),
    ],
)
def test_schedules_that_cannot_be_are_refused(demand: dict[str, object], message: str):
    with pytest.raises(AutopartError, match=message):
        solve(ROW, cluster(1, 4), **({"num_microbatches": 8} | demand))


def test_every_schedule_that_a_plan_can_follow_can_be_asked_for():
    for name in NAMED:
        plan = solve(ROW, cluster(1, 2), num_microbatches=8, schedule=name, num_replicas=1)
        assert plan.schedule == name
        assert_passes(plan, ROW)
    assert set(itertools.chain(*stage_ranks(plan))) == {0, 1}


@pytest.mark.parametrize("seed", seeds(5, 10))
def test_recomputed_layers_and_orders_of_its_own_are_compared_fairly(seed: int):
    rng = random.Random(200 + seed)
    problem = random_problem(rng, branching=False, tight=True)
    try:
        plain = solved(problem, "gpipe,1f1b", recompute="auto")
    except InfeasibleError:
        return
    plan = solved(problem, "auto", recompute="auto")
    assert plan.prediction.step_time <= plain.prediction.step_time * (1 + 1e-9)
    assert plan.certificate.lower_bound <= plan.prediction.step_time * (1 + 1e-9)
    assert plan.certificate.lower_bound <= plain.certificate.lower_bound * (1 + 1e-9)
    assert_passes(plan, profile(problem.graph))
