"""Objectives: quick bounds, and the layouts and partitions that bounds leave open."""

import dataclasses
import random

import msgspec
import pytest

from autopart.bounds.objectives import BOTTLENECK, STEP, UNEVEN_STEP, objective_of
from autopart.certificate.apart import may_be_faster_apart
from autopart.cost.cuts import all_cuts
from autopart.errors import PlanError
from autopart.pricing import compile_layout, fits, minimised, price, price_paths
from autopart.records.layouts import Layout
from autopart.records.problem import Problem
from tests.support.oracle import every_layout, layout_stages, partitions
from tests.support.problems import random_problem
from tests.support.seeds import seeds


def asking(seed: int, objective: str, *, uneven: bool = False) -> Problem:
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.4, tight=rng.random() < 0.4)
    demands = msgspec.structs.replace(asked.demands, replicas_per_stage=uneven)
    return msgspec.structs.replace(asked, objective=objective, demands=demands)


def test_each_problem_has_its_objective():
    assert objective_of(asking(0, "step")) is STEP
    assert objective_of(asking(0, "bottleneck")) is BOTTLENECK
    assert objective_of(asking(0, "step", uneven=True)) is UNEVEN_STEP


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("objective", ["step", "bottleneck"])
@pytest.mark.parametrize("seed", seeds(5, 40))
def test_every_plan_below_a_value_lies_in_an_open_layout_on_an_open_path(
    objective: str, uneven: bool, seed: int
):
    asked = asking(seed, objective, uneven=uneven and objective == "step")
    found, cuts = objective_of(asked), all_cuts(asked.graph)
    plans = [
        (layout, minimised(asked, decision.prediction, layout.stage_ranks))
        for layout in every_layout(asked)
        for partition in partitions(asked, layout_stages(layout))
        if fits(asked, decision := price(asked, layout, partition))
    ]
    if not plans:
        return
    values = sorted(value for _, value in plans)
    value = values[len(values) // 2] * (1 + 1e-9)
    # An open layout stands for all assignments of its ranks that are no faster.
    least: dict[object, float] = {}
    for layout in found.open_layouts(asked, cuts, value, may_be_faster_apart):
        of_layout = found.of_layout(asked, layout, cuts)
        paths = list(of_layout.paths_below(value))
        program = compile_layout(layout)
        steps = price_paths(asked, layout, program, cuts, paths) if paths else []
        least[_kind(layout)] = min([*steps, least.get(_kind(layout), float("inf"))])
    for layout, own in plans:
        if own < value * (1 - 1e-9):
            assert _kind(layout) in least
            if not found.attained:
                assert least[_kind(layout)] <= own * (1 + 1e-9)


def _kind(layout: Layout) -> object:
    """The schedule, and the replicas for each stage."""
    return layout.schedule, tuple(map(len, layout.stage_ranks))


@pytest.mark.parametrize(
    ("objective", "uneven", "message"),
    [
        ("step", False, "with 2 stages and 1 replica only"),
        ("bottleneck", False, "with 2 stages and 1 replica only"),
        ("step", True, "only .* s is proven"),
    ],
)
def test_an_incomplete_list_of_cuts_cannot_give_open_partitions(
    objective: str, uneven: bool, message: str
):
    asked = asking(6, objective, uneven=uneven)
    cuts = dataclasses.replace(all_cuts(asked.graph), complete=False)
    with pytest.raises(PlanError, match=message):
        list(objective_of(asked).open_layouts(asked, cuts, 1e9, may_be_faster_apart))
