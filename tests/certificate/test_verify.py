import copy
import json
import math
from collections.abc import Iterator

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.records.cluster import GpuGroup, Link
from autopart.records.files import encode
from autopart.records.layer_graph import Input, LayerGraph, TiedParameter
from autopart.records.microbatch_sizes import scale_profile
from autopart.records.plan import Plan
from autopart.records.problem import Pin
from autopart.records.training import make_training
from autopart.search.planner import solve
from tests.support.problems import cluster, layer, profile, value


def rich_profile():
    """A chain with a skip, an input and a tied parameter; layers differ in their numbers."""
    sizes = {"param_bytes": 400, "grad_bytes": 400, "num_trainable": 100}
    layers = tuple(
        layer(f"l{i}", forward_time=1 + i / 7, stash_bytes=30 + i, workspace_bytes=9 + i, update_time=0.01, **sizes)
        for i in range(7)
    )  # fmt: skip
    values = tuple(value(f"l{i}", f"l{i + 1}", bytes=50 + i) for i in range(6))
    skip = msgspec.structs.replace(value("l1", "l5", bytes=11), name="skip")
    tied = TiedParameter(
        name="w", layers=("l0", "l6"), param_bytes=40, grad_bytes=40, num_trainable=10
    )
    ids = Input(name="ids", consumers=("l0", "l3"), bytes=6)
    graph = LayerGraph(layers=layers, values=(*values, skip), inputs=(ids,), tied=(tied,))
    return profile(graph)


PROFILE = rich_profile()
CLUSTER = cluster(
    2, 2, inter_node=Link(bandwidth=1e3, latency=1e-4), action_overhead=1e-3, reserve_bytes=7
)
PLAN = solve(PROFILE, CLUSTER, num_microbatches=8, num_stages=2, num_replicas=2)


def passed(plan: Plan) -> bool:
    return all(check.passed for check in verify(plan, PROFILE))


def leaves(tree: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    if isinstance(tree, dict):
        for key in tree:
            yield from leaves(tree[key], (*path, key))
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from leaves(item, (*path, index))
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield path


UNTOUCHED = {("cluster", "memory_bytes"), ("cluster", "num_nodes")}
"""The plan stays valid with more memory, or with more nodes than its shape needs."""

NUMBERS = [
    path
    for path in leaves(json.loads(encode(PLAN)))
    if path[0] not in ("version", "origin") and path not in UNTOUCHED
]


def test_a_fresh_plan_passes_every_check():
    checks = verify(PLAN, PROFILE)
    assert [check.name for check in checks] == [
        "orders", "profile", "layers", "edges", "demands", "prediction", "memory", "bound",
    ]  # fmt: skip
    assert passed(PLAN)


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_a_plan_with_one_altered_number_is_refused(path: tuple[object, ...]):
    tree = copy.deepcopy(json.loads(encode(PLAN)))
    spot = tree
    for key in path[:-1]:
        spot = spot[key]  # pyright: ignore
    old = spot[path[-1]]  # pyright: ignore
    spot[path[-1]] = old + 1 if isinstance(old, int) else old * 1.001 + 1e-3  # pyright: ignore
    try:
        plan = msgspec.convert(tree, Plan)
    except msgspec.ValidationError:
        return
    assert not passed(plan)


def test_a_moved_cut_is_refused():
    first, second = PLAN.stages
    moved = (
        msgspec.structs.replace(first, layers=(*first.layers, second.layers[0])),
        msgspec.structs.replace(second, layers=second.layers[1:]),
    )
    checks = verify(msgspec.structs.replace(PLAN, stages=moved), PROFILE)
    assert checks[-1].name == "prediction" and not checks[-1].passed


def test_a_missing_unknown_or_misplaced_layer_is_named():
    first, second = PLAN.stages

    def last_word(*stages: object) -> str:
        return verify(msgspec.structs.replace(PLAN, stages=stages), PROFILE)[-1].detail

    short = msgspec.structs.replace(second, layers=second.layers[1:])
    assert f"no stage has layer '{second.layers[0]}'" in last_word(first, short)
    strange = msgspec.structs.replace(second, layers=(*second.layers, "x"))
    assert "layer 'x', which the profile does not know" in last_word(first, strange)
    swapped = (
        msgspec.structs.replace(first, layers=second.layers),
        msgspec.structs.replace(second, layers=first.layers),
    )
    assert "on the earlier stage 0" in last_word(*swapped)


def test_a_plan_with_a_missing_replica_is_refused():
    first, second = PLAN.stages
    fewer = (msgspec.structs.replace(first, ranks=first.ranks[:1]), second)
    assert not passed(msgspec.structs.replace(PLAN, stages=fewer))


def test_another_profile_is_refused():
    other = msgspec.structs.replace(PROFILE, dtype="bfloat16")
    check = verify(PLAN, other)[-1]
    assert check.name == "profile" and "take the profile that it was solved with" in check.detail


def test_complete_orders_of_another_schedule_are_refused():
    named = msgspec.structs.replace(PLAN, schedule="gpipe" if PLAN.schedule == "1f1b" else "1f1b")
    check = verify(named, PROFILE)[-1]
    assert check.name == "demands" and "the orders are not those of schedule" in check.detail


def test_a_memory_limit_below_the_peak_is_named():
    peak = max(stage.peak_bytes for stage in PLAN.prediction.stages)
    tight = msgspec.structs.replace(CLUSTER, memory_bytes=peak - 1)
    check = verify(msgspec.structs.replace(PLAN, cluster=tight), PROFILE)[-1]
    assert check.name == "memory" and "needs" in check.detail


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "other.py"}, "the plan says model other.py, its profile says test"),
        ({"graph_hash": "1" * 16}, "says graph hash 1111111111111111"),
        ({"method": "measured"}, "says method measured, its profile says imported"),
        ({"solver": "oracle"}, "solver 'oracle', which is unknown"),
    ],
)
def test_an_origin_that_the_profile_contradicts_is_refused(changes: dict[str, str], message: str):
    origin = msgspec.structs.replace(PLAN.origin, **changes)
    check = verify(msgspec.structs.replace(PLAN, origin=origin), PROFILE)[-1]
    assert check.name == "profile" and not check.passed and message in check.detail


