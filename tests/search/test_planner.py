import random
from pathlib import Path

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.cluster import Link, cluster_of
from autopart.records.layer_graph import LayerGraph, Recompute
from autopart.records.plan import check_plan, load_plan, save_plan
from autopart.search.planner import baselines, solve
from tests.support.oracle import best_step_time
from tests.support.problems import (
    chain_graph,
    cluster,
    layer,
    problem,
    profile,
    random_problem,
    value,
)
from tests.support.seeds import seeds

ROW = profile(chain_graph(*(layer(f"l{i}", param_bytes=400, grad_bytes=400, num_trainable=100) for i in range(6))))  # fmt: skip


def head_heavy():
    """Eight equal layers, and a head with the time of four."""
    body = [layer(f"l{i}") for i in range(8)]
    return profile(chain_graph(*body, layer("head", forward_time=4.0, input_grad_time=8.0)))


def test_a_plan_is_valid_and_equal_after_save_and_load(tmp_path: Path):
    plan = solve(ROW, cluster(2, 2), global_batch=8)
    check_plan(plan)
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    assert plan.num_microbatches == 8
    assert sum(len(stage.layers) for stage in plan.stages) == 6


def test_with_a_heavy_head_the_plan_is_faster_than_equal_layer_counts():
    plan = solve(head_heavy(), cluster(), num_microbatches=8, num_stages=4)
    uniform = baselines(head_heavy(), plan)["uniform"]
    assert not isinstance(uniform, str)
    assert plan.prediction.step_time < 0.9 * uniform.prediction.step_time
    assert plan.stages[-1].layers == ("head",)


def test_gradient_syncs_stay_inside_nodes_with_a_slow_link_between_them():
    """Two nodes with a slow link; layers have many parameters and small activations."""
    sizes = {"param_bytes": 10**6, "grad_bytes": 10**6, "num_trainable": 250_000}
    heavy = profile(chain_graph(*(layer(f"l{i}", **sizes) for i in range(8))))
    slow = cluster(2, 2, intra_node=Link(bandwidth=1e7), inter_node=Link(bandwidth=1e4))
    plan = solve(heavy, slow, num_microbatches=8)
    for stage in plan.stages:
        assert len({rank // 2 for rank in stage.ranks}) == 1
    assert len(plan.stages) > 1


def test_demands_for_stages_replicas_and_schedule_are_obeyed():
    plan = solve(ROW, cluster(), num_microbatches=8, num_stages=2, num_replicas=2, schedule="gpipe")
    assert [len(stage.ranks) for stage in plan.stages] == [2, 2]
    assert plan.schedule == "gpipe"


def test_one_f_one_b_is_chosen_if_gpipe_does_not_fit():
    rows = profile(chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(4)), num_bytes=0))
    plan = solve(rows, cluster(1, 2, memory_bytes=500), num_microbatches=8, num_stages=2)
    assert plan.schedule == "1f1b"
    with pytest.raises(InfeasibleError):
        solve(
            rows,
            cluster(1, 2, memory_bytes=500),
            num_microbatches=8,
            num_stages=2,
            schedule="gpipe",
        )


@pytest.mark.slow
def test_the_infeasible_message_names_the_least_memory_and_it_suffices():
    with pytest.raises(
        InfeasibleError, match=r"nothing fits into 500 B .*\((\d+) bytes\)"
    ) as caught:
        solve(ROW, cluster(memory_bytes=500), num_microbatches=8)
    least = int(str(caught.value).split("(")[1].split(" bytes")[0])
    solve(ROW, cluster(memory_bytes=least), num_microbatches=8)
    with pytest.raises(InfeasibleError):
        solve(ROW, cluster(memory_bytes=least - 1), num_microbatches=8)


