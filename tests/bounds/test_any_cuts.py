import itertools
import random

import msgspec
import numpy as np
import pytest

from autopart import solve, verify
from autopart.bounds.any_cuts import class_bounds
from autopart.bounds.objectives import bottleneck_bounds, objective_of
from autopart.bounds.of_layout import layout_bounds
from autopart.certificate.apart import may_be_faster_apart
from autopart.cost.cut_classes import class_cuts
from autopart.cost.cuts import MOST_CUTS, all_cuts, partition_of
from autopart.errors import PlanError
from autopart.pricing import fits, minimised, price
from autopart.records.layer_graph import LayerGraph, Recompute
from autopart.records.layouts import layouts, shapes
from autopart.records.problem import Demands, Pin, Problem
from autopart.schedules.catalogue import KINDS
from tests.support.class_paths import class_of, few_classes
from tests.support.oracle import layout_stages, partitions
from tests.support.problems import cluster, layer, profile, random_problem, value
from tests.support.seeds import seeds


def demanding(rng: random.Random, asked: Problem, num_stages: int) -> Problem:
    """The problem with random demands: pins, groups, schedules and policies."""
    names = [la.name for la in asked.graph.layers]
    kind = rng.randrange(5)
    some = tuple(rng.sample(names, min(2, len(names))))
    others = list(KINDS)
    demands = {
        0: Demands(),
        1: Demands(pins=(Pin(layer=rng.choice(names), stage=rng.randrange(num_stages)),)),
        2: Demands(same_stage=(some,)) if rng.random() < 0.5 else Demands(different_stage=(some,)),
        3: Demands(schedules=tuple(sorted({"1f1b", rng.choice(others)}))),
        4: Demands(recompute="auto"),
    }[kind]
    if kind == 4:
        again = Recompute(extra_time=0.5, stash_bytes=0)
        redone = [
            msgspec.structs.replace(la, recompute=again if la.stash_bytes else None)
            for la in asked.graph.layers
        ]
        graph = msgspec.structs.replace(asked.graph, layers=tuple(redone))
        asked = msgspec.structs.replace(asked, graph=graph)
    return msgspec.structs.replace(asked, demands=demands)


@pytest.mark.parametrize("seed", seeds(60, 500))
def test_no_partition_beats_the_bounds_over_classes_of_its_cuts(seed: int):
    rng = random.Random(70_000 + seed)
    asked = random_problem(rng, branching=True, tight=rng.random() < 0.5)
    shape = rng.choice(shapes(asked))
    asked = demanding(rng, asked, shape[0])
    cuts = all_cuts(asked.graph)
    place = {tuple(row): at for at, row in enumerate(cuts.ahead.tolist())}
    with few_classes(rng.randint(2, 8)):
        for layout, of_layout in itertools.product(
            layouts(asked, *shape)[:4], (layout_bounds, bottleneck_bounds)
        ):
            found = class_bounds(asked, layout, of_layout)
            exact = of_layout(asked, layout, cuts)
            for partition in partitions(asked, layout_stages(layout)) if found else ():
                assert found is not None
                ahead = [
                    np.isin(np.arange(len(cuts.ahead[0])), sum(partition[:s], ()))
                    for s in range(len(partition) + 1)
                ]
                path = [place[tuple(row.tolist())] for row in ahead]
                own = max(b[i, j] for b, i, j in zip(exact.stages, path, path[1:], strict=False))
                decision = price(asked, layout, partition)
                if own == np.inf or not fits(asked, decision):
                    continue
                # Step 1: the classes of the partition's cuts bound each of its stages.
                bounds, classes = found
                path = [class_of(classes, row) for row in ahead]
                over = max(b[i, j] for b, i, j in zip(bounds.stages, path, path[1:], strict=False))
                assert over <= own * (1 + 1e-9)
                # Step 2: and its value.
                objective = "step" if of_layout is layout_bounds else "bottleneck"
                given = msgspec.structs.replace(asked, objective=objective)
                seconds = minimised(given, decision.prediction, layout.stage_ranks)
                assert max(over, bounds.whole) <= seconds * (1 + 1e-9)


