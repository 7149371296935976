"""Names and paths are text: what a terminal would obey is shown, and markup means nothing."""

import json
from pathlib import Path

import pytest

from autopart.records.profile import save_profile
from tests.cli.conftest import Cli, Outcome
from tests.support.hostile_names import HOSTILE, OBEYED, with_hostile_names
from tests.support.samples import sample_profile

DIGITS = "9" * 5000
"""More digits than Python reads as one integer."""


def check_text(outcome: Outcome, code: int = 0) -> None:
    assert outcome.code == code, outcome.err
    assert not OBEYED.search(outcome.out) and not OBEYED.search(outcome.err)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, len(HOSTILE), 6))
def test_names_of_layers_are_printed_as_text(cli: Cli, folder: Path, first: int) -> None:
    save_profile(with_hostile_names(sample_profile(), first), folder / "profile.json")
    asked = "solve --gpus 2 --global-batch 8 --recompute always"
    check_text(cli(*asked.split()))
    for line in (
        "show plan.json", "show plan.json --memory", "simulate plan.json",
        "verify plan.json --profile profile.json", "export plan.json --to device-map -o out",
        "show plan.json --json",
    ):  # fmt: skip
        outcome = cli(*line.split())
        check_text(outcome)
        if "--json" in line:
            stages = outcome.document["stages"]
            layers = [name for stage in stages for name in stage["layers"]]
            assert HOSTILE[first % len(HOSTILE)] in layers


@pytest.mark.parametrize("name", [*HOSTILE, "ab" * 2000, DIGITS])
def test_a_name_in_an_error_is_one_line_of_text(cli: Cli, folder: Path, name: str) -> None:
    path = name.replace("/", "|").replace("\0", "") + ".json"
    outcome = cli("show", path)
    check_text(outcome, 1)
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("error: ")
    clause = outcome.err.removeprefix("error: ").partition("; ")[0]
    assert len(clause) <= 201, outcome.err


def test_a_file_with_a_hostile_name_is_read_and_written(cli: Cli, folder: Path) -> None:
    path = "[/b]\x1b[31m\u202e.json"
    save_profile(sample_profile(), folder / path)
    check_text(cli("solve", "--gpus", "2", "--profile", path, "-o", f"plan{path}"))
    check_text(cli("show", f"plan{path}"))
    outcome = cli("show", f"plan{path}", "--json")
    check_text(outcome)
    assert json.loads(outcome.out)["plan"] == f"plan{path}"


def test_a_layer_with_thousands_of_digits_has_a_row(cli: Cli, folder: Path) -> None:
    profile = with_hostile_names(sample_profile())
    text = (save_profile(profile, folder / "profile.json"), (folder / "profile.json").read_text())[
        1
    ]
    (folder / "profile.json").write_text(text.replace('"[/b]"', f'"h.{DIGITS}"'))
    check_text(cli("solve", "--gpus", "2", "--global-batch", "8"))
    check_text(cli("show", "plan.json"))
