"""The bottleneck as an objective: the best of all plans, proven, and its certificate checked."""

import json
import random

import msgspec
import pytest

from autopart.certificate import verify
from autopart.cost import bottleneck_time
from autopart.errors import AutopartError, InfeasibleError
from autopart.files import encode
from autopart.layouts import layouts, shapes
from autopart.plan import Plan, stage_ranks
from autopart.planner import baselines, solve
from autopart.pricing import fits, price
from autopart.problem import Problem
from tests.oracle import partitions
from tests.problems import chain_graph, cluster, layer, profile, random_problem


def best_bottleneck(problem: Problem) -> float | None:
    """The smallest bottleneck of any plan, by trying all; None where nothing fits."""
    found: list[float] = []
    for shape in shapes(problem):
        for layout in layouts(problem, *shape):
            for partition in partitions(problem, len(layout.stage_ranks)):
                decision = price(problem, layout, partition)
                if fits(problem, decision):
                    own = problem.num_microbatches // len(layout.stage_ranks[0])
                    found.append(own * max(s.busy_time for s in decision.prediction.stages))
    return min(found, default=None)


def bottleneck(plan: Plan) -> float:
    return bottleneck_time(plan.prediction.stages, stage_ranks(plan), plan.num_microbatches)


@pytest.mark.parametrize(
    ("solver", "seed"), [*(("auto", s) for s in range(80)), *(("ilp", s) for s in range(10))]
)
def test_a_plan_has_the_smallest_bottleneck_of_all_and_is_proven_to(solver: str, seed: int):
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
def test_a_graph_with_too_many_cuts_gets_an_honest_gap(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autopart.cuts._downsets", lambda graph, most: None)
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


def test_the_two_objectives_differ_where_fill_and_drain_count():
    rows = profile(chain_graph(*(layer(f"l{i}", forward_time=i % 3 + 1) for i in range(7))))
    machine = cluster(1, 4)
    step = solve(rows, machine, num_microbatches=4, num_replicas=1)
    steady = solve(rows, machine, num_microbatches=4, num_replicas=1, objective="bottleneck")
    assert bottleneck(steady) <= bottleneck(step)
    assert step.prediction.step_time <= steady.prediction.step_time
    assert step.objective == "step" and steady.objective == "bottleneck"
    assert steady.certificate.lower_bound == pytest.approx(bottleneck(steady))


def test_replicas_divide_the_bottleneck():
    rows = profile(chain_graph(layer("only", forward_time=2.0, input_grad_time=0.0)))
    plan = solve(rows, cluster(1, 2), num_microbatches=6, objective="bottleneck")
    assert len(plan.stages[0].ranks) == 2
    assert bottleneck(plan) == pytest.approx(3 * 3.0)


def test_a_better_objective_or_a_higher_bound_written_into_the_plan_is_refused():
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


def test_baselines_are_of_the_same_objective():
    rows = profile(chain_graph(*(layer(f"l{i}", forward_time=i + 1) for i in range(6))))
    plan = solve(rows, cluster(1, 2), num_microbatches=4, num_stages=2, objective="bottleneck")
    for other in baselines(rows, plan).values():
        assert isinstance(other, Plan) and other.objective == "bottleneck"
        assert bottleneck(other) >= bottleneck(plan)


def test_replicas_per_stage_and_unknown_objectives_are_refused():
    rows = profile(chain_graph(layer("a"), layer("b")))
    with pytest.raises(AutopartError, match="as many replicas each"):
        solve(rows, cluster(1, 2), replicas_per_stage=True, objective="bottleneck")
    with pytest.raises(AutopartError, match="unknown objective 'speed'"):
        solve(rows, cluster(1, 2), objective="speed")
