import copy
import json
from collections.abc import Iterator

import msgspec
import pytest

from autopart.certificate import verify
from autopart.cluster import Link
from autopart.files import encode
from autopart.graph import Input, LayerGraph, TiedParameter
from autopart.plan import Plan
from autopart.planner import solve
from tests.problems import cluster, layer, profile, value


def rich_profile():
    """A chain with a skip, an input, a tied parameter and no two equal numbers."""
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
"""More memory, or more nodes than the demanded shape needs, leave the plan as right as it was."""

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


def test_a_layer_that_is_left_out_unknown_or_ahead_of_what_it_reads_is_named():
    first, second = PLAN.stages

    def last_word(*stages: object) -> str:
        return verify(msgspec.structs.replace(PLAN, stages=stages), PROFILE)[-1].detail

    short = msgspec.structs.replace(second, layers=second.layers[1:])
    assert f"no stage holds layer '{second.layers[0]}'" in last_word(first, short)
    strange = msgspec.structs.replace(second, layers=(*second.layers, "x"))
    assert "layer 'x', which the profile does not know" in last_word(first, strange)
    swapped = (
        msgspec.structs.replace(first, layers=second.layers),
        msgspec.structs.replace(second, layers=first.layers),
    )
    assert "on the earlier stage 0" in last_word(*swapped)


def test_a_replica_that_is_taken_away_is_refused():
    first, second = PLAN.stages
    fewer = (msgspec.structs.replace(first, ranks=first.ranks[:1]), second)
    assert not passed(msgspec.structs.replace(PLAN, stages=fewer))


def test_another_profile_is_refused():
    other = msgspec.structs.replace(PROFILE, dtype="bfloat16")
    check = verify(PLAN, other)[-1]
    assert check.name == "profile" and "take the profile that it was solved with" in check.detail


def test_orders_that_are_complete_but_not_the_named_schedule_are_refused():
    named = msgspec.structs.replace(PLAN, schedule="gpipe" if PLAN.schedule == "1f1b" else "1f1b")
    check = verify(named, PROFILE)[-1]
    assert check.name == "demands" and "the orders are not those of schedule" in check.detail


def test_a_memory_limit_below_the_peak_is_named():
    peak = max(stage.peak_bytes for stage in PLAN.prediction.stages)
    tight = msgspec.structs.replace(CLUSTER, memory_bytes=peak - 1)
    check = verify(msgspec.structs.replace(PLAN, cluster=tight), PROFILE)[-1]
    assert check.name == "memory" and "needs" in check.detail
