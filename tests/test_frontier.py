"""Recomputation chosen layer by layer, against trying everything."""

import itertools
import random
from collections.abc import Collection, Iterator

import msgspec
import numpy as np
import pytest

from autopart.cost import best_recompute, predict
from autopart.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.frontier import MOST_POINTS, Frontiers
from autopart.graph import LayerGraph, Recompute
from autopart.layouts import Layout, layouts, shapes
from autopart.pricing import compile_layout, fits, most_bytes, price, price_paths
from autopart.problem import Demands, Problem
from autopart.search import search
from autopart.stage_load import Partition
from autopart.treated import least_loads, treated
from tests.oracle import every_layout, layout_stages, partitions
from tests.problems import chain_graph, layer, problem, random_problem, value
from tests.seeds import seeds

FOREVER = float("inf")
AUTO = Demands(recompute="auto")


def recomputable(rng: random.Random, graph: LayerGraph, alike: bool = False) -> LayerGraph:
    """The graph with what recomputing some of its layers would cost; all layers alike if wanted."""
    layers = [graph.layers[0]] * len(graph.layers) if alike else graph.layers
    again = Recompute(extra_time=1.0, stash_bytes=0)
    changed = tuple(
        msgspec.structs.replace(
            la,
            name=own.name,
            stash_bytes=5 * la.stash_bytes + 5,
            recompute=again
            if alike
            else rng.choice(
                [
                    None,
                    Recompute(extra_time=la.forward_time, stash_bytes=0),
                    Recompute(extra_time=rng.uniform(0, 2), stash_bytes=rng.randrange(5)),
                ]
            ),
        )
        for la, own in zip(layers, graph.layers, strict=True)
    )
    return msgspec.structs.replace(graph, layers=changed)


def drawn(seed: int, most_layers: int = 6, demands: Demands = AUTO) -> Problem:
    """A small problem in which recomputation often decides whether a stage fits."""
    rng = random.Random(seed)
    while True:
        asked = random_problem(rng, branching=seed % 3 > 0, tight=True)
        if len(asked.graph.layers) <= most_layers:
            break
    graph = recomputable(rng, asked.graph, alike=seed % 5 == 0)
    roomy = msgspec.structs.replace(asked.cluster, memory_bytes=1 << 40)
    asked = msgspec.structs.replace(asked, graph=graph, cluster=roomy, demands=demands)
    try:
        found = search(asked, "auto", FOREVER).best
    except InfeasibleError:
        return asked
    assert found is not None
    limit = int(most_bytes(found) * rng.uniform(0.7, 1.05))
    return msgspec.structs.replace(
        asked, cluster=msgspec.structs.replace(roomy, memory_bytes=limit)
    )


def subsets(graph: LayerGraph, members: Collection[int]) -> Iterator[tuple[int, ...]]:
    able = [at for at in sorted(members) if graph.layers[at].recompute]
    for size in range(len(able) + 1):
        yield from itertools.combinations(able, size)


def stash_by_hand(graph: LayerGraph, members: Collection[int], chosen: Collection[int]) -> int:
    """What recomputing `chosen` frees of the stash of a stage, from its definition."""
    names = {graph.layers[at].name for at in members}
    freed = 0
    for at in chosen:
        la = graph.layers[at]
        assert la.recompute is not None
        freed += la.stash_bytes - la.recompute.stash_bytes
        for v in graph.values:
            if la.name in v.consumers and v.producer in names and not v.kept_by:
                freed -= v.bytes
    return freed


