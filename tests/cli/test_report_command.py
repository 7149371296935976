import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from autopart.records.files import encode
from autopart.records.plan import load_plan
from autopart.records.size import save_sizing
from tests.support.measured_runs import as_predicted
from tests.support.places import SCHEMAS
from tests.support.samples import sample_sizing

Cli = Callable[..., Any]


def test_a_page_is_written_and_may_be_replaced(cli: Cli, plan_file: Path, folder: Path) -> None:
    done = cli("report", "plan.json")
    assert done.code == 0, done.err
    assert (
        done.out
        == f"page of {(folder / 'plan.html').stat().st_size / 1e6:.1f} MB written to plan.html\n"
    )
    assert cli("report", "plan.json").code == 0
    assert (folder / "plan.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
def test_the_document_has_a_schema_and_the_sections_that_options_add(
    cli: Cli, plan_file: Path, folder: Path
) -> None:
    (folder / "run.json").write_bytes(encode(as_predicted(load_plan(plan_file))))
    line = (
        "report plan.json --profile profile.json --run run.json --time-limit 5 -o new.html --json"
    )
    done = cli(*line.split())
    jsonschema.validate(done.document, json.loads((SCHEMAS / "report-summary.json").read_text()))
    assert done.document["sections"] == [
        "timeline", "measured", "splits", "sweep", "model", "memory", "peak", "network",
    ]  # fmt: skip
    assert done.document["num_bytes"] == (folder / "new.html").stat().st_size
    assert done.document["notes"] == []


def test_a_run_of_another_plan_is_refused_before_anything_is_written(
    cli: Cli, plan_file: Path, folder: Path
) -> None:
    run = msgspec.structs.replace(as_predicted(load_plan(plan_file)), num_microbatches=2)
    (folder / "run.json").write_bytes(encode(run))
    done = cli("report", "plan.json", "--run", "run.json")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "a run of another plan, with 2 microbatches where this one has 8" in done.err
    assert not (folder / "plan.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("profile.json", "no autopart-plan file"),
        ("absent.json", "no such file"),
        ("plan.json --run plan.json", "give what 'autopart run --json' printed"),
        ("plan.json -o profile.json", "it exists and is no autopart-report file"),
        ("plan.json -o .", "it is a folder"),
        ("plan.json -o /proc/none/plan.html", "cannot be written"),
        ("plan.json --profile absent.json", "absent.json"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    cli: Cli, plan_file: Path, words: str, said: str
) -> None:
    done = cli("report", *words.split())
    assert done.code == 1
    assert said in done.err and done.err.count("\n") == 1


def test_without_plotly_the_error_names_the_extra(
    cli: Cli, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    done = cli("report", "plan.json")
    assert done.code == 1 and done.err.count("\n") == 1
    assert "pip install 'autopart[report]'" in done.err


def test_a_sizing_is_drawn_and_one_of_another_model_is_refused(
    cli: Cli, plan_file: Path, folder: Path
) -> None:
    sizing = sample_sizing()
    save_sizing(sizing, folder / "size.json")
    done = cli("report", "plan.json", "--size", "size.json", "--json")
    assert "size" in done.document["sections"]
    save_sizing(msgspec.structs.replace(sizing, model="other.py"), folder / "size.json")
    done = cli("report", "plan.json", "--size", "size.json")
    assert done.code == 1
    assert "it is for other.py, and the plan for model.py" in done.err
