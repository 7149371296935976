"""Plans of every schedule in torch's own runtime: by name where torch has one, else from a file."""

from pathlib import Path

import msgspec
import pytest
from torch.distributed.pipelining import schedules as pipelining

from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan, orders_of, schedule_of
from autopart.schedules.actions import Schedule, parse_order
from autopart.schedules.catalogue import KINDS, kind_of
from autopart.schedules.torch_names import TORCH_NAMES
from tests.schedules.test_torch import MutableStage, Stage
from tests.support.exporters.exported import check_training, import_files
from tests.support.exporters.odd_model import ODD
from tests.support.exporters.plans import make_plan
from tests.support.long_tests import long_tests
from tests.support.pictures import place_stages
from tests.support.places import MODELS
from tests.support.runtime.rank_pool import RankPool

IN_FOUR = [
    ["tokens", "positions", "blocks.0"],
    ["blocks.1", "blocks.2", "blocks.3"],
    ["blocks.4"],
    ["blocks.5", "blocks.6", "blocks.7", "norm", "head", "loss"],
]
IN_TWO = [IN_FOUR[0] + IN_FOUR[1], IN_FOUR[2] + IN_FOUR[3]]
IN_THREE = [IN_FOUR[0], IN_FOUR[1], IN_FOUR[2] + IN_FOUR[3]]
V = [(0,), (1,), (1,), (0,)]
LOOP = [(0,), (1,), (0,), (1,)]

OWN: Schedule = (
    parse_order("0F1 0F0 0F2 0I1 0B0 0I2 0W2 0W1"),
    parse_order("1F1 2F1 2I1 1F0 2F0 1I1 2B0 1B0 1F2 2F2 2W1 2I2 1W1 1I2 2W2 1W2"),
)
"""One stage on rank 0 and two on rank 1, with whole and split backwards. The last stage runs forwards out
of order."""


def of_schedule(name: str, microbatches: int = 4) -> Plan:
    """A plan for GPT-2 on two ranks."""
    kind = kind_of(name)
    per_rank = kind.stages_per_rank or 2
    layers = IN_FOUR if per_rank == 2 else IN_TWO
    return make_plan(layers, place_stages(kind, 2, per_rank), microbatches, name)


def own_plan() -> Plan:
    return make_plan(IN_THREE, [(0,), (1,), (1,)], 3, "custom", orders=OWN)


# Real steps on two or four processes


@pytest.mark.slow
def test_own_orders_train_as_the_plain_model(two_ranks: RankPool) -> None:
    check_training(two_ranks, own_plan(), "zoo:gpt2-tiny", max_norm=0.1)


