import random
import time

import pytest

from autopart.errors import InfeasibleError
from autopart.pricing import predict
from autopart.records.layer_graph import LayerGraph
from autopart.records.layouts import Layout, layouts, shapes
from autopart.solvers.ilp import program as integer_program
from tests.support.oracle import partitions
from tests.support.problems import cluster, layer, problem, random_problem, value


def solved(asked, layout, chain_plan=None):
    return integer_program.solve(asked, layout, chain_plan, time.perf_counter() + 30)


def test_two_branches_are_separated_against_the_topological_order():
    names = ["start", "left0", "left1", "right0", "right1", "join"]
    times = {"left0": 3.0, "left1": 3.0, "right0": 3.0, "right1": 3.0}
    layers = tuple(layer(n, forward_time=times.get(n, 0.0), input_grad_time=0, weight_grad_time=0) for n in names)  # fmt: skip
    values = (
        value("start", "left0", bytes=0),
        value("start", "right0", bytes=0),
        value("left0", "left1", bytes=1000),
        value("right0", "right1", bytes=1000),
        value("left1", "join", bytes=1),
        value("right1", "join", bytes=1),
    )
    slow = cluster(1, 2, intra_node=cluster().intra_node)
    asked = problem(LayerGraph(layers=layers, values=values), 8, cluster=slow)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=8)
    found = solved(asked, layout)
    assert found is not None
    first = {layers[at].name for at in found[0]}
    assert first - {"start"} in ({"left0", "left1"}, {"right0", "right1"})


def best_finish(asked, layout) -> float | None:
    """The smallest objective (9) among partitions that fit."""
    found = [
        integer_program.finish_of(asked, layout, partition)
        for partition in partitions(asked, len(layout.stage_ranks))
        if all(
            stage.peak_bytes <= asked.cluster.memory_bytes
            for stage in predict(asked, layout, partition)[0]
        )
    ]
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(60))
def test_the_integer_program_equals_trying_everything(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=True, tight=rng.random() < 0.5)
    layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
    found, best = solved(asked, layout), best_finish(asked, layout)
    if best is None:
        assert found is None
        return
    assert found is not None
    stages, _ = predict(asked, layout, found)
    assert max(s.peak_bytes for s in stages) <= asked.cluster.memory_bytes
    assert integer_program.finish_of(asked, layout, found) == pytest.approx(best, rel=1e-5)


def test_an_optimal_chain_plan_is_not_improved():
    layers = (layer("a"), layer("b", forward_time=2.0))
    asked = problem(LayerGraph(layers=layers, values=(value("a", "b"),)), 4)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=4)
    assert solved(asked, layout, ((0,), (1,))) in (None, ((0,), (1,)))


def test_without_time_there_is_no_answer():
    layers = (layer("a"), layer("b"))
    asked = problem(LayerGraph(layers=layers), 4)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=4)
    assert integer_program.solve(asked, layout, None, time.perf_counter() - 1) is None


def test_at_least_half_and_not_all_random_problems_are_feasible():
    feasible = 0
    for seed in range(60):
        rng = random.Random(seed)
        asked = random_problem(rng, branching=True, tight=rng.random() < 0.5)
        try:
            layout = rng.choice(layouts(asked, *rng.choice(shapes(asked))))
        except InfeasibleError:
            continue
        feasible += best_finish(asked, layout) is not None
    assert 30 <= feasible < 60
