from pathlib import Path

import msgspec
import pytest

from autopart.errors import FileError, PlanError, ScheduleError
from autopart.files import encode
from autopart.plan import Plan, check_plan, load_plan, num_ranks, schedule_of, stage_ranks
from autopart.planner import solve
from autopart.schedules import make_schedule
from tests.problems import chain_graph, cluster, layer, profile

PLAN = solve(
    profile(chain_graph(*(layer(f"l{i}") for i in range(4)))),
    cluster(1, 2),
    num_microbatches=2,
    num_stages=2,
)
FIRST, SECOND = PLAN.stages


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
        ({"stages": (msgspec.structs.replace(FIRST, recompute=("x",)), SECOND)}, "treats layer 'x'"),
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
