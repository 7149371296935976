import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autopart.records.profile import save_profile
from tests.support.places import SCHEMAS
from tests.support.samples import sample_profile

Cli = Callable[..., Any]
LINE = ("explain", "plan.json", "--profile", "profile.json")


def test_what_binds_and_what_changes_are_worth(cli: Cli, plan_file: Path) -> None:
    done = cli(*LINE)
    assert done.code == 0, done.err
    for words in (
        "critical path",
        "is busy for",
        "is fullest",
        "above the lower bound",
        "solved again",
    ):
        assert words in done.out
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_document_has_a_schema(cli: Cli, plan_file: Path) -> None:
    document = cli(*LINE, "--what-if", "memory=2x", "--json").document
    jsonschema.validate(document, json.loads((SCHEMAS / "explain-summary.json").read_text()))
    assert [one["changes"] for one in document["what_if"]] == [{"memory": "2x"}]
    path = sum(share["seconds"] for share in document["path"])
    assert path == pytest.approx(document["step_time"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--what-if memroy=2x", 2, "did you mean memory?"),
        ("--what-if nodes=1.3x", 2, "whole number"),
        ("--what-if objective=speed", 1, "unknown objective 'speed'"),
        ("--what-if global-batch=15", 1, "no multiple of"),
        ("--what-if host-memory=+1GiB", 2, "has no value yet"),
    ],
)
def test_changes_that_cannot_be_made_are_refused_in_one_line(
    cli: Cli, plan_file: Path, words: str, code: int, said: str
) -> None:
    done = cli(*LINE, *words.split())
    assert said in done.err
    assert done.err.count("\n") == 1
    assert done.code == code


def test_another_profile_is_refused(cli: Cli, plan_file: Path, folder: Path) -> None:
    save_profile(sample_profile(microbatch_size=4), folder / "other.json")
    done = cli("explain", "plan.json", "--profile", "other.json")
    assert done.code == 1
    assert "was made from profile" in done.err