@pytest.mark.parametrize(
    ("demand", "message"),
    [
        ({"schedule": "zigzag"}, "unknown schedule 'zigzag'; known: auto, gpipe, 1f1b"),
        ({"solver": "magic"}, "unknown solver 'magic'; known: auto, dp"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion'"),
        ({"num_stages": 0}, "0 stages: there must be at least 1"),
        ({"num_microbatches": 0}, "0 microbatches: there must be at least 1"),
    ],
)
def test_an_invalid_demand_is_refused(demand: dict[str, object], message: str):
    with pytest.raises(AutopartError, match=message):
        solve(ROW, cluster(), **demand)  # pyright: ignore


def test_a_batch_that_the_microbatch_does_not_divide_is_refused_with_two_that_it_divides():
    odd = msgspec.structs.replace(ROW, microbatch_size=4)
    with pytest.raises(AutopartError, match="try 8 or 12"):
        solve(odd, cluster(), global_batch=10)


@pytest.mark.parametrize("solver", ["dp", "ilp", "uniform", "parameters", "auto"])
def test_every_solver_gives_a_plan(solver: str):
    plan = solve(ROW, cluster(1, 2), num_microbatches=4, solver=solver)
    check_plan(plan)
    assert plan.origin.solver == ("dp" if solver == "auto" else solver)


def test_a_baseline_without_a_plan_gives_the_reason():
    rows = profile(chain_graph(*(layer(f"l{i}", stash_bytes=100) for i in range(6)), num_bytes=0))
    plan = solve(rows, cluster(1, 2, memory_bytes=420), num_microbatches=8, num_stages=2)
    found = baselines(rows, plan)
    assert isinstance(found["uniform"], str)
    assert "the least that would do is 600 B" in found["uniform"]


def test_solve_needs_only_a_profile_and_a_cluster():
    plan = solve(ROW, cluster_of("h100-sxm", 2))
    assert plan.num_microbatches == 8


@pytest.mark.parametrize("seed", seeds(5, 120))
def test_a_plan_is_proven_fastest(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.5)
    best = best_step_time(asked)
    given = profile(asked.graph)
    try:
        plan = solve(given, asked.cluster, num_microbatches=asked.num_microbatches)
    except InfeasibleError:
        assert best is None
        return
    assert plan.prediction.step_time == pytest.approx(best, rel=1e-9)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert all(check.passed for check in verify(plan, given))


def _no_downsets(*_: object) -> None:
    """A graph with more downsets than are listed."""


@pytest.mark.parametrize("seed", range(12))
def test_a_graph_with_too_many_cuts_has_a_valid_gap(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autopart.cost.cuts.downsets_of", _no_downsets)
    rng = random.Random(seed)
    asked = random_problem(rng, branching=True, tight=False)
    plan = solve(profile(asked.graph), asked.cluster, num_microbatches=asked.num_microbatches)
    best = best_step_time(asked)
    assert best is not None
    assert plan.certificate.lower_bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= plan.prediction.step_time <= best * 1.5
    assert all(check.passed for check in verify(plan, profile(asked.graph)))


@pytest.mark.usefixtures("processor_clock")
@pytest.mark.parametrize("seed", seeds(6, 20))
def test_a_plan_with_a_time_limit_of_zero_has_a_valid_gap(seed: int):
    asked = random_problem(random.Random(seed), branching=seed % 3 == 0, tight=False)
    given = profile(asked.graph)
    plan = solve(given, asked.cluster, num_microbatches=asked.num_microbatches, time_limit=0.0)
    best = best_step_time(asked)
    assert best is not None and plan.certificate.lower_bound <= best * (1 + 1e-9)
    assert plan.prediction.step_time >= best * (1 - 1e-9)
    assert all(check.passed for check in verify(plan, given))


@pytest.mark.parametrize("seed", seeds(10, 30))
def test_a_long_chain_gets_proposals_from_bisection(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("autopart.search.objectives.MOST_CUTS", 0)
    monkeypatch.setattr("autopart.solvers.cuts_dp.solve", None)
    rng = random.Random(seed)
    names = [layer(f"l{i}", forward_time=rng.uniform(0.5, 2), param_bytes=40) for i in range(6)]
    given = profile(chain_graph(*names, num_bytes=rng.randrange(1, 9)))
    link = Link(bandwidth=rng.choice([20.0, 1000.0]))
    machine = cluster(1, 4, memory_bytes=rng.choice([230, 1000]), intra_node=link)
    plan = solve(given, machine, num_microbatches=8)
    best = best_step_time(problem(given.graph, 8, cluster=machine))
    assert plan.prediction.step_time == pytest.approx(best, rel=1e-9)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("schedule", ["interleaved-1f1b", "zbv"])
def test_the_integer_program_alone_plans_named_schedules_with_policies(schedule: str) -> None:
    """Two branches, which no order of the graph's own separates, in memory that needs recomputation."""
    again = Recompute(extra_time=1.0, stash_bytes=0)
    names = ("start", "left0", "left1", "right0", "right1", "join")
    rows = tuple(layer(name, stash_bytes=40, recompute=again) for name in names)
    pairs = (
        "start left0",
        "start right0",
        "left0 left1",
        "right0 right1",
        "left1 join",
        "right1 join",
    )
    values = tuple(value(*pair.split(), bytes=1) for pair in pairs)
    graph = LayerGraph(layers=rows, values=values)
    machine = cluster(1, 2, memory_bytes=240)
    plan = solve(
        profile(graph),
        machine,
        num_microbatches=4,
        schedule=schedule,
        solver="ilp",
        recompute="auto",
    )
    best = solve(profile(graph), machine, num_microbatches=4, schedule=schedule, recompute="auto")
    assert (plan.origin.solver, plan.schedule) == ("ilp", schedule)
    assert any(stage.recompute for stage in plan.stages)
    assert plan.prediction.step_time == pytest.approx(best.prediction.step_time)