@pytest.mark.parametrize("block", seeds(5, 10))
def test_the_frontier_is_that_of_all_subsets(block: int) -> None:
    for seed in range(40 * block, 40 * block + 40):
        rng, graph = random.Random(seed), drawn(seed).graph
        size = rng.randint(1, len(graph.layers))
        members = sorted(rng.sample(range(len(graph.layers)), size))
        found = Frontiers(graph, AUTO).frontier(members)
        tried = []
        for chosen in subsets(graph, members):
            extra = sum(graph.layers[at].recompute.extra_time for at in chosen)  # pyright: ignore
            room = max(
                graph.layers[at].workspace_bytes
                + (
                    graph.layers[at].stash_bytes - graph.layers[at].recompute.stash_bytes  # pyright: ignore
                    if at in chosen
                    else 0
                )
                for at in members
            )
            tried.append((extra, stash_by_hand(graph, members, chosen), room))
        points = list(zip(found.extra_time, found.freed_bytes, found.workspace_bytes, strict=True))
        for extra, freed, room in tried:
            assert any(x <= extra + 1e-9 and f >= freed and w <= room for x, f, w in points), seed
        assert found.chosen is not None
        for point, chosen in zip(points, found.chosen, strict=True):
            at = tuple(p for p in members if chosen >> p & 1)
            assert any(
                abs(point[0] - extra) < 1e-9 and point[1:] == (freed, room)
                for extra, freed, room in tried
            )
            assert point[1] == stash_by_hand(graph, members, at)


def test_of_identical_layers_only_the_number_matters() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=0)
    blocks = [layer(f"h{i}", stash_bytes=10, recompute=again) for i in range(100)]
    graph = chain_graph(*blocks)
    points = Frontiers(graph, AUTO).frontier(range(100))
    # What is handed on is kept by none: each layer but the first must now keep its input.
    assert points.freed_bytes.tolist() == [0, *(10 + 2 * n for n in range(100))]
    kept = msgspec.structs.replace(
        graph,
        values=tuple(msgspec.structs.replace(v, kept_by=(v.consumers[0],)) for v in graph.values),
    )
    points = Frontiers(kept, AUTO).frontier(range(100))
    assert points.freed_bytes.tolist() == [10 * n for n in range(101)]


def test_too_many_different_choices_keep_both_ends() -> None:
    rng = random.Random(0)
    layers = [
        layer(
            f"l{i}",
            stash_bytes=rng.randrange(1, 1 << 30),
            recompute=Recompute(extra_time=rng.uniform(1, 2), stash_bytes=0),
        )
        for i in range(40)
    ]
    points = Frontiers(LayerGraph(layers=tuple(layers)), AUTO).frontier(range(40))
    assert len(points.extra_time) <= MOST_POINTS
    assert points.freed_bytes[0] == 0
    assert points.freed_bytes[-1] == sum(la.stash_bytes for la in layers)
    assert (np.diff(points.extra_time) > 0).all()


@pytest.mark.parametrize("seed", seeds(25, 60))
def test_matrices_are_the_stages_one_by_one(seed: int) -> None:
    asked = drawn(seed)
    cuts = all_cuts(asked.graph)
    try:
        layout = random.Random(seed).choice(
            layouts(asked, *random.Random(seed).choice(shapes(asked)))
        )
    except InfeasibleError:
        pytest.skip("no shape")
    for partition in itertools.islice(partitions(asked, layout_stages(layout)), 12):
        stages, _ = predict(asked, layout, partition)
        ends = np.cumsum([len(members) for members in partition])
        ahead: set[int] = set()
        path = [0]
        for members in partition:
            ahead |= set(members)
            row = np.array([at in ahead for at in range(len(asked.graph.layers))])
            path.append(int(np.flatnonzero((cuts.ahead == row).all(axis=1))[0]))
        assert ends[-1] == len(asked.graph.layers)
        for stage, (i, j) in enumerate(itertools.pairwise(path)):
            loads = treated(asked, layout, cuts, stage)
            assert stages[stage].stash_bytes == loads.stash_bytes[i, j]
            assert stages[stage].memory.workspace == loads.workspace_bytes[i, j]
            assert stages[stage].backward_time == pytest.approx(loads.backward_time[i, j])
            least = least_loads(asked, layout, cuts, stage)
            assert least.backward_time[i, j] >= loads.backward_time[i, j] - 1e-9
        steps = price_paths(asked, layout, compile_layout(layout), cuts, [path])
        assert steps[0] == pytest.approx(price(asked, layout, partition).prediction.step_time)


