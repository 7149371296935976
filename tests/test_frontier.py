"""Recomputation and offload chosen layer by layer, against trying everything."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from autopart.cluster import HostLink, host_share
from autopart.cost import best_ways, host_way, predict
from autopart.cuts import all_cuts
from autopart.errors import InfeasibleError
from autopart.frontier import Growth, Limits, Points, best_point, frontier, most_points
from autopart.graph import Layer, LayerGraph, Recompute
from autopart.layouts import Layout, layouts, shapes
from autopart.plan import StagePrediction
from autopart.pricing import compile_layout, fits, most_bytes, price, price_paths
from autopart.problem import Demands, Problem
from autopart.search import search
from autopart.stage_load import Partition
from autopart.treated import least_loads, treated
from autopart.ways import StageWays, Steps, able_ways, demands_for, ways_of_bits
from tests.oracle import every_layout, layout_stages, partitions
from tests.problems import chain_graph, gradients_there, layer, problem, random_problem, value
from tests.seeds import seeds

FOREVER = float("inf")
RECOMPUTE = Demands(recompute="auto")
EVERYTHING = Demands(recompute="auto", offload="auto")


def treatable(rng: random.Random, graph: LayerGraph, alike: bool = False) -> LayerGraph:
    """The graph with what recomputing some of its layers would cost; all layers alike if wanted."""
    layers = [graph.layers[0]] * len(graph.layers) if alike else graph.layers
    again = Recompute(extra_time=1.0, stash_bytes=0)

    def changed(la: Layer, name: str) -> Layer:
        stash = 5 * la.stash_bytes + 5
        whole = [
            None,
            Recompute(extra_time=la.forward_time, stash_bytes=0),
            Recompute(extra_time=rng.uniform(0, 2), stash_bytes=rng.randrange(5)),
        ]
        part = [None, Recompute(extra_time=rng.uniform(0, 0.5), stash_bytes=rng.randrange(stash))]
        return msgspec.structs.replace(
            la,
            name=name,
            stash_bytes=stash,
            recompute=again if alike else rng.choice(whole),
            selective=None if alike else rng.choice(part),
        )

    found = tuple(changed(la, own.name) for la, own in zip(layers, graph.layers, strict=True))
    return msgspec.structs.replace(graph, layers=found)


def some_host(rng: random.Random, graph: LayerGraph) -> HostLink:
    """A link that carries a layer's stash in about the time of a layer."""
    sizes, times = [la.stash_bytes for la in graph.layers], [la.forward_time for la in graph.layers]
    pace = (sum(sizes) + 1) / (sum(times) + 0.1)
    return HostLink(
        bandwidth=pace * rng.choice([0.3, 1.0, 3.0]),
        latency=rng.choice([0.0, 0.1]),
        overlaps=rng.random() < 0.7,
    )


def drawn(seed: int, most_layers: int = 6, demands: Demands = RECOMPUTE) -> Problem:
    """A small problem in which the ways of layers often decide whether a stage fits."""
    rng = random.Random(seed)
    while True:
        asked = random_problem(rng, branching=seed % 3 > 0, tight=True)
        if len(asked.graph.layers) <= most_layers:
            break
    graph = treatable(rng, asked.graph, alike=seed % 5 == 0)
    roomy = msgspec.structs.replace(
        asked.cluster,
        memory_bytes=1 << 40,
        host_link=some_host(rng, graph),
        host_memory_bytes=None if seed % 2 else rng.randrange(2000),
    )
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


def every_way(graph: LayerGraph, members: Sequence[int], demands: Demands) -> Iterator[StageWays]:
    """All ways of the layers of a stage that `auto` leaves open."""
    open_ways = {"keep"}
    open_ways |= {"recompute", "selective"} if demands.recompute == "auto" else set()
    open_ways |= {"offload"} if demands.offload == "auto" else set()
    able = [[way for way in able_ways(graph.layers[at]) if way in open_ways] for at in members]
    for chosen in itertools.product(*able):
        yield StageWays(
            *(
                tuple(at for at, own in zip(members, chosen, strict=True) if own == way)
                for way in ("recompute", "selective", "offload")
            )
        )


