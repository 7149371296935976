import functools
import itertools
import random
from collections.abc import Iterator

import pytest

from autopart.errors import InfeasibleError
from autopart.peers.piper import file as piper
from autopart.peers.piper import solve as stage_widths
from autopart.peers.piper.charges import (
    PiperChoice,
    PiperEdge,
    PiperLimits,
    PiperNet,
    PiperNode,
    price,
)
from tests.support.peers.piper_nets import random_limits, random_net
from tests.support.shared_data import DATA, needs_data, published


def tried(net: PiperNet, limits: PiperLimits, lenient: bool) -> float | None:
    """The best bottleneck over all divisions into stages, with all widths and replicas, from the
    last stage on.

    A stage's time is Piper's for its microbatches in flight; if `lenient`, for any larger number.
    """
    most = min(limits.devices, limits.microbatches)

    @functools.cache
    def time(stage, width, replicas, in_flight):
        numbers = range(in_flight, most + 1) if lenient else [in_flight]
        costs = [price(net, limits, stage, width, replicas, y) for y in numbers]
        return min((cost.time for cost in costs if cost is not None), default=None)

    @functools.cache
    def best(ahead, behind, left):
        found = [] if ahead else [0.0]
        for stage, (width, replicas) in itertools.product(last_parts(net, ahead), degrees(left)):
            if limits.microbatches % replicas == 0 and behind + replicas <= most:
                own = time(stage, width, replicas, 1 - (-behind // replicas))
                rest = best(ahead - stage, behind + replicas, left - width * replicas)
                found += [max(own, rest)] if own is not None and rest is not None else []
        return min(found, default=None)

    return best(frozenset(range(len(net.nodes))), 0, limits.devices)


def last_parts(net: PiperNet, ahead: frozenset[int]) -> Iterator[frozenset[int]]:
    """Every non-empty part of `ahead` that can come last."""
    members = sorted(ahead)
    for mask in range(1, 1 << len(members)):
        part = frozenset(v for at, v in enumerate(members) if mask >> at & 1)
        if all(e.target in part or e.target not in ahead for e in net.edges if e.source in part):
            yield part


def degrees(devices: int) -> list[tuple[int, int]]:
    """Every width and number of replicas on at most so many devices."""
    return [(t, d) for t in range(1, devices + 1) for d in range(1, devices // t + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_the_bottleneck_is_the_best_of_everything(block):
    feasible = 0
    for seed in range(block * 40, block * 40 + 40):
        rng = random.Random(seed)
        net, limits = random_net(rng, rng.randint(1, 4)), random_limits(rng)
        exact, least = tried(net, limits, lenient=False), tried(net, limits, lenient=True)
        try:
            plan = stage_widths.solve(net, limits)
        except InfeasibleError:
            assert exact is None and least is None
            continue
        assert exact is not None and least is not None
        assert least * (1 - 1e-12) <= plan.bottleneck <= exact * (1 + 1e-12)
        assert plan.lower_bound == plan.bottleneck
        check_plan(net, limits, plan)
        feasible += 1
    assert feasible > 20, "many nets fit"


def check_plan(net, limits, plan):
    """Each node once, edges forward, devices kept, and the prices reproduced."""
    stage_of = {v: s for s, stage in enumerate(plan.stages) for v in stage.nodes}
    assert sorted(v for stage in plan.stages for v in stage.nodes) == list(range(len(net.nodes)))
    assert all(stage_of[e.source] <= stage_of[e.target] for e in net.edges)
    assert sum(s.replicas * s.width for s in plan.stages) <= limits.devices
    assert sum(s.replicas for s in plan.stages) <= min(limits.devices, limits.microbatches)
    behind = 0
    for stage in reversed(plan.stages):
        assert limits.microbatches % stage.replicas == 0
        behind += stage.replicas
        assert stage.in_flight == -(-behind // stage.replicas)
        assert stage.price.time <= plan.bottleneck
        rows = [net.nodes[v].choices[stage.width] for v in stage.nodes]
        taken = [row[at] for row, at in zip(rows, stage.price.choices, strict=True)]
        kept = sum(c.stash_bytes * stage.in_flight + c.state_bytes for c in taken)
        assert kept <= limits.memory_bytes * (1 + 1e-12)
    assert max(stage.price.time for stage in plan.stages) == plan.bottleneck


def chain_of_equals(count, width_times, stash=1.0):
    nodes = tuple(
        PiperNode(
            v,
            "layer",
            {
                t: (
                    PiperChoice(
                        "vanilla",
                        time,
                        0.0,
                        stash,
                        0.0,
                        {v - 1: 0.0} if v else {},
                        {v + 1: 0.0} if v < count - 1 else {},
                    ),
                )
                for t, time in width_times.items()
            },
        )
        for v in range(count)
    )
    return PiperNet(nodes, tuple(PiperEdge(v, v + 1, 0.0) for v in range(count - 1)))


def test_fewer_microbatches_than_devices_make_wide_replicas():
    net = chain_of_equals(4, {1: 1.0, 4: 0.25})
    plan = stage_widths.solve(net, PiperLimits(8, 1e9, 1.0, microbatches=2))
    assert plan.bottleneck == 0.5
    assert sum(stage.replicas for stage in plan.stages) <= 2
    alone = stage_widths.solve(net, PiperLimits(8, 1e9, 1.0, microbatches=8))
    assert alone.bottleneck == 0.5


def test_an_error_on_too_little_memory_names_the_least_that_would_do():
    net = chain_of_equals(4, {1: 1.0}, stash=10.0)
    with pytest.raises(InfeasibleError, match=r"fit into 29 bytes each; 30 would do") as caught:
        stage_widths.solve(net, PiperLimits(3, 29.0, 1.0, 12))
    assert caught.value.exit_code == 3
    assert stage_widths.solve(net, PiperLimits(3, 30.0, 1.0, 12)).bottleneck == 1.5


def test_widths_that_need_more_devices_than_there_are_say_so():
    with pytest.raises(InfeasibleError, match="some node has no choice for so few"):
        stage_widths.solve(chain_of_equals(2, {4: 1.0}), PiperLimits(3, 1e9, 1.0, 12))


def test_a_node_without_choices_is_named():
    net = chain_of_equals(2, {1: 1.0})
    net = net._replace(nodes=(net.nodes[0], net.nodes[1]._replace(id=77, choices={})))
    with pytest.raises(InfeasibleError, match=r"node 77 \(layer\) cannot run: it has no choices"):
        stage_widths.solve(net, PiperLimits(3, 1e9, 1.0, 12))


def test_layers_that_take_no_time_have_a_plan():
    assert (
        stage_widths.solve(chain_of_equals(3, {1: 0.0}), PiperLimits(2, 9.0, 1.0, 4)).bottleneck
        == 0.0
    )


def antichain(count):
    return PiperNet(
        tuple(
            PiperNode(v, "", {1: (PiperChoice("vanilla", 1.0 + v, 0, 1, 0, {}, {}),)})
            for v in range(count)
        ),
        (),
    )


@pytest.mark.slow
def test_with_too_many_downsets_one_order_is_cut_and_the_bound_says_so():
    plan = stage_widths.solve(antichain(20), PiperLimits(3, 1e9, 1.0, microbatches=7))
    assert plan.lower_bound == 210 / 3 < plan.bottleneck < 80
    assert plan.infeasible is None


@pytest.mark.slow
def test_with_too_many_stages_one_order_is_cut_and_the_bound_is_the_failed_limit(monkeypatch):
    exact = stage_widths.solve(antichain(11), PiperLimits(3, 1e9, 1.0, microbatches=7))
    monkeypatch.setattr("autopart.peers.piper.nested_pairs.MOST_PAIRS", 100)
    plan = stage_widths.solve(antichain(11), PiperLimits(3, 1e9, 1.0, microbatches=7))
    assert plan.lower_bound <= exact.bottleneck < plan.bottleneck
    check_plan(antichain(11), PiperLimits(3, 1e9, 1.0, microbatches=7), plan)


@pytest.mark.slow
def test_down_sets_of_many_orders_are_all_searched():
    """11 nodes without edges have 2048 downsets: first one order, then all of them within its time."""
    plan = stage_widths.solve(antichain(11), PiperLimits(3, 1e9, 1.0, microbatches=7))
    assert plan.bottleneck == plan.lower_bound == 22.0


@needs_data
@pytest.mark.parametrize("run", published("piper"))
def test_every_published_answer_of_piper_is_reproduced(run):
    net, limits = piper.read(DATA / "piper" / "inputs" / f"{run['input']}.json")
    asked = limits._replace(
        devices=run["maxDevices"],
        microbatches=run["mbsInBatch"],
        memory_bytes=run["maxMemoryPerDevice"],
        bandwidth=run["bandwidth"],
    )
    plan = stage_widths.solve(net, asked)
    assert plan.bottleneck == pytest.approx(run["TPS"], rel=1e-9)
    assert plan.lower_bound == plan.bottleneck
    check_plan(net, asked, plan)
