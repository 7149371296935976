"""Recompute and offload policies for each layer, against trying everything."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from autopart.activations.chooser import Beside, best_point
from autopart.activations.frontier import FIRST_POINTS, Growth, frontier, most_points
from autopart.activations.points import Points
from autopart.activations.policies import (
    StagePolicies,
    policies_of_bits,
    possible_policies,
)
from autopart.activations.stage_layers import StageLayers
from autopart.cost.cuts import all_cuts
from autopart.cost.links import stash_copies
from autopart.cost.memory_limits import Limits
from autopart.errors import InfeasibleError
from autopart.pricing import most_bytes
from autopart.records.cluster import HostLink
from autopart.records.layer_graph import Layer, LayerGraph, Recompute
from autopart.records.problem import Demands, Problem
from tests.support.problems import (
    chain_graph,
    gradients_there,
    layer,
    random_problem,
    tied_sums_made,
    value,
)
from tests.support.searches import searched
from tests.support.seeds import seeds

FOREVER = float("inf")
RECOMPUTE = Demands(recompute="auto")
EVERYTHING = Demands(recompute="auto", offload="auto")


def with_recompute_costs(rng: random.Random, graph: LayerGraph, alike: bool = False) -> LayerGraph:
    """The graph with recompute costs for some layers; with `alike`, all layers are identical."""
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
    """A host link that copies a layer's stash in about the layer's forward time."""
    sizes, times = [la.stash_bytes for la in graph.layers], [la.forward_time for la in graph.layers]
    pace = (sum(sizes) + 1) / (sum(times) + 0.1)
    return HostLink(
        bandwidth=pace * rng.choice([0.3, 1.0, 3.0]),
        latency=rng.choice([0.0, 0.1]),
        overlaps=rng.random() < 0.7,
    )


def drawn(seed: int, most_layers: int = 6, demands: Demands = RECOMPUTE) -> Problem:
    """A small problem where activation policies often decide whether a stage fits."""
    rng = random.Random(seed)
    while True:
        asked = random_problem(rng, branching=seed % 3 > 0, tight=True)
        if len(asked.graph.layers) <= most_layers:
            break
    graph = with_recompute_costs(rng, asked.graph, alike=seed % 5 == 0)
    roomy = msgspec.structs.replace(
        asked.cluster,
        memory_bytes=1 << 40,
        host_link=some_host(rng, graph),
        host_memory_bytes=None if seed % 2 else rng.randrange(2000),
    )
    asked = msgspec.structs.replace(asked, graph=graph, cluster=roomy, demands=demands)
    try:
        found = searched(asked, seconds=FOREVER).best
    except InfeasibleError:
        return asked
    assert found is not None
    limit = int(most_bytes(found) * rng.uniform(0.7, 1.05))
    return msgspec.structs.replace(
        asked, cluster=msgspec.structs.replace(roomy, memory_bytes=limit)
    )


def every_choice_on(
    graph: LayerGraph, members: Sequence[int], demands: Demands
) -> Iterator[StagePolicies]:
    """All policies for the layers of a stage that `auto` leaves open."""
    open_policies = {"keep"}
    open_policies |= {"recompute", "selective"} if demands.recompute == "auto" else set()
    open_policies |= {"offload"} if demands.offload == "auto" else set()
    able = [
        [policy for policy in possible_policies(graph.layers[at]) if policy in open_policies]
        for at in members
    ]
    for chosen in itertools.product(*able):
        yield StagePolicies(
            *(
                tuple(at for at, own in zip(members, chosen, strict=True) if own == policy)
                for policy in ("recompute", "selective", "offload")
            )
        )


class ByHand(NamedTuple):
    """Seconds and bytes of a stage under its policies, from their definition."""

    forward: float
    backward: float
    freed: int
    room: int
    hosted: int


def by_hand(
    graph: LayerGraph, members: Sequence[int], policies: StagePolicies, host: HostLink | None
) -> ByHand:
    """One forward and one backward, layer by layer, with a clock."""
    names = {graph.layers[at].name for at in members}
    again = {at: graph.layers[at].recompute for at in policies.recompute}
    again |= {at: graph.layers[at].selective for at in policies.selective}
    freed, hosted, before = 0, 0, 0
    rooms, kept, there = list[int](), list[int](), gradients_there(graph, members)
    for at in members:
        la = graph.layers[at]
        back, stays = 0, 0
        if policy := again.get(at):
            back = la.stash_bytes - policy.stash_bytes
            freed += back
            for v in graph.values:
                if la.name in v.consumers and v.producer in names and names.isdisjoint(v.kept_by):
                    stays += v.bytes
            freed -= stays
        if at in policies.offload:
            back = la.stash_bytes
            freed, hosted = freed + back, hosted + back
        work = la.workspace_bytes
        if la.backward_workspace_bytes is not None:
            beside = there[at] + tied_sums_made(graph, members, at)
            work = max(work, la.backward_workspace_bytes + beside)
            if at in again:
                sent = sum(
                    v.bytes
                    for v in graph.values
                    if v.producer == la.name in v.kept_by and not names.issuperset(v.consumers)
                )
                most = max(la.workspace_bytes, la.backward_workspace_bytes)
                work = most + beside + sent
        rooms.append(work + back + before)
        kept.append(la.stash_bytes - back + stays)
        before = back if at in policies.offload else before
        for tied in graph.tied:
            if la.name in tied.layers and any(
                graph.layers[u].name in tied.layers for u in members if u < at
            ):
                kept[-1] -= tied.grad_bytes
    room = max(own - sum(kept[place + 1 :]) for place, own in enumerate(rooms))
    forward, backward = clocks(graph, members, policies, again, host)
    return ByHand(forward, backward, freed, room, hosted)


def clocks(
    graph: LayerGraph,
    members: Sequence[int],
    policies: StagePolicies,
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
        if at in policies.offload:
            out = max(clock, out) + copy_time(at)
            clock = max(clock, out - copy_time(at)) if overlaps else out
    forward = max(clock, out)
    to_come = [at for at in reversed(members) if at in policies.offload]
    clock, there = 0.0, {at: copy_time(at) for at in to_come[:1]}
    for at in reversed(members):
        la = graph.layers[at]
        if at in policies.offload:
            clock = max(clock, there[at]) if overlaps else clock + copy_time(at)
            to_come.remove(at)
            there |= {later: clock + copy_time(later) for later in to_come[:1]}
        clock += la.input_grad_time + la.weight_grad_time
        clock += policy.extra_time if (policy := again.get(at)) else 0.0
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
    layers = StageLayers(graph, demands, stash_copies(host, 1.0))
    along = tuple(layers.in_stage(at, inside) for at in members)
    return frontier(Growth(**growth), along, with_policies=True)


def keeps_no_less(graph: LayerGraph, members: list[int], policies: StagePolicies) -> bool:
    """Whether any layer frees nothing when it alone is recomputed."""
    alone = [StagePolicies(recompute=(at,)) for at in policies.recompute]
    alone += [StagePolicies(selective=(at,)) for at in policies.selective]
    return any(by_hand(graph, members, one, None).freed <= 0 for one in alone)


@pytest.mark.slow
@pytest.mark.parametrize("demands", [RECOMPUTE, EVERYTHING])
@pytest.mark.parametrize("block", seeds(5, 20))
def test_the_frontier_dominates_every_choice_and_each_point_is_a_choice(
    block: int, demands: Demands
) -> None:
    for seed in range(10 * block, 10 * block + 10):
        rng, graph = random.Random(seed), drawn(seed, 5).graph
        host = some_host(rng, graph)
        cuts = all_cuts(graph)
        i, j = rng.choice(np.argwhere(cuts.nested).tolist())
        members = np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i]).tolist()
        hosted, apart = rng.random() < 0.5, rng.random() < 0.5
        found = frontier_of(graph, members, demands, host, hosted=hosted, apart=apart)
        plain = by_hand(graph, members, StagePolicies(), host)
        tried = [
            by_hand(graph, members, policies, host)
            for policies in every_choice_on(graph, members, demands)
        ]
        columns = (found.extra_time, found.freed_bytes, found.workspace_bytes, found.host_bytes)
        points = list(zip(*columns, strict=True))
        waits = found.forward_wait.tolist()
        for one, policies in zip(tried, every_choice_on(graph, members, demands), strict=True):
            forward, backward = one.forward - plain.forward, one.backward - plain.backward
            busy = forward + backward
            # The frontier never recomputes a layer that keeps at least the bytes that it frees.
            # The layer raises stage memory even if it shrinks the workspace: the workspace falls
            # by at most the bytes kept, and one microbatch or more is in flight.
            useless = keeps_no_less(graph, members, policies)
            assert any(
                x <= busy + 1e-9
                and f >= one.freed
                and (f - w >= one.freed - one.room if useless else w <= one.room)
                and (not hosted or h <= one.hosted)
                and (not apart or (wait <= forward + 1e-9 and x - wait <= backward + 1e-9))
                for (x, f, w, h), wait in zip(points, waits, strict=True)
            ), (seed, one)
        assert found.chosen is not None
        for point, wait, chosen in zip(points, found.forward_wait, found.chosen, strict=True):
            own = by_hand(graph, members, policies_of_bits(members, chosen), host)
            assert point[1:] == (own.freed, own.room, own.hosted), seed
            assert wait == pytest.approx(own.forward - plain.forward, abs=1e-9)
            busy = own.forward + own.backward - plain.forward - plain.backward
            assert point[0] == pytest.approx(busy, abs=1e-9)


def quarters(rng: random.Random, number: int) -> LayerGraph:
    """Layers with times in quarter seconds, so that sums are exact and often equal."""

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
def test_equal_seconds_are_decided_by_fewer_offloaded_bytes_then_fewer_changed_layers(
    block: int,
) -> None:
    for seed in range(10 * block, 10 * block + 10):
        rng = random.Random(seed)
        graph, in_flight = quarters(rng, rng.randint(2, 4)), rng.choice([1, 2, 5])
        members = range(len(graph.layers))
        host = HostLink(bandwidth=rng.choice([4.0, 8.0]), latency=0.0, overlaps=rng.random() < 0.8)
        points = frontier_of(graph, members, EVERYTHING, host)
        assert points.chosen is not None
        tried: dict[int, tuple[float, int, int]] = {}
        for policies in every_choice_on(graph, members, EVERYTHING):
            own = by_hand(graph, members, policies, host)
            needed = own.room - in_flight * own.freed
            costs = (own.forward + own.backward, own.hosted, sum(map(len, policies[:3])))
            tried[needed] = min(costs, tried.get(needed, costs))
        beside = Beside((0,), (in_flight,), (False,))
        for limit in tried:
            best = min(costs for needed, costs in tried.items() if needed <= limit)
            chosen = points.chosen[best_point(points, beside, Limits(in_flight, limit, None))]
            policies = policies_of_bits(members, chosen)
            own = by_hand(graph, members, policies, host)
            found = (own.forward + own.backward, own.hosted, sum(map(len, policies[:3])))
            assert found == best, (seed, limit)


@pytest.mark.parametrize("seed", range(20))
def test_a_frontier_without_seconds_reaches_the_same_least_bytes(seed: int) -> None:
    rng, graph = random.Random(seed), drawn(seed).graph
    host, members = some_host(rng, graph), range(len(graph.layers))
    timed = frontier_of(graph, members, EVERYTHING, host)
    alone = frontier_of(graph, members, EVERYTHING, host, timed=False)
    for in_flight in (1, 2, 7):
        least = [
            (own.workspace_bytes - in_flight * own.freed_bytes).min() for own in (timed, alone)
        ]
        assert least[0] == least[1]
    assert len(alone.extra_time) <= len(timed.extra_time)


def test_for_identical_layers_only_the_number_recomputed_matters() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=0)
    blocks = [layer(f"h{i}", stash_bytes=10, recompute=again) for i in range(100)]
    graph = chain_graph(*blocks)
    points = frontier_of(graph, range(100), RECOMPUTE)
    # No layer keeps the values: if recomputed, each layer except the first must keep its input.
    assert points.freed_bytes.tolist() == [0, *(10 + 2 * n for n in range(100))]
    kept = msgspec.structs.replace(
        graph,
        values=tuple(msgspec.structs.replace(v, kept_by=(v.consumers[0],)) for v in graph.values),
    )
    points = frontier_of(kept, range(100), RECOMPUTE)
    assert points.freed_bytes.tolist() == [10 * n for n in range(101)]


def test_a_frontier_with_too_many_points_keeps_both_ends() -> None:
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


def test_a_recomputed_layer_keeps_no_second_copy_of_a_stored_input() -> None:
    """Layer b passes on the storage of its input from a; the backward of c needs it."""
    again = Recompute(extra_time=1.0, stash_bytes=0)
    layers = (layer("a"), layer("b"), layer("c", stash_bytes=50, recompute=again))
    made = msgspec.structs.replace(value("a", "b"), kept_by=("c",))
    handed_on = value("b", "c")
    freed: list[int] = []
    for part_of in (None, made.name):
        own = msgspec.structs.replace(handed_on, part_of=part_of)
        graph = LayerGraph(layers=layers, values=(made, own))
        step = StageLayers(graph, RECOMPUTE, None).in_stage(2, [True] * 3)
        freed += [policy.freed_bytes for policy in step.policies if policy.name == "recompute"]
    assert freed == [50 - 8, 50]


def test_fewer_points_are_followed_where_first_backwards_count() -> None:
    # Seconds rise with freed bytes, so no point dominates another.
    freed = np.arange(2000)
    columns = dict.fromkeys(Points._fields, np.zeros(2000))
    points = Points(**(columns | {"extra_time": freed / 1e9, "freed_bytes": freed, "chosen": None}))
    assert len(Growth(most_points=4096).undominated(points).freed_bytes) == 2000
    kept = Growth(most_points=4096, first=True).undominated(points).freed_bytes
    assert len(kept) == FIRST_POINTS
    assert {0, 1999} <= set(kept.tolist())