class ByHand(NamedTuple):
    """What the ways of a stage's layers change, from their definition."""

    forward: float
    backward: float
    freed: int
    room: int
    hosted: int


def by_hand(
    graph: LayerGraph, members: Sequence[int], ways: StageWays, host: HostLink | None
) -> ByHand:
    """A forward and a backward worked off layer by layer, with a clock."""
    names = {graph.layers[at].name for at in members}
    again = {at: graph.layers[at].recompute for at in ways.recompute}
    again |= {at: graph.layers[at].selective for at in ways.selective}
    freed, hosted, before = 0, 0, 0
    rooms, kept, there = list[int](), list[int](), gradients_there(graph, members)
    for at in members:
        la = graph.layers[at]
        back, stays = 0, 0
        if way := again.get(at):
            back = la.stash_bytes - way.stash_bytes
            freed += back
            for v in graph.values:
                if la.name in v.consumers and v.producer in names and not v.kept_by:
                    stays += v.bytes
            freed -= stays
        if at in ways.offload:
            back = la.stash_bytes
            freed, hosted = freed + back, hosted + back
        work = la.workspace_bytes
        if la.backward_workspace_bytes is not None:
            work = max(work, la.backward_workspace_bytes + there[at])
            if at in again:
                sent = sum(
                    v.bytes
                    for v in graph.values
                    if v.producer == la.name in v.kept_by and not names.issuperset(v.consumers)
                )
                most = max(la.workspace_bytes, la.backward_workspace_bytes)
                work = most + there[at] + sent
        rooms.append(work + back + before)
        kept.append(la.stash_bytes - back + stays)
        before = back if at in ways.offload else before
        for tied in graph.tied:
            if la.name in tied.layers and any(
                graph.layers[u].name in tied.layers for u in members if u < at
            ):
                kept[-1] -= tied.grad_bytes
    room = max(own - sum(kept[place + 1 :]) for place, own in enumerate(rooms))
    forward, backward = clocks(graph, members, ways, again, host)
    return ByHand(forward, backward, freed, room, hosted)


def clocks(
    graph: LayerGraph,
    members: Sequence[int],
    ways: StageWays,
    again: dict[int, Recompute | None],
    host: HostLink | None,
) -> tuple[float, float]:
    def copy_time(at: int) -> float:
        assert host is not None
        return host.latency + graph.layers[at].stash_bytes / host.bandwidth

    overlaps = host is not None and host.overlaps
    clock, out = 0.0, 0.0
    for at in members:
        clock += graph.layers[at].forward_time
        if at in ways.offload:
            out = max(clock, out) + copy_time(at)
            clock = max(clock, out - copy_time(at)) if overlaps else out
    forward = max(clock, out)
    to_come = [at for at in reversed(members) if at in ways.offload]
    clock, there = 0.0, {at: copy_time(at) for at in to_come[:1]}
    for at in reversed(members):
        la = graph.layers[at]
        if at in ways.offload:
            clock = max(clock, there[at]) if overlaps else clock + copy_time(at)
            to_come.remove(at)
            there |= {later: clock + copy_time(later) for later in to_come[:1]}
        clock += la.input_grad_time + la.weight_grad_time
        clock += way.extra_time if (way := again.get(at)) else 0.0
    return forward, clock


def frontier_of(
    graph: LayerGraph,
    members: Sequence[int],
    demands: Demands,
    host: HostLink | None = None,
    **growth: bool,
) -> Points:
    """The frontier of a stage, with its choices."""
    inside = [at in members for at in range(len(graph.layers))]
    steps = Steps(graph, demands, host_way(host, 1.0))
    along = tuple(steps.step(at, inside) for at in members)
    return frontier(Growth(**growth), along, with_choice=True)


def keeps_no_less(graph: LayerGraph, members: list[int], ways: StageWays) -> bool:
    """Whether any layer, treated alone, frees nothing."""
    alone = [StageWays(recompute=(at,)) for at in ways.recompute]
    alone += [StageWays(selective=(at,)) for at in ways.selective]
    return any(by_hand(graph, members, one, None).freed <= 0 for one in alone)


