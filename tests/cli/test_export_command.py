import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

import autopart.exporters.readback.check as readback
from autopart.cli import verify_command
from autopart.cli.export_options import TargetName
from autopart.cli.output_files import check_may_replace
from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.readback.rebuilt import Rebuilt
from autopart.exporters.targets import TARGETS
from tests.support.places import MODELS, SCHEMAS

Cli = Callable[..., object]


def test_export_writes_valid_python_and_lists_its_files(cli: Cli, plan_file: Path) -> None:
    outcome = cli("export", "plan.json", "--to", "torch", "--json")
    assert outcome.code == 0, outcome.err
    schema = SCHEMAS / "export-summary.json"
    jsonschema.validate(outcome.document, json.loads(schema.read_text()))
    names = [file.name for file in Path("exported").iterdir()]
    assert {"pipeline.py", "pipeline_plan.py", "pipeline_check.py"} <= set(names)
    assert sorted(outcome.document["files"]) == sorted(f"exported/{name}" for name in names)
    for file in outcome.document["files"]:
        ast.parse(Path(file).read_text())


@pytest.mark.slow
def test_an_export_may_replace_an_export_but_nothing_else(cli: Cli, plan_file: Path) -> None:
    assert cli("export", "plan.json", "--to", "torch", "-o", "here").code == 0
    assert cli("solve", "--gpus", "2", "--stages", "2").code == 0
    assert cli("export", "plan.json", "--to", "torch", "-o", "here").code == 0
    Path("here/pipeline.py").write_text("my own work")
    outcome = cli("export", "plan.json", "--to", "torch", "-o", "here")
    assert outcome.code == 1
    assert "here/pipeline.py" in outcome.err
    assert Path("here/pipeline.py").read_text() == "my own work"


def test_a_plan_that_the_target_cannot_express_is_code_4(cli: Cli, plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    plan["stages"][0]["offload"] = plan["stages"][0]["layers"][:1]
    plan_file.write_text(json.dumps(plan))
    outcome = cli("export", "plan.json", "--to", "torch")
    assert outcome.code == 4
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert not Path("exported").exists()


def test_an_unknown_target_is_wrong_usage(cli: Cli, plan_file: Path) -> None:
    assert cli("export", "plan.json", "--to", "tensorflow").code == 2


def test_only_torchs_export_checks_itself(cli: Cli, plan_file: Path) -> None:
    outcome = cli("export", "plan.json", "--to", "megatron", "--check")
    assert outcome.code == 2 and "autopart verify PLAN --target" in outcome.err
    assert not Path("exported").exists()


@pytest.mark.slow
def test_a_check_without_the_model_fails_in_one_line(cli: Cli, plan_file: Path) -> None:
    outcome = cli("export", "plan.json", "--to", "torch", "--check", "--model", "gone.py")
    assert outcome.code == 1 and outcome.err.count("error: ") == 1
    assert "gone.py: there is no such file" in outcome.err


def test_list_shows_every_target(cli: Cli) -> None:
    outcome = cli("export", "--list")
    assert outcome.code == 0
    assert {line.split(" ")[0] for line in outcome.out.splitlines()} >= set(TARGETS)
    assert set(TARGETS) == set(get_args(TargetName))


def test_map_renames_layers_and_notes_are_warnings(cli: Cli, plan_file: Path) -> None:
    asked = ["export", "plan.json", "--to", "deepspeed", "-o", "ds", "--json"]
    outcome = cli(*asked, "--map", "h.{i}=layers.{i}", "--map", "embed=embedding")
    assert outcome.code == 0, outcome.err
    assert outcome.document["notes"] and "warning: " in outcome.err
    assert cli(*asked).code == 0
    assert cli(*asked, "--map", "h.{i}").code == 2
    assert cli(*asked, "--target-version", "1").code == 2
    assert cli("export", "plan.json").code == 2


def test_a_schedule_file_of_an_earlier_export_is_replaced(cli: Cli, plan_file: Path) -> None:
    Path("exported").mkdir()
    Path("exported/autopart_schedule.csv").write_text("0F0,0B0\n")
    check_may_replace(Path("exported/autopart_schedule.csv"), "0F0,0F1,0B0,0B1\n")


def test_verify_without_profile_and_target_is_wrong_usage(cli: Cli, plan_file: Path) -> None:
    assert cli("verify", "plan.json").code == 2
    assert cli("verify", "plan.json", "--target", "vllm").code == 2


def test_verify_compares_the_export_as_an_installed_framework_reads_it(
    cli: Cli, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rebuilt(folder: Path, shape: Shape) -> Rebuilt:
        text = (folder / "autopart_megatron.sh").read_text()
        assert "--pipeline-model-parallel-size 2" in text and shape.num_replicas == 2
        return Rebuilt(((), ()), frozenset(), ((), ()))

    reader = readback.Reader("megatron-core", {"0.16.1": rebuilt})
    monkeypatch.setattr(readback, "READERS", {"megatron": reader})
    monkeypatch.setattr(readback, "installed", lambda *_: ("megatron-core 0", "0.16.1"))
    outcome = cli("verify", "plan.json", "--target", "megatron", "--json")
    assert outcome.code == 1
    schema = SCHEMAS / "verify-summary.json"
    jsonschema.validate(outcome.document, json.loads(schema.read_text()))
    failed = [check["name"] for check in outcome.document["checks"] if not check["passed"]]
    assert failed == ["layers", "orders"] and outcome.document["target"] == "megatron"


@pytest.mark.slow
def test_a_hugging_face_plan_is_exported_under_every_frameworks_names(cli: Cli) -> None:
    pytest.importorskip("transformers")
    model = MODELS / "hf_llama.py"
    assert cli("profile", str(model), "--microbatch-size", "2", "-o", "profile.json").code == 0
    asked = ["--gpus", "2", "--stages", "2", "--schedule", "1f1b"]
    outcome = cli("solve", "--profile", "profile.json", *asked)
    assert outcome.code == 0, outcome.err
    said = {
        "torchtitan": ("autopart_titan.py", '"layers.3"', '"lm_head"'),
        "megatron": ("autopart_megatron.sh", "--num-layers 4", "layout 'Et"),
        "deepspeed": ("autopart_deepspeed.py", '"layers.3"', '"head"'),
        "automodel": ("autopart_automodel.yaml", '"model.layers.3"', '"lm_head"'),
        "primus": ("autopart_primus.yaml", "num_layers: 4", 'layout: "Et'),
        "vllm": ("autopart_vllm.sh", "PP_LAYER_PARTITION=", ","),
        "device-map": ("autopart_device_map.json", '"model.layers.3": 1', '"lm_head": 1'),
    }
    renamed = ["--map", "model.layers.{i}=layers.{i}", "--map", "model.embed_tokens=embedding"]
    for target, (file, *words) in said.items():
        outcome = cli("export", "plan.json", "--to", target, *renamed)
        assert outcome.code == 0, outcome.err
        text = Path("exported", file).read_text()
        assert [word for word in words if word not in text] == [], target


def test_verify_takes_every_framework_with_a_reader() -> None:
    assert set(get_args(verify_command.TargetName)) == set(readback.READERS)
