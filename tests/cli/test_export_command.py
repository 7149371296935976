import ast
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema

Cli = Callable[..., object]


def test_export_writes_python_that_parses_and_says_where(cli: Cli, plan_file: Path) -> None:
    outcome = cli("export", "plan.json", "--to", "torch", "--json")
    assert outcome.code == 0, outcome.err
    schema = Path(__file__).parents[2] / "docs" / "schemas" / "export-summary.json"
    jsonschema.validate(outcome.document, json.loads(schema.read_text()))
    assert outcome.document["files"] == ["exported/pipeline.py"]
    ast.parse(Path("exported/pipeline.py").read_text())


def test_an_export_may_replace_an_export_but_nothing_else(cli: Cli, plan_file: Path) -> None:
    assert cli("export", "plan.json", "--to", "torch", "-o", "here").code == 0
    assert cli("solve", "--gpus", "2", "--stages", "2").code == 0
    assert cli("export", "plan.json", "--to", "torch", "-o", "here").code == 0
    Path("here/pipeline.py").write_text("my own work")
    outcome = cli("export", "plan.json", "--to", "torch", "-o", "here")
    assert outcome.code == 1
    assert "here/pipeline.py" in outcome.err
    assert Path("here/pipeline.py").read_text() == "my own work"


def test_what_the_target_cannot_express_is_code_4(cli: Cli, plan_file: Path) -> None:
    plan = json.loads(plan_file.read_text())
    first, second, *others = plan["orders"][0].split()
    plan["orders"][0] = " ".join([second, first, *others])
    plan_file.write_text(json.dumps(plan))
    outcome = cli("export", "plan.json", "--to", "torch")
    assert outcome.code == 4
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert not Path("exported").exists()


def test_an_unknown_target_is_wrong_usage(cli: Cli, plan_file: Path) -> None:
    assert cli("export", "plan.json", "--to", "tensorflow").code == 2