@pytest.mark.parametrize("demands", [RECOMPUTE, EVERYTHING])
@pytest.mark.parametrize("block", seeds(5, 20))
def test_the_frontier_is_that_of_all_choices(block: int, demands: Demands) -> None:
    for seed in range(10 * block, 10 * block + 10):
        rng, graph = random.Random(seed), drawn(seed, 5).graph
        host = some_host(rng, graph)
        cuts = all_cuts(graph)
        i, j = rng.choice(np.argwhere(cuts.nested).tolist())
        members = np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i]).tolist()
        hosted = rng.random() < 0.5
        found = frontier_of(graph, members, demands, host, hosted=hosted)
        plain = by_hand(graph, members, StageWays(), host)
        tried = [by_hand(graph, members, ways, host) for ways in every_way(graph, members, demands)]
        columns = (found.extra_time, found.freed_bytes, found.workspace_bytes, found.host_bytes)
        points = list(zip(*columns, strict=True))
        for one, ways in zip(tried, every_way(graph, members, demands), strict=True):
            busy = one.forward + one.backward - plain.forward - plain.backward
            # A layer that keeps no less than it gives up is never treated: it leaves less room to those before, by
            # no more than it keeps, so that in all, with one microbatch in flight or more, nothing is won.
            useless = keeps_no_less(graph, members, ways)
            assert any(
                x <= busy + 1e-9
                and f >= one.freed
                and (f - w >= one.freed - one.room if useless else w <= one.room)
                and (not hosted or h <= one.hosted)
                for x, f, w, h in points
            ), (seed, one)
        assert found.chosen is not None
        for point, wait, chosen in zip(points, found.forward_wait, found.chosen, strict=True):
            own = by_hand(graph, members, ways_of_bits(members, chosen), host)
            assert point[1:] == (own.freed, own.room, own.hosted), seed
            assert wait == pytest.approx(own.forward - plain.forward, abs=1e-9)
            busy = own.forward + own.backward - plain.forward - plain.backward
            assert point[0] == pytest.approx(busy, abs=1e-9)


def quarters(rng: random.Random, number: int) -> LayerGraph:
    """Layers whose times are whole quarters of a second, so that seconds are often equal, and exactly so."""

    def again(stash: int) -> Recompute | None:
        return rng.choice(
            [None, Recompute(extra_time=rng.randrange(3) / 4, stash_bytes=rng.randrange(stash))]
        )

    layers: list[Layer] = []
    for at in range(number):
        stash = rng.randrange(1, 8)
        layers.append(
            layer(
                f"l{at}",
                forward_time=rng.randrange(6) / 4,
                input_grad_time=rng.randrange(1, 6) / 4,
                weight_grad_time=rng.randrange(6) / 4,
                stash_bytes=stash,
                workspace_bytes=rng.randrange(4),
                recompute=again(stash),
                selective=again(stash),
            )
        )
    return chain_graph(*layers, num_bytes=rng.randrange(1, 4))


@pytest.mark.parametrize("block", seeds(1, 8))
def test_of_choices_with_equal_seconds_the_one_that_moves_and_treats_least_is_taken(
    block: int,
) -> None:
    for seed in range(10 * block, 10 * block + 10):
        rng = random.Random(seed)
        graph, held = quarters(rng, rng.randint(2, 4)), rng.choice([1, 2, 5])
        members = range(len(graph.layers))
        host = HostLink(bandwidth=rng.choice([4.0, 8.0]), latency=0.0, overlaps=rng.random() < 0.8)
        points = frontier_of(graph, members, EVERYTHING, host)
        assert points.chosen is not None
        tried: dict[int, tuple[float, int, int]] = {}
        for ways in every_way(graph, members, EVERYTHING):
            own = by_hand(graph, members, ways, host)
            needed = own.room - held * own.freed
            costs = (own.forward + own.backward, own.hosted, sum(map(len, ways[:3])))
            tried[needed] = min(costs, tried.get(needed, costs))
        for limit in tried:
            best = min(costs for needed, costs in tried.items() if needed <= limit)
            chosen = points.chosen[best_point(points, 0, Limits(held, limit, None))]
            ways = ways_of_bits(members, chosen)
            own = by_hand(graph, members, ways, host)
            found = (own.forward + own.backward, own.hosted, sum(map(len, ways[:3])))
            assert found == best, (seed, limit)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_alone_reach_as_few_as_with_seconds(seed: int) -> None:
    rng, graph = random.Random(seed), drawn(seed).graph
    host, members = some_host(rng, graph), range(len(graph.layers))
    timed = frontier_of(graph, members, EVERYTHING, host)
    alone = frontier_of(graph, members, EVERYTHING, host, timed=False)
    for held in (1, 2, 7):
        least = [(own.workspace_bytes - held * own.freed_bytes).min() for own in (timed, alone)]
        assert least[0] == least[1]
    assert len(alone.extra_time) <= len(timed.extra_time)


