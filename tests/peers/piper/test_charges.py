import random

import numpy as np
import pytest

from autopart.peers.piper.charges import (
    PiperChoice,
    PiperEdge,
    PiperLimits,
    PiperNet,
    PiperNode,
    price,
    topological_order,
)
from autopart.peers.piper.stage_options import stage_options
from tests.support.peers.piper_nets import random_limits, random_net
from tests.support.seeds import seeds


def choice(time, a=0.0, b=0.0, *, weights=0.0, come=None, go=None, name="vanilla"):
    return PiperChoice(name, time, weights, a, b, come or {}, go or {})


LIMITS = PiperLimits(devices=8, memory_bytes=100.0, bandwidth=10.0, microbatches=12)

THREE = PiperNet(
    nodes=(
        PiperNode(0, "a", {1: (choice(6.0, 10, 5, weights=30, go={1: 1.0, 2: 2.0}),)}),
        PiperNode(1, "b", {1: (choice(3.0, 20, 0, come={0: 4.0}, go={2: 0.0}),)}),
        PiperNode(2, "c", {1: (choice(9.0, 1, 1, come={0: 0.5, 1: 0.5}),)}),
    ),
    edges=(PiperEdge(0, 1, 100.0), PiperEdge(0, 2, 50.0), PiperEdge(1, 2, 7.0)),
)


def test_a_stage_pays_for_each_edge_at_its_own_end_and_for_the_sync_once_a_batch():
    alone = price(THREE, LIMITS, [1], width=1, replicas=1, in_flight=2)
    assert alone is not None
    assert alone.time == 3.0 + (2 * (100 + 4) + 2 * (7 + 0)) / 10
    assert alone.memory_bytes == 40
    twice = price(THREE, LIMITS, [0], width=1, replicas=3, in_flight=1)
    assert twice is not None
    moved = 2 * (100 + 1) + 2 * (50 + 2)
    assert twice.time == pytest.approx(
        6 / 3 + moved / 3 / 10 + 4 * (2 / 3) * 30 / 12 / 10, rel=1e-12
    )
    assert price(THREE, LIMITS, [0, 1, 2], 1, 1, 1) == (18.0, 37.0, (0, 0, 0))


def test_a_width_that_some_node_does_not_have_is_no_stage():
    assert price(THREE, LIMITS, [0, 1], width=2, replicas=1, in_flight=1) is None


def saver(time, extra, a, saved_a, extra_b=0.0):
    """A node that may take `extra` seconds to keep fewer bytes in flight and more beside them."""
    second = choice(time + extra, a - saved_a, extra_b, name="recompute")
    return {1: (choice(time, a), second)}


def test_the_cheapest_seconds_for_a_byte_are_spent_first_until_the_stage_fits():
    net = PiperNet(
        (
            PiperNode(0, "dear", saver(1.0, 9.0, 40, 30)),
            PiperNode(1, "cheap", saver(1.0, 1.0, 40, 20)),
            PiperNode(2, "middle", saver(1.0, 2.0, 40, 20)),
        ),
        (),
    )
    roomy = price(net, LIMITS._replace(memory_bytes=120), range(3), 1, 1, in_flight=1)
    assert roomy == (3.0, 120, (0, 0, 0))
    assert price(net, LIMITS, range(3), 1, 1, in_flight=1) == (4.0, 100, (0, 1, 0))
    # 10 bytes more are needed, and the second best saves 20: nothing is changed back.
    tighter = LIMITS._replace(memory_bytes=90)
    assert price(net, tighter, range(3), 1, 1, in_flight=1) == (6.0, 80, (0, 1, 1))
    assert price(net, LIMITS, range(3), 1, 1, in_flight=2) == (15.0, 100, (1, 1, 1))
    assert price(net, LIMITS, range(3), 1, 1, in_flight=3) is None


