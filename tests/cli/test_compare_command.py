import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from autopart.records.profile import save_profile
from tests.support.places import SCHEMAS
from tests.support.samples import sample_profile

Cli = Callable[..., Any]


@pytest.fixture
def slower(cli: Cli, plan_file: Path, folder: Path) -> Path:
    """A plan for the same model whose step is longer: one layer has moved."""
    asked = "--gpus 4 --nodes 2 --stages 2 --replicas 2 --global-batch 16 -o slower.json"
    pins = ["--pin", "h.0=0", "--pin", "h.1=1", "--same-stage", "h.1,h.2"]
    assert cli("solve", *asked.split(), *pins).code == 0
    return folder / "slower.json"


def test_the_exit_code_says_whether_the_first_plan_is_at_least_as_good(
    cli: Cli, slower: Path
) -> None:
    good = cli("compare", "plan.json", "slower.json")
    assert good.code == 0
    assert "plan.json is at least as fast as the others" in good.out
    assert max(map(len, good.out.splitlines())) <= 80
    bad = cli("compare", "slower.json", "plan.json")
    assert bad.code == 1
    assert "plan.json is the fastest, by" in bad.out
    assert cli("compare", "slower.json", "plan.json", "--within", "100%").code == 0


def test_the_document_has_a_schema(cli: Cli, slower: Path) -> None:
    document = cli("compare", "plan.json", "slower.json", "--json").document
    jsonschema.validate(document, json.loads((SCHEMAS / "compare-summary.json").read_text()))
    assert document["first_is_best"] is True
    assert document["plans"][1]["moved"]


def test_profiles_are_compared_layer_by_layer(cli: Cli, profile_file: Path, folder: Path) -> None:
    profile = sample_profile()
    layers = list(profile.graph.layers)
    layers[2] = msgspec.structs.replace(layers[2], forward_time=2 * layers[2].forward_time)
    layers[3] = msgspec.structs.replace(layers[3], name="renamed")
    graph = msgspec.structs.replace(profile.graph, layers=tuple(layers), values=(), tied=())
    save_profile(msgspec.structs.replace(profile, graph=graph), folder / "other.json")
    done = cli("compare", "--profiles", "profile.json", "other.json")
    assert done.code == 0, done.err
    assert "3 layers of 11 changed" in done.out
    assert "new" in done.out and "gone" in done.out
    assert cli("compare", "--profiles", "other.json", "profile.json").code == 1
    document = cli("compare", "--profiles", "profile.json", "other.json", "--json").document
    schema = json.loads((SCHEMAS / "profile-changes-summary.json").read_text())
    jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan.json", "1 plan given"),
        ("plan.json profile.json", "its format is 'autopart-profile'"),
        ("--profiles profile.json", "1 profile given"),
        ("--profiles profile.json plan.json", "its format is 'autopart-plan'"),
        ("plan.json absent.json", "there is no such file"),
    ],
)
def test_files_that_cannot_be_compared_are_refused_in_one_line(
    cli: Cli, plan_file: Path, words: str, said: str
) -> None:
    done = cli("compare", *words.split())
    assert done.code in (1, 2)
    assert said in done.err
    assert done.err.count("\n") == 1