def test_of_identical_layers_only_the_number_matters() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=0)
    blocks = [layer(f"h{i}", stash_bytes=10, recompute=again) for i in range(100)]
    graph = chain_graph(*blocks)
    points = frontier_of(graph, range(100), RECOMPUTE)
    # What is handed on is kept by none: each layer but the first must now keep its input.
    assert points.freed_bytes.tolist() == [0, *(10 + 2 * n for n in range(100))]
    kept = msgspec.structs.replace(
        graph,
        values=tuple(msgspec.structs.replace(v, kept_by=(v.consumers[0],)) for v in graph.values),
    )
    points = frontier_of(kept, range(100), RECOMPUTE)
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
    points = frontier_of(LayerGraph(layers=tuple(layers)), range(40), RECOMPUTE)
    assert len(points.extra_time) <= Growth().most_points == most_points(layers)
    assert most_points(layers[:1] * 40) > most_points(layers)
    assert points.freed_bytes[0] == 0
    assert points.freed_bytes[-1] == sum(la.stash_bytes for la in layers)
    assert (np.diff(points.extra_time) > 0).all()


@pytest.mark.parametrize("demands", [RECOMPUTE, EVERYTHING])
@pytest.mark.parametrize("seed", seeds(15, 60))
def test_matrices_are_the_stages_one_by_one(seed: int, demands: Demands) -> None:
    asked = drawn(seed, demands=demands)
    cuts = all_cuts(asked.graph)
    try:
        layout = random.Random(seed).choice(
            layouts(asked, *random.Random(seed).choice(shapes(asked)))
        )
    except InfeasibleError:
        pytest.skip("no shape")
    for partition in itertools.islice(partitions(asked, layout_stages(layout)), 12):
        decision = price(asked, layout, partition)
        stages = decision.prediction.stages
        ahead: set[int] = set()
        path = [0]
        for members in partition:
            ahead |= set(members)
            row = np.array([at in ahead for at in range(len(asked.graph.layers))])
            path.append(int(np.flatnonzero((cuts.ahead == row).all(axis=1))[0]))
        for stage, (i, j) in enumerate(itertools.pairwise(path)):
            loads = treated(asked, layout, cuts, stage)
            if fits_alone(asked, stages[stage]):
                assert stages[stage].stash_bytes == loads.stash_bytes[i, j]
                assert stages[stage].memory.workspace == loads.workspace_bytes[i, j]
                assert stages[stage].forward_time == pytest.approx(loads.forward_time[i, j])
                assert stages[stage].backward_time == pytest.approx(loads.backward_time[i, j])
                hosted = stages[stage].in_flight * loads.host_bytes[i, j]
                assert stages[stage].memory.host == hosted
            else:
                least = least_loads(asked, layout, cuts, stage)
                held = stages[stage].in_flight
                saved = stages[stage].memory.stash + stages[stage].memory.workspace
                assert saved == held * least.stash_bytes[i, j] + least.workspace_bytes[i, j]
        if fits(asked, decision):
            steps = price_paths(asked, layout, compile_layout(layout), cuts, [path])
            assert steps[0] == pytest.approx(decision.prediction.step_time)


def fits_alone(asked: Problem, stage: StagePrediction) -> bool:
    share = host_share(asked.cluster)
    on_host = share is None or stage.memory.host <= share
    return stage.peak_bytes <= asked.cluster.memory_bytes and on_host