def test_equal_worth_is_spent_in_the_order_of_the_file():
    net = PiperNet(
        (PiperNode(0, "x", saver(1, 1, 40, 30)), PiperNode(1, "y", saver(1, 1, 40, 30))), ()
    )
    spent = price(net, LIMITS._replace(memory_bytes=60), range(2), 1, 1, in_flight=1)
    assert spent is not None and spent.choices == (1, 0)


def test_a_stage_may_cost_less_with_more_in_flight_and_options_use_it():
    """With one in flight `bulky` is the better bargain, with three `light`, which is enough then."""
    net = PiperNet(
        (
            PiperNode(0, "light", {1: (choice(1, 30), choice(2, 0, 28, name="r"))}),
            PiperNode(1, "bulky", {1: (choice(1, 0, 60), choice(6, 0, 0, name="r"))}),
        ),
        (),
    )
    limits = PiperLimits(devices=3, memory_bytes=89.0, bandwidth=1.0, microbatches=3)
    assert [price(net, limits, [0, 1], 1, 1, y).time for y in (1, 2)] == [7.0, 3.0]  # type: ignore[union-attr]
    downsets = np.array([[False, False], [True, True]])
    options = stage_options(net, limits, downsets, most_time=np.inf)
    one = [
        (b, t)
        for b, t, d in zip(options.behind, options.time, options.replicas, strict=True)
        if d == 1
    ]
    assert min(t for b, t in one if b >= 0) == 3.0


def test_a_topological_order_stays_close_to_the_files():
    net = PiperNet(
        tuple(PiperNode(v, "", {}) for v in range(4)), (PiperEdge(3, 0, 0.0), PiperEdge(1, 2, 0.0))
    )
    assert topological_order(net) == (1, 2, 3, 0)


@pytest.mark.parametrize("seed", seeds(66, 200))
def test_the_options_of_a_stage_are_its_prices(seed):
    """For every stage, replicas, width and number behind: the least price of all y at or above."""
    rng = random.Random(seed)
    net, limits = random_net(rng, rng.randint(1, 5)), random_limits(rng)
    order = topological_order(net)
    downsets = np.zeros((len(order) + 1, len(order)), dtype=bool)
    for size in range(len(order) + 1):
        downsets[size, list(order[:size])] = True
    options = stage_options(net, limits, downsets, most_time=np.inf)
    rows = list(zip(*(column.tolist() for column in options), strict=True))
    most = min(limits.devices, limits.microbatches)
    seen = 0
    for low in range(len(order)):
        for high in range(low + 1, len(order) + 1):
            for d in (d for d in range(1, most + 1) if limits.microbatches % d == 0):
                for t in (t for t in (1, 2, 3) if t * d <= limits.devices):
                    for behind in range(most - d + 1):
                        y = 1 - (-behind // d)
                        stage = order[low:high]
                        prices = [price(net, limits, stage, t, d, z) for z in range(y, most + 1)]
                        least = min((p.time for p in prices if p is not None), default=None)
                        mine = min(
                            (r[5] for r in rows if r[:4] == (low, high, t, d) and r[4] >= behind),
                            default=None,
                        )
                        assert (least is None) == (mine is None)
                        if least is not None:
                            assert mine == pytest.approx(least, rel=1e-12, abs=1e-12)
                            seen += 1
    assert seen or not rows


def test_options_leave_out_stages_that_take_too_long_or_leave_the_rest_too_few_devices():
    net = PiperNet(tuple(PiperNode(v, "", {1: (choice(4.0),)}) for v in range(3)), ())
    downsets = np.tri(4, 3, -1, dtype=bool)
    limits = PiperLimits(devices=3, memory_bytes=1.0, bandwidth=1.0, microbatches=3)
    options = stage_options(net, limits, downsets, most_time=4.0)
    assert {
        (int(a), int(b), int(d)) for a, b, d in zip(*options[:2], options.replicas, strict=True)
    } == {
        (0, 1, 1),
        (1, 2, 1),
        (2, 3, 1),
        (0, 3, 3),
    }
