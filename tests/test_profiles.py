"""Profiles in the repository: each loads, is solvable, and stands on the profiles' page."""

import json
from pathlib import Path

import pytest

import autopart
from autopart.cli.main import exit_code
from autopart.records.graph_check import check_graph
from tests.support.long_tests import long_tests
from tests.support.places import ROOT
from tests.support.scripts import load_script

FOLDER = ROOT / "profiles"
SCRIPT = load_script("make_profiles")
FILES = sorted(FOLDER.glob("*.json"))


def test_the_script_makes_every_profile_in_the_folder() -> None:
    assert {path.name for path in FILES} == set(map(SCRIPT.file_name, SCRIPT.DTYPES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_profile_loads_and_is_analytic(path: Path) -> None:
    profile = autopart.load_profile(path)
    check_graph(profile.graph)
    assert profile.method == "analytic"
    assert (profile.device.kind, profile.device.name) == ("meta", "h100-sxm")
    assert profile.microbatch_size == 2


@pytest.mark.usefixtures("processor_clock")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_profile_is_solved_in_four_stages_with_a_bound(path: Path) -> None:
    profile = autopart.load_profile(path)
    cluster = autopart.cluster_of("h100-sxm", gpus=4)
    plan = autopart.solve(profile, cluster, num_stages=4, recompute="auto", time_limit=20.0)
    assert len(plan.stages) == 4
    assert plan.certificate.lower_bound <= plan.prediction.step_time
    assert all(check.passed for check in autopart.verify(plan, profile))


def test_the_profiles_page_lists_each_with_its_size() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        profile = autopart.load_profile(path)
        figures = f"{profile.source.num_params:,} | {len(profile.graph.layers)} | {profile.dtype}"
        assert f"| [{path.name}]({path.name}) | {figures} |" in page


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet-50", *long_tests("moe-small")])
def test_the_script_writes_the_same_profile_again(model: str, tmp_path: Path) -> None:
    made, there = tmp_path / SCRIPT.file_name(model), FOLDER / SCRIPT.file_name(model)
    assert exit_code(SCRIPT.arguments(model, tmp_path)) == 0
    again, kept = json.loads(made.read_text()), json.loads(there.read_text())
    if again["source"]["software"] != kept["source"]["software"]:
        pytest.skip("the profile was written with other releases")
    assert {**again, "created": None} == {**kept, "created": None}
