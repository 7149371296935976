"""The fastest policies of one partition, against simulating every choice."""

import itertools
import math
import random

import numpy as np
import pytest

from autopart.activations.policies import optimizer_places
from autopart.certificate import fastest_choices as module
from autopart.certificate.fastest_choices import fastest_choices
from autopart.cost.cuts import all_cuts
from autopart.pricing import compile_layout, fits, price
from autopart.records.layouts import Layout, Partition
from autopart.records.problem import Demands, Problem
from tests.activations.test_frontier import RECOMPUTE, every_choice_on
from tests.activations.test_shared_ranks import drawn_layout
from tests.support.seeds import seeds


def some_path(
    seed: int, demands: Demands = RECOMPUTE
) -> tuple[Problem, Layout, tuple[int, ...], Partition] | None:
    asked, layout = drawn_layout(seed, demands)
    cuts, stages = all_cuts(asked.graph), len(layout.stage_ranks)
    paths = [
        (0, *inner, len(cuts.nested) - 1)
        for inner in itertools.combinations(range(1, len(cuts.nested) - 1), stages - 1)
    ]
    paths = [p for p in paths if all(cuts.nested[i, j] for i, j in itertools.pairwise(p))]
    if not paths:
        return None
    path = random.Random(seed).choice(paths)
    partition = tuple(
        tuple(np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i]).tolist())
        for i, j in itertools.pairwise(path)
    )
    return asked, layout, path, partition


def fastest_of_all(asked: Problem, layout: Layout, partition: Partition) -> float:
    """The shortest step over every choice of policies and places that fits; infinite where none does."""
    choices = (
        [
            own._replace(optimizer_on_host=place)
            for own in every_choice_on(asked.graph, members, asked.demands)
            for place in optimizer_places(asked.demands)
        ]
        for members in partition
    )
    steps = [
        decision.prediction.step_time
        for policies in itertools.product(*choices)
        if fits(asked, decision := price(asked, layout, partition, given=policies))
    ]
    return min(steps, default=float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 60, slow=12))
def test_the_fastest_choice_equals_trying_all_of_them(seed: int) -> None:
    drawn = some_path(seed)
    if drawn is None:
        return
    asked, layout, path, partition = drawn
    best = fastest_of_all(asked, layout, partition)
    program, cuts = compile_layout(layout), all_cuts(asked.graph)
    (found,) = fastest_choices(asked, layout, program, cuts, [path], float("inf"))
    assert found.step == pytest.approx(best) and found.least == pytest.approx(best)
    if found.policies is not None:
        taken = price(asked, layout, partition, given=found.policies)
        assert fits(asked, taken) and taken.prediction.step_time == pytest.approx(best)
    # Below a smaller value nothing needs to be found.
    (asked_less,) = fastest_choices(asked, layout, program, cuts, [path], 0.9 * best)
    assert asked_less.least >= 0.9 * best


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 120, slow=8))
def test_the_fastest_choice_with_bytes_on_the_host_equals_trying_all_of_them(seed: int) -> None:
    rng = random.Random(seed)
    demands = Demands(
        recompute=rng.choice(["never", "auto"]),
        offload=rng.choice(["auto", "auto", "never"]),
        offload_optimizer=rng.choice(["never", "auto", "always"]),
    )
    drawn = some_path(seed, demands)
    if drawn is None:
        return
    asked, layout, path, partition = drawn
    every = [len(list(every_choice_on(asked.graph, own, asked.demands))) for own in partition]
    if math.prod(every) * len(optimizer_places(demands)) ** len(every) > 300:
        return
    best = fastest_of_all(asked, layout, partition)
    program, cuts = compile_layout(layout), all_cuts(asked.graph)
    (found,) = fastest_choices(asked, layout, program, cuts, [path], float("inf"))
    assert found.step == pytest.approx(best) and found.least == pytest.approx(best)
    if found.policies is not None:
        taken = price(asked, layout, partition, given=found.policies)
        assert fits(asked, taken) and taken.prediction.step_time == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds(0, 30, slow=6))
def test_a_tree_that_ends_early_leaves_a_bound(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = some_path(seed)
    if drawn is None:
        return
    asked, layout, path, partition = drawn
    best = fastest_of_all(asked, layout, partition)
    monkeypatch.setattr(module, "MOST_NODES", 1)
    program = compile_layout(layout)
    (found,) = fastest_choices(asked, layout, program, all_cuts(asked.graph), [path], float("inf"))
    assert found.least <= best * (1 + 1e-9)
    assert found.step >= best * (1 - 1e-9)
