"""Bounds at a glance, against the witness that tries every plan, and by hand."""

import math

import msgspec
import pytest

from autopart.bounds.glance import least_at_a_glance, shape_bounds, shapes_without_gpipe
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


def test_a_stage_without_workspace_has_more_room_for_state():
    """One stage fills its GPU with buffers, the other one with workspace: a bound took the workspace from both."""
    layers = [
        layer("state", buffer_bytes=950),
        layer("workspace", workspace_bytes=900, stash_bytes=10),
    ]
    asked = problem(
        chain_graph(*layers, num_bytes=1),
        cluster=cluster(1, 2, memory_bytes=1000),
        demands=Demands(num_stages=2, schedules=("1f1b", "gpipe")),
        num_microbatches=2,
    )
    best = optimum(asked)
    assert best is not None
    assert least_at_a_glance(asked) <= best.value
    assert not shapes_without_gpipe(asked, [(2, 1)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [*range(200, 203), *seeds(3, 8, slow=6)[3:]])
def test_gpipe_fits_on_no_shape_that_a_glance_excludes(kind: str, seed: int) -> None:
    for asked in draw_case(kind, seed).searched:
        if asked.demands.replicas_per_stage:
            continue
        alone = msgspec.structs.replace(asked.demands, schedules=("gpipe",))
        try:
            tried = shapes(msgspec.structs.replace(asked, demands=alone))
        except InfeasibleError:
            continue
        for num_stages, num_replicas in shapes_without_gpipe(asked, tried):
            own = msgspec.structs.replace(alone, num_stages=num_stages, num_replicas=num_replicas)
            assert optimum(msgspec.structs.replace(asked, demands=own)) is None


def test_gpipe_is_excluded_where_all_microbatches_have_no_room():
    layers = [layer(f"l{at}", stash_bytes=100, workspace_bytes=0) for at in range(2)]
    asked = problem(
        chain_graph(*layers, num_bytes=1),
        cluster=cluster(1, 2, memory_bytes=350),
        demands=Demands(num_stages=2, schedules=("1f1b", "gpipe")),
        num_microbatches=4,
    )
    assert shapes_without_gpipe(asked, [(2, 1)]) == {(2, 1)}
    roomy = msgspec.structs.replace(asked, cluster=cluster(1, 2, memory_bytes=450))
    assert not shapes_without_gpipe(roomy, [(2, 1)])


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
