import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.places import SCHEMAS

Cli = Callable[..., Any]

BASE = (
    "import-plan",
    "megatron",
    "--profile",
    "profile.json",
    "--gpus",
    "2",
    "--global-batch",
    "8",
)


def test_a_layout_becomes_a_plan_that_verify_proves(cli: Cli, profile_file: Path) -> None:
    done = cli(*BASE, "--layout", "Et*2|t*4L", "-o", "own.json")
    assert done.code == 0, done.err
    assert "your layout beside the best plans" in done.out
    assert "above the lower bound" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert cli("verify", "own.json", "--profile", "profile.json").code == 0


def test_the_document_has_the_best_plans_beside_it(cli: Cli, profile_file: Path) -> None:
    done = cli(*BASE, "--layout", "Et*2|t*4L", "--json")
    jsonschema.validate(
        done.document, json.loads((SCHEMAS / "import-plan-summary.json").read_text())
    )
    document = done.document
    assert [len(stage["layers"]) for stage in document["stages"]] == [3, 7]
    slower = document["step_time"] / document["best"]["step_time"] - 1
    assert document["best"]["slower"] == pytest.approx(slower)
    assert document["best"]["moved"] is None
    assert set(document["same_shape"]["moved"]) <= {f"h.{i}" for i in range(6)}


@pytest.mark.parametrize(
    ("framework", "layout"),
    [
        ("torchtitan", '[["embed", "h.0", "h.1", "h.2"], ["h.3", "h.4", "h.5", "norm", "head"]]'),
        ("deepspeed", "0,4,9"),
        ("vllm", "3,3"),
        ("device-map", '{"embed": 0, "h.0": 0, "h.1": 0, "h.2": 0, "h": 1, "norm": 1, "head": 1}'),
    ],
)
def test_all_frameworks_words_give_the_same_stages(
    cli: Cli, folder: Path, profile_file: Path, framework: str, layout: str
) -> None:
    (folder / "layout.txt").write_text(layout)
    line = ("import-plan", framework, *BASE[2:], "--file", "layout.txt", "--json")
    assert [len(stage["layers"]) for stage in cli(*line).document["stages"]] == [4, 6]


def test_counts_of_the_first_and_last_rank(cli: Cli, profile_file: Path) -> None:
    line = (*BASE, "--pipeline-size", "2", "--first-layers", "4", "--json")
    assert [len(stage["layers"]) for stage in cli(*line).document["stages"]] == [5, 5]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--layout Et*2|t*3L", "leaves out 1 unit of the model: 'layers.5'"),
        ("--layout Et*2|t*5L", "names 1 unit that no layer has: 'layers.6'"),
        ("", "name the layout once"),
        ("--first-layers 3", "--first-layers needs --pipeline-size"),
        ("--pipeline-size 4", "6 layers cannot be shared by 4 ranks"),
        ("--layout Et*3|t*3L --gpus 3", "does not divide 3 GPUs"),
        ("--layout Et*3|t*3L --memory 1KiB", "the given stages do not fit"),
        ("--file absent.txt", "there is no such file"),
    ],
)
def test_a_layout_that_cannot_be_a_plan_is_refused_in_one_line(
    cli: Cli, folder: Path, profile_file: Path, words: str, said: str
) -> None:
    done = cli(*BASE, *words.split(), "-o", "own.json")
    assert done.code != 0
    assert said in done.err
    assert not (folder / "own.json").exists()