@pytest.mark.slow
def test_a_v_with_split_backwards_trains_as_the_plain_model(two_ranks: RankPool) -> None:
    check_training(two_ranks, of_schedule("zbv"), "zoo:gpt2-tiny", max_norm=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "1f1b", "interleaved-zb", "dualpipev", "v-half", "paired-interleaved-1f1b",
        *long_tests("interleaved-1f1b", "zb-h1", "paired-1f1b", "paired-dualpipev", "looped-bfs", "zb-h2", "v-min", "hanayo"),
    ],
)  # fmt: skip
def test_every_schedule_trains_as_the_plain_model(two_ranks: RankPool, name: str) -> None:
    check_training(two_ranks, of_schedule(name), "zoo:gpt2-tiny", max_norm=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hf_gpt2", "hf_t5"])
def test_models_that_torch_cannot_split_train_with_split_backwards(
    two_ranks: RankPool, model: str
) -> None:
    pytest.importorskip("transformers")
    encoder = ["encoder.embed_tokens", "encoder.block.0", "encoder.block.1"]
    decoder = ["decoder.block.0", "decoder.block.1", "decoder.final_layer_norm", "lm_head"]
    layers = {
        "hf_t5": [[*encoder, "decoder.embed_tokens"], ["encoder.final_layer_norm", *decoder]],
        "hf_gpt2": [["transformer.wte", "transformer.h.0"], ["transformer.h.1", "lm_head"]],
    }[model]
    plan = make_plan(layers, [(0,), (1,)], 3, "zb-h1")
    check_training(two_ranks, plan, str(MODELS / f"{model}.py"))


@pytest.mark.slow
def test_frozen_layers_and_writes_in_place_train_with_split_backwards(
    two_ranks: RankPool, tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    layers = [["frozen.0"], ["layers.0"], ["layers.1"], ["layers.2", "layers.3"]]
    check_training(two_ranks, make_plan(layers, V, 3, "zbv"), str(tmp_path / "odd.py"))


@pytest.mark.slow
def test_replicas_of_a_v_with_uneven_shares_sum_their_gradients(four_ranks: RankPool) -> None:
    ranks = [(0, 3), (1, 2), (1, 2), (0, 3)]
    check_training(four_ranks, make_plan(IN_FOUR, ranks, 5, "zbv"), "zoo:gpt2-tiny", max_norm=0.1)


# Orders as torch reads them


def read_by_torch(plan: Plan, folder: Path, replica: int = 0) -> Schedule:
    """The orders in torch before it adds sends and receives."""
    module = import_files(export_plan(plan, "torch").files, folder)
    ranks = sorted({stage.ranks[replica] for stage in plan.stages})
    first = [s for s, stage in enumerate(plan.stages) if stage.ranks[replica] == ranks[0]]
    stages = [
        MutableStage(Stage(s, len(plan.stages), len(ranks), 0, {}, is_last=False)) for s in first
    ]
    schedule = module.build_schedule(
        module.Stages(stages, None, None, replica, [], [])  # type: ignore[arg-type]
    )
    return tuple(
        parse_order(
            " ".join(str(cell) for cell in schedule.pipeline_order[rank] if cell is not None)
        )
        for rank in range(len(ranks))
    )


def test_torch_reads_the_plans_orders_from_the_file(tmp_path: Path) -> None:
    plan = own_plan()
    assert read_by_torch(plan, tmp_path) == schedule_of(plan)


@pytest.mark.parametrize(
    "name", [n for n in KINDS if n not in (*TORCH_NAMES, "chimera", "gems", "bpipe")]
)
def test_torch_reads_schedules_without_a_torch_name_from_the_file(
    name: str, tmp_path: Path
) -> None:
    plan = of_schedule(name)
    read = read_by_torch(plan, tmp_path)
    assert read == schedule_of(plan)
    assert orders_of(read) == plan.orders, "overlapped pairs are read as pairs"


def test_replicas_with_different_ranks_or_shares_have_separate_files(tmp_path: Path) -> None:
    plan = make_plan(IN_FOUR, [(0, 3), (1, 2), (1, 2), (0, 3)], 5, "zbv")
    orders = schedule_of(plan)
    assert "ScheduleZBV" not in export_plan(plan, "torch").files["pipeline_plan.py"]
    for replica in (0, 1):
        read = read_by_torch(plan, tmp_path, replica)
        for order, expected in zip(read, orders[2 * replica : 2 * replica + 2], strict=True):
            assert [(a.stage, a.op, 2 * a.microbatch + replica) for a in order] == list(expected)


@pytest.mark.parametrize("name", [name for name in TORCH_NAMES if name not in ("gpipe", "1f1b")])
def test_a_schedule_with_a_torch_name_needs_no_file(name: str, tmp_path: Path) -> None:
    files = export_plan(of_schedule(name), "torch").files
    module = import_files(files, tmp_path)
    assert "autopart_schedule.csv" not in files
    assert getattr(pipelining, f"Schedule{TORCH_NAMES[name]}") is module.SCHEDULE
    assert any(a.op == "W" for order in schedule_of(of_schedule(name)) for a in order) == (
        module.SPLITS_BACKWARD
    )


def test_ranks_in_another_order_than_in_torch_need_a_file(tmp_path: Path) -> None:
    plan = make_plan(IN_FOUR, [(1,), (0,), (0,), (1,)], 4, "zbv")
    assert "autopart_schedule.csv" in export_plan(plan, "torch").files
    assert read_by_torch(plan, tmp_path) == schedule_of(plan)


def test_orders_that_differ_from_the_named_schedule_need_a_file(tmp_path: Path) -> None:
    plan = make_plan(IN_TWO, [(0,), (1,)], 2, "gpipe")
    first = plan.orders[0].replace("0B0 0B1", "0B1 0B0")
    other = msgspec.structs.replace(plan, orders=(first, plan.orders[1]))
    assert read_by_torch(other, tmp_path) == schedule_of(other)


def test_1f1b_with_fewer_microbatches_than_torch_takes_needs_a_file(tmp_path: Path) -> None:
    plan = make_plan(IN_FOUR, [(0,), (1,), (2,), (3,)], 3)
    assert read_by_torch(plan, tmp_path) == schedule_of(plan)
