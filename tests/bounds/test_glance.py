"""Bounds at a glance, against the witness that tries every plan, and by hand."""

import math

import msgspec
import pytest

from autopart.bounds.glance import least_at_a_glance, shape_bounds
from autopart.bounds.of_shape import quick_bounds
from autopart.errors import InfeasibleError
from autopart.records.layer_graph import Recompute
from autopart.records.layouts import shapes
from autopart.records.problem import Demands
from tests.support.problems import chain_graph, cluster, layer, problem
from tests.support.seeds import seeds
from tests.support.witness.cases import draw_case
from tests.support.witness.optimum import optimum

KINDS = (
    "policies", "one node", "policies, any schedule", "sharded state", "period", "mixtures", "other schedules",
    "period, any schedule", "every order", "hidden syncs, any orders", "lent stash", "mirrored",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [*range(100, 103), *seeds(3, 8, slow=6)[3:]])
def test_no_plan_beats_the_bound_at_a_glance(kind: str, seed: int) -> None:
    for asked in draw_case(kind, seed).searched:
        best = optimum(asked)
        bound, any_order = (least_at_a_glance(asked, any_order=own) for own in (False, True))
        if best is not None:
            assert max(bound, any_order) <= best.value * (1 + 1e-9)
        if asked.demands.replicas_per_stage:
            assert bound == any_order == 0.0
        if asked.demands.replicas_per_stage or asked.objective == "bottleneck":
            continue
        try:
            tried = shapes(asked)
        except InfeasibleError:
            continue
        raised, quick = shape_bounds(asked, tried), quick_bounds(asked, tried)
        able = [own for own in raised.values() if own is not None]
        assert bound <= min(able, default=math.inf) * (1 + 1e-9)
        for shape, own in raised.items():
            before = quick[shape]
            assert own is None or (before is not None and own >= before)
        if best is not None:
            assert min(able) <= best.value * (1 + 1e-9)


def test_stash_that_has_no_room_is_recomputed_where_that_is_cheapest():
    """Four layers keep 100 bytes each, and there is room for 250: 150 are freed at 1, 2, 3 or 4 seconds per 100."""
    layers = [
        layer(
            f"l{at}",
            stash_bytes=100,
            param_bytes=0,
            workspace_bytes=0,
            recompute=Recompute(extra_time=1.0 + at, stash_bytes=0),
        )
        for at in range(4)
    ]
    asked = problem(
        chain_graph(*layers),
        cluster=cluster(1, 1, memory_bytes=250),
        demands=Demands(recompute="auto", schedules=("1f1b",)),
        num_microbatches=3,
    )
    work = sum(la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers)
    parts = sum(v.bytes for v in asked.graph.values if v.kept_by)
    assert parts == 0
    assert least_at_a_glance(asked) == pytest.approx(3 * (work + 1 + 2 / 2))
    kept = msgspec.structs.replace(asked.demands, recompute="never")
    assert least_at_a_glance(msgspec.structs.replace(asked, demands=kept)) == math.inf


def test_stages_with_equal_work_attain_the_bound_of_classic_schedules():
    asked = problem(
        chain_graph(*(layer(f"l{at}") for at in range(4))),
        cluster=cluster(1, 4),
        demands=Demands(schedules=("1f1b",), num_replicas=1, num_stages=4),
        num_microbatches=8,
    )
    one = layer("l")
    each = one.forward_time + one.input_grad_time + one.weight_grad_time
    assert least_at_a_glance(asked) == pytest.approx((8 + 4 - 1) * each)
