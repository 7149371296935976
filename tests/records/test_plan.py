import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.errors import AutopartError, FileError, PlanError, ScheduleError
from autopart.records.files import encode
from autopart.records.plan import Plan, check_plan, load_plan, num_ranks, schedule_of, stage_ranks
from autopart.schedules.catalogue import make_schedule
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile

PLAN = solve(
    profile(chain_graph(*(layer(f"l{i}") for i in range(4)))),
    cluster(1, 2),
    num_microbatches=2,
    num_stages=2,
)
FIRST, SECOND = PLAN.stages
IN_FLIGHT_9 = [msgspec.to_builtins(stage) | {"in_flight": 9} for stage in PLAN.prediction.stages]


def test_a_plan_carries_its_schedule_as_words():
    assert schedule_of(PLAN) == make_schedule(PLAN.schedule, stage_ranks(PLAN), 2)
    assert num_ranks(PLAN) == 2


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        ({"stages": ()}, "it has no stages"),
        ({"stages": (msgspec.structs.replace(FIRST, layers=()), SECOND)}, "stage 0 has no layers"),
        ({"stages": (FIRST, msgspec.structs.replace(SECOND, ranks=()))}, "stage 1 has no ranks"),
        ({"stages": (FIRST, msgspec.structs.replace(SECOND, layers=FIRST.layers))}, "is on stages 0 and 1"),
        ({"stages": (FIRST, msgspec.structs.replace(SECOND, ranks=(1, 1)))}, "stage 1 names a rank twice"),
        ({"stages": (FIRST, msgspec.structs.replace(SECOND, ranks=(0,)))}, "rank 0 never runs 1F0"),
        ({"stages": (FIRST, msgspec.structs.replace(SECOND, ranks=(7,)))}, "rank 7 has a stage but no order"),
        ({"stages": (msgspec.structs.replace(FIRST, recompute=("x",)), SECOND)}, "lists layer 'x' under recompute, but does not have it"),
        ({"stages": (msgspec.structs.replace(FIRST, offload=("l0",), selective=("l0",)), SECOND)}, "stage 0 lists layer 'l0' under selective and offload"),
    ],
)  # fmt: skip
def test_a_plan_that_is_not_whole_says_what_is_wrong(altered: dict[str, object], message: str):
    with pytest.raises(PlanError, match=message):
        check_plan(msgspec.structs.replace(PLAN, **altered))


@pytest.mark.parametrize(
    ("order", "message"),
    [("0F0 0F1 0B0", "never runs 0B1"), ("0F0 0F1 0B0 zz", "'zz' is not an action")],
)
def test_an_order_that_cannot_be_run_is_refused(order: str, message: str):
    with pytest.raises(ScheduleError, match=message):
        check_plan(msgspec.structs.replace(PLAN, orders=(order, PLAN.orders[1])))


def test_a_plan_file_cut_short_or_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_bytes(encode(PLAN)[:-100])
    with pytest.raises(FileError, match="not a whole autopart-plan file"):
        load_plan(path)
    path.write_bytes(encode(PLAN.cluster))
    with pytest.raises(FileError, match="its format is 'autopart-cluster'"):
        load_plan(path)


def test_a_plan_is_data_that_anyone_can_decode():
    assert msgspec.json.decode(encode(PLAN), type=Plan) == PLAN


def test_a_plan_of_version_2_loads_and_a_gap_over_a_bound_of_0_becomes_unknown(tmp_path: Path):
    path, tree = tmp_path / "plan.json", json.loads(encode(PLAN)) | {"version": 2}
    path.write_text(json.dumps(tree))
    assert load_plan(path) == PLAN
    tree["certificate"] |= {"lower_bound": 0.0, "gap": 0.0}
    path.write_text(json.dumps(tree))
    assert load_plan(path).certificate.gap is None
    path.write_text(json.dumps(tree | {"version": 1}))
    with pytest.raises(
        FileError,
        match="reads version 2 and 3 and 4 and 5: make the file again with autopart solve",
    ):
        load_plan(path)