def every_choice(asked: Problem, layout: Layout, partition: Partition) -> Iterator[Partition]:
    yield from itertools.product(*(subsets(asked.graph, members) for members in partition))


def best_of_everything(asked: Problem) -> float:
    """The smallest step over all layouts, partitions and sets of recomputed layers."""
    least = FOREVER
    for layout in every_layout(asked):
        for partition in partitions(asked, layout_stages(layout)):
            for chosen in every_choice(asked, layout, partition):
                names = tuple(asked.graph.layers[at].name for own in chosen for at in own)
                forced = msgspec.structs.replace(
                    asked, demands=Demands(recompute="never", recompute_layers=names)
                )
                decision = price(forced, layout, partition)
                assert decision.recompute == chosen
                if fits(asked, decision):
                    least = min(least, decision.prediction.step_time)
    return least


@pytest.mark.parametrize("seed", seeds(20, 40))
def test_the_search_is_as_good_as_trying_everything(seed: int) -> None:
    asked = drawn(seed, most_layers=4)
    try:
        shapes(asked)
    except InfeasibleError:
        return
    found, tried = search(asked, "auto", FOREVER), best_of_everything(asked)
    if found.best is None:
        assert tried == FOREVER
        return
    assert found.best.prediction.step_time == pytest.approx(tried)
    assert found.lower_bound <= tried * (1 + 1e-9)
    assert found.lower_bound == pytest.approx(tried)


def test_more_memory_is_never_slower() -> None:
    for seed in range(30):
        asked, before = drawn(seed), FOREVER
        for share in (0.5, 0.7, 0.85, 1.0, 1.3, 2.0, 5.0):
            roomy = msgspec.structs.replace(
                asked.cluster, memory_bytes=int(share * asked.cluster.memory_bytes)
            )
            try:
                found = search(msgspec.structs.replace(asked, cluster=roomy), "auto", FOREVER)
            except InfeasibleError:
                break
            step = found.best.prediction.step_time if found.best else FOREVER
            assert step <= before * (1 + 1e-9)
            before = step


def test_always_and_named_layers_are_obeyed() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=0)
    graph = LayerGraph(
        layers=tuple(layer(name, stash_bytes=10, recompute=again) for name in "abc"),
        values=(value("a", "b", kept_by=("b",)), value("b", "c", kept_by=("c",))),
    )
    layout = Layout(schedule="1f1b", stage_ranks=((0,),), num_microbatches=4)

    def chosen(**demands: object) -> Partition:
        asked = problem(graph, demands=Demands(**demands))  # pyright: ignore
        return best_recompute(asked, layout, ((0, 1, 2),))

    assert chosen() == ((),)
    assert chosen(recompute="auto") == ((),)
    assert chosen(recompute="always") == ((0, 1, 2),)
    assert chosen(recompute="always", keep_layers=("b",)) == ((0, 2),)
    assert chosen(recompute="auto", recompute_layers=("c",)) == ((2,),)
    assert chosen(recompute_layers=("a",)) == ((0,),)


def test_a_recomputed_layer_costs_its_forward_and_its_stash_comes_back_as_workspace() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=4)
    graph = LayerGraph(
        layers=(
            layer("a", stash_bytes=100, workspace_bytes=7, recompute=again),
            layer("b", stash_bytes=30, workspace_bytes=9),
        ),
        values=(value("a", "b", bytes=8, kept_by=("b",)),),
    )
    layout = Layout(schedule="gpipe", stage_ranks=((0,),), num_microbatches=4)

    def stage(**demands: object):
        asked = problem(graph, demands=Demands(**demands))  # pyright: ignore
        return predict(asked, layout, ((0, 1),))[0][0]

    kept, recomputed = stage(), stage(recompute="always")
    assert (kept.backward_time, recomputed.backward_time) == (4.0, 5.0)
    assert (kept.stash_bytes, recomputed.stash_bytes) == (138, 42)
    assert (kept.memory.workspace, recomputed.memory.workspace) == (9, 7 + 96)
    assert recomputed.memory.stash == 4 * 42
