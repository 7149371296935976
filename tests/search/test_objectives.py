"""The bottleneck as the objective: its plan is proven best, and verify checks its certificate."""

import json
import random

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.cost.stage_times import bottleneck_time
from autopart.errors import AutopartError, InfeasibleError
from autopart.pricing import fits, price
from autopart.records.files import encode
from autopart.records.plan import Plan, stage_ranks
from autopart.records.problem import Problem
from autopart.search.planner import baselines, solve
from tests.support.oracle import every_layout, partitions
from tests.support.problems import chain_graph, cluster, layer, profile, random_problem
from tests.support.seeds import seeds


def best_bottleneck(problem: Problem) -> float | None:
    """The smallest bottleneck over all plans, by trying each; None where nothing fits."""
    found: list[float] = []
    for layout in every_layout(problem):
        for partition in partitions(problem, len(layout.stage_ranks)):
            decision = price(problem, layout, partition)
            if fits(problem, decision):
                own = problem.num_microbatches // len(layout.stage_ranks[0])
                found.append(own * max(s.busy_time for s in decision.prediction.stages))
    return min(found, default=None)


def bottleneck(plan: Plan) -> float:
    return bottleneck_time(plan.prediction.stages, stage_ranks(plan), plan.num_microbatches)


@pytest.mark.parametrize("seed", seeds(24, 80))
def test_a_plan_is_proven_to_have_the_smallest_bottleneck(seed: int):
    check_the_smallest_bottleneck("auto", seed)


@pytest.mark.parametrize("seed", seeds(3, 10))
def test_an_integer_program_s_plan_is_proven_to_have_the_smallest_bottleneck(seed: int):
    check_the_smallest_bottleneck("ilp", seed)


def check_the_smallest_bottleneck(solver: str, seed: int) -> None:
    rng = random.Random(1000 + seed)
    asked = random_problem(rng, branching=rng.random() < 0.5, tight=rng.random() < 0.5)
    best, given = best_bottleneck(asked), profile(asked.graph)
    try:
        plan = solve(
            given,
            asked.cluster,
            num_microbatches=asked.num_microbatches,
            objective="bottleneck",
            solver=solver,
        )
    except InfeasibleError:
        assert best is None
        return
    assert bottleneck(plan) == pytest.approx(best, rel=1e-9 if solver == "auto" else 1e-5)
    assert plan.certificate.lower_bound == pytest.approx(best, rel=1e-9)
    assert all(check.passed for check in verify(plan, given)), verify(plan, given)[-1]


@pytest.mark.parametrize("seed", range(8))
def test_a_graph_with_too_many_cuts_has_a_valid_gap(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autopart.cost.cuts.downsets_of", lambda n, edges, most: None)
    asked = random_problem(random.Random(seed), branching=True, tight=False)
    given = profile(asked.graph)
    plan = solve(
        given, asked.cluster, num_microbatches=asked.num_microbatches, objective="bottleneck"
    )
    best = best_bottleneck(asked)
    assert best is not None
    assert plan.certificate.lower_bound <= best * (1 + 1e-9)
    assert bottleneck(plan) == pytest.approx(best, rel=1e-5)  # the integer program's own tolerance
    assert all(check.passed for check in verify(plan, given))


def test_the_smallest_bottleneck_and_the_shortest_step_can_need_different_plans():
    rows = profile(chain_graph(*(layer(f"l{i}", forward_time=i % 3 + 1) for i in range(7))))
    machine = cluster(1, 4)
    step = solve(rows, machine, num_microbatches=4, num_replicas=1)
    smallest = solve(rows, machine, num_microbatches=4, num_replicas=1, objective="bottleneck")
    assert bottleneck(smallest) <= bottleneck(step)
    assert step.prediction.step_time <= smallest.prediction.step_time
    assert step.objective == "step" and smallest.objective == "bottleneck"
    assert smallest.certificate.lower_bound == pytest.approx(bottleneck(smallest))


def test_replicas_divide_the_bottleneck():
    rows = profile(chain_graph(layer("only", forward_time=2.0, input_grad_time=0.0)))
    plan = solve(rows, cluster(1, 2), num_microbatches=6, objective="bottleneck")
    assert len(plan.stages[0].ranks) == 2
    assert bottleneck(plan) == pytest.approx(3 * 3.0)


def test_a_plan_with_an_altered_objective_or_bound_is_refused():
    asked = random_problem(random.Random(4), branching=True, tight=False)
    given = profile(asked.graph)
    plan = solve(given, asked.cluster, num_microbatches=4, objective="bottleneck", num_stages=1)
    step = msgspec.structs.replace(plan, objective="step")
    assert not all(check.passed for check in verify(step, given))
    tree = json.loads(encode(plan))
    for factor in (1.001, 0.999):
        changed = json.loads(json.dumps(tree))
        changed["sizes"][0]["lower_bound"] *= factor
        changed["certificate"]["lower_bound"] *= factor
        passed = all(c.passed for c in verify(msgspec.convert(changed, Plan), given))
        assert not passed, factor


def test_baselines_have_the_same_objective():
    rows = profile(chain_graph(*(layer(f"l{i}", forward_time=i + 1) for i in range(6))))
    plan = solve(rows, cluster(1, 2), num_microbatches=4, num_stages=2, objective="bottleneck")
    for other in baselines(rows, plan).values():
        assert isinstance(other, Plan) and other.objective == "bottleneck"
        assert bottleneck(other) >= bottleneck(plan)


def test_replicas_per_stage_and_unknown_objectives_are_refused():
    rows = profile(chain_graph(layer("a"), layer("b")))
    with pytest.raises(AutopartError, match="equal replicas for all stages"):
        solve(rows, cluster(1, 2), replicas_per_stage=True, objective="bottleneck")
    with pytest.raises(AutopartError, match="unknown objective 'speed'"):
        solve(rows, cluster(1, 2), objective="speed")
