"""The search over all schedules and custom orders."""

import itertools
import random
from collections.abc import Sequence

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.cluster import Link, load_cluster
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.problem import CUSTOM, SCHEDULES, Demands, Problem
from autopart.records.profile import Profile, load_profile
from autopart.report.plan_table import figures
from autopart.search.planner import solve
from tests.support.long_tests import long_tests
from tests.support.oracle import best_step_time
from tests.support.problems import chain_graph, cluster, layer, profile, random_problem
from tests.support.seeds import seeds
from tests.support.shared_data import DATA

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


@pytest.mark.parametrize("seed", seeds(3, 40))
def test_the_plan_is_the_fastest_over_all_given_schedules(seed: int):
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


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(1, 12, slow=3))
def test_custom_orders_are_no_slower_than_any_schedule_and_respect_the_bound(seed: int):
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


def with_custom_orders(num_ranks: int = 2, num_microbatches: int = 8) -> Plan:
    """A plan with custom orders: sends take a third of a stage, and few microbatches fit."""
    slow = cluster(1, num_ranks, intra_node=Link(bandwidth=100.0), memory_bytes=1000)
    return solve(TIGHT, slow, num_microbatches=num_microbatches, schedule="auto", num_replicas=1)


@pytest.mark.parametrize(
    "num_microbatches", [1, 2, pytest.param(3, marks=pytest.mark.slow), *long_tests(4, 5, 9)]
)
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_plan_with_schedule_auto_passes_verify_for_few_and_many_microbatches(
    num_ranks: int, num_microbatches: int
):
    assert_passes(with_custom_orders(num_ranks, num_microbatches), TIGHT)


@pytest.mark.slow
def test_a_plan_names_its_custom_orders_and_passes_verify():
    plan = with_custom_orders()
    assert plan.schedule == CUSTOM
    assert plan.origin.orders is not None
    assert plan.origin.orders.method in ("list scheduling", "warm-up, W filled in", "target times")
    assert plan.origin.orders.step_time_without_cap <= plan.prediction.step_time
    assert any("memory limit" in line for line in figures(plan))
    assert "any order" in plan.certificate.assumes
    assert_passes(plan, TIGHT)


@pytest.mark.slow
def test_a_plan_with_custom_orders_and_an_altered_order_or_bound_is_refused():
    plan = with_custom_orders()

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


CASES = DATA.parent / "cases"


@pytest.mark.skipif(not (CASES / "mixed.profile.json").exists(), reason=f"no cases in {CASES}")
def test_the_mixed_case_splits_one_stage_s_backwards_and_reaches_its_bound():
    given = load_profile(CASES / "mixed.profile.json")
    two = load_cluster(CASES / "mixed.cluster.json")
    plan = solve(given, two, num_microbatches=2, schedule="auto", num_replicas=1)
    assert plan.prediction.step_time == pytest.approx(16.363, rel=1e-4)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert_passes(plan, given)


def test_several_stages_on_one_rank_share_its_memory():
    graph = chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(8)), num_bytes=0)
    given = profile(graph)
    plan = solve(
        given, cluster(1, 2), num_microbatches=4, schedule="interleaved-1f1b", stages_per_rank=2
    )
    assert stage_ranks(plan) == ((0,), (1,), (0,), (1,))
    stashes = [stage.stash_bytes * stage.in_flight for stage in plan.prediction.stages]
    peaks = plan.prediction.rank_peak_bytes
    assert max(stashes) < peaks[0] <= stashes[0] + stashes[2]
    least = max(peaks)
    enough = solve(
        given,
        cluster(1, 2, memory_bytes=least),
        num_microbatches=4,
        schedule="interleaved-1f1b",
        stages_per_rank=2,
    )
    assert max(enough.prediction.rank_peak_bytes) <= least
    with pytest.raises(InfeasibleError, match=r"nothing fits into 300 B .* would do"):
        solve(
            given,
            cluster(1, 2, memory_bytes=300),
            num_microbatches=4,
            schedule="interleaved-1f1b",
            stages_per_rank=2,
        )


@pytest.mark.slow
def test_schedule_auto_finds_a_step_with_less_bubble_for_few_microbatches():
    plain = solve(ROW, cluster(1, 4), num_microbatches=4, num_stages=4, num_replicas=1)
    free = solve(ROW, cluster(1, 4), num_microbatches=4, num_replicas=1, schedule="auto")
    assert free.prediction.step_time < 0.75 * plain.prediction.step_time
    assert any("W" in order for order in free.orders) or free.schedule != CUSTOM


@pytest.mark.slow
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
        (
            {"schedule": "chimera", "num_stages": 3},
            "chimera runs two pipelines .* --stages 2 or 4$",
        ),
        ({"schedule": "gems", "num_microbatches": 7}, "gems runs two .* try 6 or 8 microbatches$"),
        ({"schedule": "gems", "num_replicas": 3}, "try --replicas 2 or 4$"),
        ({"schedule": "gems", "num_replicas": 6}, "multiple of 6 replicas$"),
        ({"schedule": "gems", "num_stages": 8, "num_replicas": 2}, "k r / 2 of 4 GPUs$"),
        ({"schedule": "chimera", "stages_per_rank": 3}, "try --stages-per-rank 2$"),
        ({"schedule": "chimera,gems", "objective": "bottleneck"}, "for the bottleneck"),
        ({"schedule": "custom"}, "unknown schedule 'custom'"),
        ({"schedule": "zb-h1", "replicas_per_stage": True}, "replicas of their own"),
        ({"schedule": "zbv", "objective": "bottleneck"}, "for the bottleneck"),
        ({"schedule": "zbv", "stages_per_rank": 3}, "suits the schedules zbv"),
        (
            {"schedule": "dualpipev", "num_stages": 8, "num_microbatches": 5},
            "dualpipev on 4 ranks takes at least as many microbatches as stages, 2 k: 8 would",
        ),
        ({"stages_per_rank": 0}, "0 stages per rank"),
    ],
)
def test_impossible_schedules_are_refused(demand: dict[str, object], message: str):
    with pytest.raises(AutopartError, match=message):
        solve(ROW, cluster(1, 4), **({"num_microbatches": 8} | demand))


@pytest.mark.slow
def test_every_named_schedule_can_be_demanded():
    for name in NAMED:
        plan = solve(ROW, cluster(1, 2), num_microbatches=8, schedule=name, num_replicas=1)
        assert plan.schedule == name
        assert_passes(plan, ROW)
    assert set(itertools.chain(*stage_ranks(plan))) == {0, 1}


@pytest.mark.parametrize("seed", seeds(2, 10))
def test_schedule_auto_is_no_slower_than_recomputed_layers_under_classic_schedules(seed: int):
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


def test_own_orders_fit_where_every_named_schedule_keeps_too_much_in_flight():
    # 1F1B keeps two microbatches on the first stage: 200 bytes. One at a time fits.
    layers = [layer(f"l{i}", stash_bytes=100, param_bytes=20) for i in range(2)]
    given, machine = profile(chain_graph(*layers, num_bytes=0)), cluster(1, 2, memory_bytes=150)
    with pytest.raises(InfeasibleError, match="the least that would do"):
        solve(given, machine, num_microbatches=4)
    plan = solve(given, machine, num_microbatches=4, schedule="auto")
    assert plan.schedule == "custom"
    assert max(plan.prediction.rank_peak_bytes) <= 150
    assert all(check.passed for check in verify(plan, given))
