import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import autopart
from autopart.records.profile import save_profile
from tests.support.places import SCHEMAS
from tests.support.samples import sample_profile

Cli = Callable[..., Any]
LINE = [
    "size",
    "--profile",
    "profile.json",
    "--tokens",
    "1e6",
    "--gpu",
    "cpu=0.5",
    "--global-batch",
    "8",
    "--gpus-per-node",
    "1",
    "--most-gpus",
    "4",
]


def test_the_front_and_the_proof_are_shown(cli: Cli, profile_file: Path) -> None:
    done = cli(*LINE, "--within", "1h")
    assert done.code == 0, done.err
    for words in ("the front of GPUs, days and cost", "fewest", "cheapest", "fastest", "no fewer"):
        assert words in done.out
    assert "1e+06 tokens of model.py in 1954 steps of 8 samples with 64 tokens each" in done.out
    assert "assumed: a sample has 64 tokens" in done.err
    assert max(map(len, done.out.splitlines())) <= 80


def test_the_document_and_the_file_have_one_schema(cli: Cli, profile_file: Path) -> None:
    done = cli(*LINE, "--json", "-o", "size.json", "--plans", "plans")
    schema = json.loads((SCHEMAS / "size.json").read_text())
    jsonschema.validate(done.document, schema)
    folder = profile_file.parent
    written = json.loads((folder / "size.json").read_text())
    assert written == done.document
    sizing = autopart.load_sizing(folder / "size.json")
    for own in sizing.front:
        assert isinstance(own.file, str)
        plan = autopart.load_plan(folder / own.file)
        assert plan.prediction.step_time == own.step_time
        checks = autopart.verify(plan, autopart.load_profile(profile_file))
        assert all(check.passed for check in checks)


def test_a_cluster_file_has_a_price_too(cli: Cli, profile_file: Path) -> None:
    node = autopart.cluster_of("cpu", gpus=2)
    autopart.save_cluster(node, profile_file.parent / "own.json")
    line = [*LINE[:-4], "--counts", "1,2,4", "--tokens-per-sample", "10"]
    line[line.index("cpu=0.5")] = "own.json=2"
    done = cli(*line, "--plans", "plans", "--json")
    assert {own["gpus"] for own in done.document["counts"]} == {1, 2, 4}
    assert (profile_file.parent / "plans" / "own-1.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--tokens 0", 2, "--tokens 0: write a number above 0"),
        ("--gpu h100=2", 1, "did you mean h100-sxm"),
        ("--gpu l40s=2", 1, "autopart profile model.py --device meta --gpu l40s"),
        ("--gpu cpu=-1", 2, "cpu=-1 is no price"),
        ("--gpu cpu=nan", 2, "cpu=nan is no price"),
        ("--gpu cpu=much", 2, "'much' is no price of cpu"),
        ("--gpu cpu", 2, "'cpu' has no price"),
        ("--gpu cpu=1,cpu=2", 2, "cpu has two prices"),
        ("--within 0d", 2, "'0d' is no time to train in"),
        ("--within 30", 2, "write for example 30d"),
        ("--budget nan", 2, "--budget nan"),
        ("--global-batch 7", 1, "no multiple of the profile's microbatch of 2"),
        ("--budget 1e-9", 3, "the nearest is 1 cpu"),
        ("--within 1s", 3, "the nearest is 4 cpu"),
        ("--counts few", 2, "write numbers of GPUs such as 8,16,24"),
        ("--plans profile.json", 1, "it is no folder"),
        ("-o profile.json", 1, "it exists and is no autopart-size file"),
        ("--time-limit 0 --budget 1", 5, "not decided"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    cli: Cli, profile_file: Path, words: str, code: int, said: str
) -> None:
    line = [*LINE]
    option, value = words.split()[:2]
    if option in line:
        at = line.index(option)
        line[at : at + 2] = []
    done = cli(*line, *words.split())
    assert said in done.err
    assert done.code == code
    assert done.out == ""
    assert value and done.err.count("\n") == 1


def test_plans_are_never_written_over_other_files(cli: Cli, profile_file: Path) -> None:
    folder = profile_file.parent / "plans"
    folder.mkdir()
    save_profile(sample_profile(), folder / "cpu-1.json")
    done = cli(*LINE, "--plans", "plans")
    assert done.code == 1
    assert "cpu-1.json: it exists and is no autopart-plan file" in done.err
    assert [path.name for path in folder.iterdir()] == ["cpu-1.json"]