def least_busy(
    asked: Problem, layout: Layout, partition: Partition
) -> tuple[StageWays, ...] | None:
    """For each stage, of all ways that fit, those with the fewest busy seconds; None where none fit."""
    found: list[StageWays] = []
    for stage, members in enumerate(partition):
        tried: list[tuple[float, StageWays]] = []
        for ways in every_way(asked.graph, members, asked.demands):
            others = [StageWays()] * len(partition)
            others[stage] = ways
            predicted = predict(asked, layout, partition, others)[0][stage]
            if fits_alone(asked, predicted):
                tried.append((predicted.busy_time, ways))
        if not tried:
            return None
        found.append(min(tried)[1])
    return tuple(found)


def forced(asked: Problem, ways: Sequence[StageWays]) -> Problem:
    return msgspec.structs.replace(asked, demands=demands_for(asked.graph, ways))


def every_choice(asked: Problem, partition: Partition) -> Iterator[tuple[StageWays, ...]]:
    yield from itertools.product(
        *(every_way(asked.graph, members, asked.demands) for members in partition)
    )


def best_of_everything(asked: Problem) -> float:
    """The smallest step over all layouts, partitions and ways; where waits make two ways incomparable, of
    those with the fewest busy seconds of each stage."""
    least = FOREVER
    for layout in every_layout(asked):
        for partition in partitions(asked, layout_stages(layout)):
            if asked.demands.offload == "auto":
                rule = least_busy(asked, layout, partition)
                choices = [] if rule is None else [rule]
            else:
                choices = every_choice(asked, partition)
            for ways in choices:
                decision = price(forced(asked, ways), layout, partition)
                assert decision.ways == ways
                if fits(asked, decision):
                    least = min(least, decision.prediction.step_time)
    return least


@pytest.mark.parametrize("demands", [RECOMPUTE, EVERYTHING])
@pytest.mark.parametrize("seed", seeds(8, 40))
def test_the_search_is_as_good_as_trying_everything(seed: int, demands: Demands) -> None:
    asked = drawn(seed, most_layers=4, demands=demands)
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


def test_more_memory_is_never_slower_where_nothing_waits() -> None:
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


def test_recomputing_keeps_no_second_time_what_lies_in_a_value_that_stays() -> None:
    """b hands on what it takes from a: the storage that the backward of c needs."""
    again = Recompute(extra_time=1.0, stash_bytes=0)
    layers = (layer("a"), layer("b"), layer("c", stash_bytes=50, recompute=again))
    made = msgspec.structs.replace(value("a", "b"), kept_by=("c",))
    handed_on = value("b", "c")
    freed: list[int] = []
    for part_of in (None, made.name):
        own = msgspec.structs.replace(handed_on, part_of=part_of)
        graph = LayerGraph(layers=layers, values=(made, own))
        step = Steps(graph, RECOMPUTE, None).step(2, [True] * 3)
        freed += [way.freed_bytes for way in step.ways if way.name == "recompute"]
    assert freed == [50 - 8, 50]


def test_always_and_named_layers_are_obeyed() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=0)
    graph = LayerGraph(
        layers=tuple(layer(name, stash_bytes=10, recompute=again) for name in "abc"),
        values=(value("a", "b", kept_by=("b",)), value("b", "c", kept_by=("c",))),
    )
    layout = Layout(schedule="1f1b", stage_ranks=((0,),), num_microbatches=4)

    def chosen(**demands: object) -> Partition:
        asked = problem(graph, demands=Demands(**demands))  # pyright: ignore
        return tuple(ways.recompute for ways in best_ways(asked, layout, ((0, 1, 2),)))

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
        return price(asked, layout, ((0, 1),)).prediction.stages[0]

    kept, recomputed = stage(), stage(recompute="always")
    assert (kept.backward_time, recomputed.backward_time) == (4.0, 5.0)
    assert (kept.stash_bytes, recomputed.stash_bytes) == (138, 42)
    # While a runs again, b has given up its 30.
    assert (kept.memory.workspace, recomputed.memory.workspace) == (9, 7 + 96 - 30)
    assert recomputed.memory.stash == 4 * 42
