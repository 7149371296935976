"""The text of an export to torch, and the plans that it refuses."""

import ast
import re
import sys

import msgspec
import pytest
from torch.distributed.pipelining import Schedule1F1B

from autopart.errors import ExportRefused, UsageError
from autopart.exporters.targets import TARGETS, export_plan
from autopart.records.plan import Plan
from autopart.schedules.actions import parse_order
from tests.support.exporters.exported import import_export
from tests.support.exporters.plans import make_plan, with_policies
from tests.support.places import ROOT

BLOCKS = [f"blocks.{index}" for index in range(8)]
GPT2 = [["tokens", "positions", *BLOCKS[:3]], [*BLOCKS[3:], "norm", "head", "loss"]]


def exported(plan: Plan) -> dict[str, str]:
    return dict(export_plan(plan, "torch").files)


def test_the_modules_import_only_torch_and_each_other_and_have_the_plan_as_literals() -> None:
    plan = make_plan(GPT2, [(0, 3), (2, 1)], 4, microbatch_size=7)
    files = exported(plan)
    assert next(iter(files)) == "pipeline.py" and "pipeline_plan.py" in files
    beside = {file.removesuffix(".py") for file in files}
    for text in files.values():
        imported = {
            str(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[
                0
            ]
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert imported - set(sys.stdlib_module_names) - beside <= {"torch"}
        assert max(map(len, text.splitlines())) <= 100
    module = import_export(plan)
    assert tuple(tuple(layers) for layers in GPT2) == module.STAGES
    assert module.RANKS == ((0, 3), (2, 1))
    assert (module.NUM_MICROBATCHES, module.MICROBATCH_SIZE) == (4, 7)
    assert module.SCHEDULE is Schedule1F1B
    assert [module.stages_of(rank) for rank in range(4)] == [[0], [1], [1], [0]]
    assert [module.replica_of(rank) for rank in range(4)] == [0, 1, 0, 1]


def test_equal_plans_give_equal_text() -> None:
    plans = [make_plan(GPT2, [(0,), (1,)], 4) for _ in range(2)]
    assert exported(plans[0]) == exported(plans[1])


def test_long_stages_and_odd_names_survive_the_literals() -> None:
    odd = ['a"b', "c\\d", "e'f", *(f"a.rather.long.layer.name.{index}" for index in range(30))]
    module = import_export(make_plan([odd, ["x"]], [(0,), (1,)], 2))
    assert (tuple(odd), ("x",)) == module.STAGES


def test_a_models_name_cannot_break_out_of_its_literal() -> None:
    plan, name = make_plan(GPT2, [(0,), (1,)], 4), 'm"""\nimport os\n$stages\\\u2028'
    origin = msgspec.structs.replace(plan.origin, model=name)
    assert name == import_export(msgspec.structs.replace(plan, origin=origin)).MODEL


def test_every_plan_gets_every_module_and_differs_only_in_its_constants() -> None:
    folder = ROOT / "autopart/exporters/torch/exported"
    sources = {path.name: path.read_text("utf-8") for path in folder.glob("pipeline*.py")}
    files = exported(make_plan(GPT2, [(0,), (1,)], 4))
    assert set(files) == set(sources)
    assert {name for name in files if files[name] != sources[name]} == {"pipeline_plan.py"}
    before, plan, behind = _around_the_plan(files["pipeline_plan.py"])
    first, constants, rest = _around_the_plan(sources["pipeline_plan.py"])
    assert (before, behind) == (first, rest) and plan != constants


def test_the_page_on_exports_names_every_file() -> None:
    page = (ROOT / "docs/exporting.md").read_text("utf-8")
    files = exported(make_plan(GPT2, [(0,), (1,)], 3))
    assert [name for name in files if f"`{name}`" not in page] == []


def test_pipeline_py_has_every_constant_of_the_plan() -> None:
    constants = _around_the_plan(exported(make_plan(GPT2, [(0,), (1,)], 4))["pipeline_plan.py"])[1]
    names = {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        for node in ast.parse(constants).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
    }
    module = import_export(make_plan(GPT2, [(0,), (1,)], 4))
    assert len(names) == 13 and names <= set(module.__all__)


def _around_the_plan(text: str) -> list[str]:
    return re.split(r"^# ---- The (?:end of the )?plan.*$", text, flags=re.MULTILINE)


def refusal(plan: Plan) -> str:
    with pytest.raises(ExportRefused) as caught:
        export_plan(plan, "torch")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_stages_with_different_numbers_of_replicas_are_refused() -> None:
    message = refusal(make_plan(GPT2, [(0, 1), (2,)], 4))
    assert "these have 2, 1; the nearest plan has 1 on every stage" in message


def test_a_rank_in_two_replicas_is_refused() -> None:
    orders = (parse_order("0F0 1F1 1B1 0B0"), parse_order("0F1 1F0 1B0 0B1"))
    plan = make_plan(GPT2, [(0, 1), (1, 0)], 2, "custom", orders=orders)
    assert "rank 0 runs stages of replicas 0 and 1" in refusal(plan)


def test_an_idle_rank_is_refused() -> None:
    plan = make_plan(GPT2, [(0,), (1,)], 2)
    idle = msgspec.structs.replace(plan, orders=(*plan.orders, ""))
    assert refusal(idle).startswith(
        "rank 2 has no stage, and torch gives each rank one; solve for 2"
    )


def test_offloaded_layers_and_a_recomputed_loss_are_refused() -> None:
    plan = make_plan(GPT2, [(0,), (1,)], 2)
    message = refusal(with_policies(plan, offload=("blocks.5",)))
    assert "stage 1 offloads layer 'blocks.5'" in message
    message = refusal(with_policies(plan, recompute=("loss",)))
    assert "recomputes 'loss', which is not a module" in message and "--keep-layer loss" in message


def test_an_unknown_target_is_refused_with_the_known_targets() -> None:
    with pytest.raises(UsageError, match="cannot export to 'jax'; known: torch"):
        export_plan(make_plan(GPT2, [(0,), (1,)], 2), "jax")
    assert next(iter(TARGETS)) == "torch"