def test_another_dtype_is_refused_even_where_the_training_agrees_with_it():
    origin = msgspec.structs.replace(PLAN.origin, dtype="bfloat16")
    training = make_training("bfloat16")
    check = verify(msgspec.structs.replace(PLAN, origin=origin, training=training), PROFILE)[-1]
    assert check.name == "profile" and "says dtype bfloat16" in check.detail
    check = verify(msgspec.structs.replace(PLAN, training=training), PROFILE)[-1]
    assert check.name == "orders" and "precision 'bfloat16-mixed' does not agree" in check.detail


def test_layers_in_another_order_than_the_profile_s_are_refused():
    backwards = [msgspec.structs.replace(s, layers=s.layers[::-1]) for s in PLAN.stages]
    check = verify(msgspec.structs.replace(PLAN, stages=tuple(backwards)), PROFILE)[-1]
    assert check.name == "layers" and "the other way round" in check.detail


def test_a_cluster_that_contradicts_itself_is_refused():
    group = GpuGroup(count=3, name="test", memory_bytes=1 << 40)
    wrong = msgspec.structs.replace(CLUSTER, gpus=(group,))
    check = verify(msgspec.structs.replace(PLAN, cluster=wrong), PROFILE)[-1]
    assert check.name == "orders" and "gpus lists 3 GPUs" in check.detail


@pytest.mark.parametrize(
    "demands",
    [
        {"schedules": ("1f1b", "gpipe", "banana")},
        {"pins": (Pin(layer="nobody", stage=0),)},
        {"same_stage": (("nobody", "l0"),)},
        {"different_stage": (("nobody", "l0"),)},
        {"keep_layers": ("nobody",)},
        {"offload": "always"},
    ],
)
def test_demands_that_solve_would_refuse_are_a_failed_check(demands: dict[str, object]):
    asked = msgspec.structs.replace(PLAN.demands, **demands)
    check = verify(msgspec.structs.replace(PLAN, demands=asked), PROFILE)[-1]
    assert check.name == "demands" and not check.passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_bound_that_is_no_number_is_refused(value: float):
    carried = msgspec.structs.replace(PLAN.certificate, lower_bound=value)
    sizes = tuple(msgspec.structs.replace(size, lower_bound=value) for size in PLAN.sizes)
    assert not passed(msgspec.structs.replace(PLAN, certificate=carried))
    assert not passed(msgspec.structs.replace(PLAN, certificate=carried, sizes=sizes))


def test_a_bound_of_0_says_nothing_and_passes_only_with_an_unknown_gap():
    sizes = tuple(
        msgspec.structs.replace(size, lower_bound=0.0, simulated=0) for size in PLAN.sizes
    )
    for gap, passes in ((None, True), (0.0, False), (1.0, False)):
        carried = msgspec.structs.replace(
            PLAN.certificate, lower_bound=0.0, gap=gap, simulated=0, any_order_bound=0.0
        )
        plan = msgspec.structs.replace(PLAN, certificate=carried, sizes=sizes)
        checks = verify(plan, PROFILE)
        assert checks[-1].passed == passes
        assert not passes or "gap unknown" in checks[-1].detail


def test_a_size_scaled_from_another_profile_than_the_nearest_is_refused():
    profiles = [PROFILE, msgspec.structs.replace(scale_profile(PROFILE, 4), warnings=())]
    plan = solve(profiles, CLUSTER, global_batch=8, microbatch_sizes=[1, 8])
    assert [size.profiled_size for size in plan.sizes] == [1, 4]
    assert all(check.passed for check in verify(plan, profiles))
    first, last = plan.sizes
    far = msgspec.structs.replace(last, profile_hash=first.profile_hash, profiled_size=1)
    # The larger profile is named by a size of its own, so that only the distance is wrong.
    own = msgspec.structs.replace(last, microbatch_size=4)
    check = verify(msgspec.structs.replace(plan, sizes=(first, own, far)), profiles)[-1]
    assert check.name == "profile" and not check.passed
    assert "scaled from 1, but the nearest profile has 4" in check.detail


def test_a_plan_that_counts_gradients_before_the_first_backward_is_told_what_changed():
    replace = msgspec.structs.replace
    older = tuple(
        replace(one, moving=replace(one.moving, made=0, first_backward=0))
        for one in PLAN.prediction.stages
    )
    plan = replace(PLAN, prediction=replace(PLAN.prediction, stages=older))
    (failed,) = [check for check in verify(plan, PROFILE) if not check.passed]
    assert "counted gradients before a step's first backward" in failed.detail
    assert "solve the plan again with autopart solve" in failed.detail
