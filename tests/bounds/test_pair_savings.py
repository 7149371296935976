"""Bounds and plans where ranks run overlapped pairs, against trying everything."""

import random

import msgspec
import pytest

from autopart.bounds.objectives import TOLERANCE, objective_of
from autopart.bounds.pair_savings import without_savings
from autopart.certificate.bound import check_bound
from autopart.cost.cuts import all_cuts, cuts_along
from autopart.errors import InfeasibleError
from autopart.records.layer_graph import Layer, pair_saving
from autopart.records.layouts import shapes
from autopart.records.problem import PAIRED, Problem
from tests.support.oracle import best_step_time, every_layout, partitions, step_time
from tests.support.problems import random_problem
from tests.support.searches import searched
from tests.support.seeds import seeds


def paired_problem(seed: int) -> Problem:
    """A small problem whose layers have pair times, under one or all of the paired schedules.

    Where these leave no shape, `paired-1f1b` takes any number of stages.
    """
    rng = random.Random(seed)
    made = random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.3)
    layers = tuple(_with_pair_time(rng, la) for la in made.graph.layers)
    graph = msgspec.structs.replace(made.graph, layers=layers)
    names = rng.choice([*((name,) for name in PAIRED), ("1f1b", *PAIRED)])
    demands = msgspec.structs.replace(
        made.demands, schedules=names, recompute="never", offload="never", offload_optimizer="never",
        recompute_layers=(), selective_layers=(), offload_layers=(), keep_layers=(),
        replicas_per_stage=False,
    )  # fmt: skip
    problem = msgspec.structs.replace(made, graph=graph, demands=demands, objective="step")
    try:
        shapes(problem)
    except InfeasibleError:
        demands = msgspec.structs.replace(
            demands, schedules=("paired-1f1b",), num_stages=None, num_replicas=None,
            stages_per_rank=None, pins=(),
        )  # fmt: skip
        return msgspec.structs.replace(problem, demands=demands)
    return problem


def _with_pair_time(rng: random.Random, layer: Layer) -> Layer:
    if rng.random() < 0.2:
        return layer
    backward = layer.input_grad_time + layer.weight_grad_time
    longer, shorter = sorted((layer.forward_time, backward), reverse=True)
    return msgspec.structs.replace(layer, pair_time=longer + rng.random() * shorter)


@pytest.mark.slow
@pytest.mark.parametrize("part", seeds(0, 12, 1))
def test_no_partition_takes_less_than_its_bounds(part: int):
    compared = 0
    for seed in range(5 * part, 5 * part + 5):
        problem = paired_problem(seed)
        for layout in every_layout(problem):
            for partition in partitions(problem, len(layout.stage_ranks)):
                step = step_time(problem, layout, partition)
                if step is None:
                    continue
                cuts = cuts_along(problem.graph, partition)
                bounds = objective_of(problem).of_layout(problem, layout, cuts)
                for at, bound in enumerate(bounds.stages):
                    least = max(float(bound[at, at + 1]), bounds.whole)
                    assert least <= step * (1 + TOLERANCE), (seed, layout, partition)
                compared += 1
    assert compared > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 200, 14))
def test_the_planner_finds_the_best_of_all_steps_with_pairs_and_proves_it(seed: int):
    problem = paired_problem(1000 + seed)
    expected = best_step_time(problem)
    if expected is None:
        return
    found = searched(problem)
    assert found.best is not None
    value = found.best.prediction.step_time
    assert value == pytest.approx(expected, rel=1e-9)
    assert found.lower_bound <= expected * (1 + TOLERANCE)
    check_bound(problem, found.lower_bound, found.simulated)


def test_a_problem_without_savings_has_backwards_that_are_shorter_by_them():
    problem = paired_problem(3)
    other = without_savings(problem)
    for before, after in zip(problem.graph.layers, other.graph.layers, strict=True):
        saved = pair_saving(before)
        assert before.forward_time == after.forward_time
        assert after.weight_grad_time <= before.weight_grad_time
        assert after.input_grad_time <= before.input_grad_time
        backward = before.input_grad_time + before.weight_grad_time
        left = after.input_grad_time + after.weight_grad_time
        assert left == pytest.approx(backward - saved)
    assert all_cuts(other.graph).totals.pair_saving.max() == 0.0