def fan(branches: int, length: int) -> LayerGraph:
    """A layer, then branches side by side, then a layer: (length + 1) ** branches + 2 cuts."""
    rng = random.Random(branches)
    names = [[f"b{b}.{i}" for i in range(length)] for b in range(branches)]
    inner = [
        layer(name, forward_time=rng.uniform(0.5, 2), input_grad_time=rng.uniform(0.5, 2))
        for row in zip(*names, strict=True)
        for name in row
    ]
    values = [value("first", *(row[0] for row in names))]
    values += [value(a, b) for row in names for a, b in itertools.pairwise(row)]
    values += [value(row[-1], "last") for row in names]
    return LayerGraph(layers=(layer("first"), *inner, layer("last")), values=tuple(values))


FAN = fan(5, 3)


def test_a_graph_with_too_many_cuts_has_no_gap_where_classes_are_enough():
    plan = solve(profile(FAN), cluster(1, 2), num_microbatches=8, num_stages=2, schedule="1f1b")
    assert not all_cuts(FAN).complete and plan.certificate.gap == 0.0


@pytest.mark.slow
def test_a_graph_with_too_many_cuts_has_a_small_gap_and_its_bound_is_checked():
    given = profile(FAN)
    with few_classes(100):
        plan = solve(given, cluster(1, 2), num_microbatches=8, num_stages=2, schedule="1f1b")
        assert plan.certificate.gap is not None
        assert 0.0 < plan.certificate.gap < 0.03
        assert all(check.passed for check in verify(plan, given))
        # A higher bound is refused.
        higher = plan.certificate.lower_bound * (1 + plan.certificate.gap / 2)
        sizes = tuple(msgspec.structs.replace(size, lower_bound=higher) for size in plan.sizes)
        carried = msgspec.structs.replace(
            plan.certificate, lower_bound=higher, gap=plan.prediction.step_time / higher - 1
        )
        lie = msgspec.structs.replace(plan, sizes=sizes, certificate=carried)
        last = verify(lie, given)[-1]
    assert not last.passed and "only less than" in last.detail


@pytest.mark.slow
def test_no_cut_of_a_graph_with_too_many_is_faster_than_its_bound():
    given = profile(FAN)
    plan = solve(given, cluster(1, 2), num_microbatches=8, num_stages=2, schedule="1f1b")
    asked = Problem(
        graph=FAN, cluster=plan.cluster, microbatch_size=1, num_microbatches=8, demands=plan.demands
    )
    (layout,) = layouts(asked, 2, 1)
    cuts = all_cuts(FAN, 2000)
    assert cuts.complete and len(cuts.ahead) > MOST_CUTS
    last = len(cuts.ahead) - 1
    steps = [
        price(asked, layout, partition_of(cuts, (0, at, last))).prediction.step_time
        for at in range(1, last)
    ]
    assert plan.certificate.lower_bound <= min(steps) * (1 + 1e-9)


def test_demands_that_name_too_many_layers_leave_the_bound_of_the_shape():
    names = [la.name for la in FAN.layers]
    asked = Problem(
        graph=FAN,
        cluster=cluster(1, 2),
        microbatch_size=1,
        num_microbatches=8,
        demands=Demands(same_stage=(tuple(names[1:]),)),
    )
    (layout, *_) = layouts(asked, 2, 1)
    with few_classes(600):
        assert class_cuts(FAN, frozenset(names[1:])) is None
        assert class_bounds(asked, layout, layout_bounds) is None
        found = objective_of(asked)
        with pytest.raises(PlanError, match="with 2 stages"):
            list(found.open_layouts(asked, all_cuts(FAN), 1e9, may_be_faster_apart))
