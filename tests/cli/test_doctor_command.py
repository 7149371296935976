import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema

from autopart.cli.doctor_command import folder_findings
from autopart.records.profile import save_profile
from tests.support.places import SCHEMAS
from tests.support.samples import sample_profile

Cli = Callable[..., Any]


def test_an_empty_folder_is_told_what_to_do(cli: Cli, folder: Path) -> None:
    done = cli("doctor")
    assert done.code == 0, done.out
    assert "autopart profile model.py" in " ".join(done.out.split())
    assert "autopart solve --gpus N" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_document_has_a_schema(cli: Cli, plan_file: Path) -> None:
    document = cli("doctor", "--json").document
    jsonschema.validate(document, json.loads((SCHEMAS / "doctor-summary.json").read_text()))
    assert document["works"] is True


def test_the_newest_profile_and_its_plan_are_named(cli: Cli, plan_file: Path, folder: Path) -> None:
    found = {one.subject: one for one in folder_findings(folder)}
    assert found["profile"].found == "profile.json: model.py, 10 layers"
    assert found["plan"].state == "ok"
    assert found["plan"].found == "plan.json: model.py, 2 stages"


def test_a_plan_of_another_profile_is_told(cli: Cli, plan_file: Path, folder: Path) -> None:
    save_profile(sample_profile(microbatch_size=4), folder / "newer.json")
    found = {one.subject: one for one in folder_findings(folder)}["plan"]
    assert found.state == "note"
    assert "another profile than the newest" in found.found


def test_a_broken_plan_is_a_note_with_its_reason(folder: Path) -> None:
    (folder / "plan.json").write_text("{")
    found = {one.subject: one for one in folder_findings(folder)}["plan"]
    assert found.state == "note"
    assert "not a whole autopart-plan file" in found.found