def test_a_plan_of_version_3_loads_without_a_group(tmp_path: Path):
    tree = json.loads(encode(PLAN))
    assert "group" not in tree
    (tmp_path / "plan.json").write_text(json.dumps(tree | {"version": 3}))
    assert load_plan(tmp_path / "plan.json") == PLAN


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"tensor": 3}, "a tensor group of 3 GPUs does not fill a node"),
        ({"tensor": 2}, r"orders? for \d tensor group"),
        (
            {"context": 6},
            "a rank group of 6 GPUs does not fill a node of 2 GPUs: the pro",
        ),
        ({"context": 2}, r"orders? for \d rank group"),
        ({"tensor": 1}, r"a rank group of 1 GPU: leave the group out - at `\$\.group`"),
        ({"tensor": 0}, r"Expected `int` >= 1 - at `\$\.group\.tensor`"),
        (
            {"context": 2, "sequence_parallel": True},
            "sequence_parallel needs a tensor degree above 1",
        ),
        ({"tensor": 2, "data": 2}, "data above 1, shard and reduce stand together"),
        ({"tensor": 2, "shard": "zero3"}, "data above 1, shard and reduce stand together"),
        ({"data": 2, "shard": "zero3"}, "data above 1, shard and reduce stand together"),
        ({"data": 2, "shard": "zero1", "reduce": "step"}, r"at `\$\.group\.shard`"),
        (None, r"Expected `object`, got `null` - at `\$\.group`"),
    ],
)
def test_a_group_that_the_cluster_cannot_have_is_refused(
    tmp_path: Path, group: object, message: str
):
    tree = json.loads(encode(PLAN)) | {"group": group}
    (tmp_path / "plan.json").write_text(json.dumps(tree))
    with pytest.raises((FileError, PlanError), match=message):
        load_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("bound", ["NaN", "Infinity", "-1.0", "1e999", "null", '"0"'])
def test_a_bound_that_is_no_finite_number_from_0_on_is_refused(tmp_path: Path, bound: str):
    text = json.dumps(json.loads(encode(PLAN)))
    carried = f'"lower_bound": {PLAN.certificate.lower_bound!r}, "gap"'
    assert carried in text
    path = tmp_path / "plan.json"
    path.write_text(text.replace(carried, f'"lower_bound": {bound}, "gap"'))
    with pytest.raises(FileError):
        load_plan(path)


@pytest.mark.parametrize(
    ("altered", "message"),
    [
        ({"prediction": {"stages": []}}, "it has 0 predicted stages for 2 stages"),
        ({"prediction": {"stages": IN_FLIGHT_9}}, "stage 0 has 9 microbatches in flight, the step only"),
        ({"prediction": {"rank_peak_bytes": [1, 2, 3]}}, "it has 3 peaks of ranks for 2 ranks"),
        ({"prediction": {"syncs": [{"what": "w", "ranks": [0, 9], "time": 1.0}]}}, "sync 0 names rank 9, which has no stage"),
        ({"num_microbatches": 3 * 10**8}, "8 actions are too few for 300000000 microbatches"),
        ({"orders": [PLAN.orders[0].replace("0F1 0B0", "(0F1;0B0)OVERLAP_F_B"), PLAN.orders[1]]}, "overlapped pairs, and stage 0 has no pair_saving"),
        ({"orders": [*PLAN.orders, ""]}, "it has 3 orders for 2 GPUs"),
        ({"orders": [*PLAN.orders, ""], "cluster": {"gpus_per_node": 3}, "prediction": {"rank_peak_bytes": [1, 2, 3]}}, "the last of 3 orders is empty"),
        ({"prediction": {"syncs": [{"what": "w", "ranks": [0, 0], "time": 1.0}]}}, "sync 0 names no ranks, or one twice"),
        ({"prediction": {"syncs": [{"what": "w", "ranks": [], "time": 1.0}]}}, "sync 0 names no ranks, or one twice"),
        ({"prediction": {"step_time": 1e308}}, "Expected `float` <= 1000000000000.0"),
        ({"cluster": {"num_nodes": 2**40}}, "2199023255552 GPUs are too many"),
        ({"cluster": {"intra_node": {"bandwidth": 5e-324}}}, "Expected `float` >= 0.001"),
        ({"cluster": {"gpus": [{"count": 3, "name": "x", "memory_bytes": 1}]}}, "gpus lists 3 GPUs"),
        ({"num_microbatches": 2**63}, "Expected `int` <= 9223372036854775807"),
        ({"cluster": {"memory_bytes": 10**400}}, "Expected `int`"),
    ],
)  # fmt: skip
def test_a_plan_file_that_contradicts_itself_is_refused_with_a_reason(
    tmp_path: Path, altered: dict[str, Any], message: str
):
    tree = json.loads(encode(PLAN))
    for key, change in altered.items():
        tree[key] = tree[key] | change if isinstance(change, dict) else change
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(tree))
    with pytest.raises(AutopartError, match=message):
        load_plan(path)


@pytest.mark.parametrize("word", ["0F99999999999999999999", "99999999999999999999F0"])
def test_an_action_with_a_number_beyond_64_bits_is_no_action(word: str):
    with pytest.raises(ScheduleError, match=f"'{word}' is not an action"):
        check_plan(msgspec.structs.replace(PLAN, orders=(word, PLAN.orders[1])))
