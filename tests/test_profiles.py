"""Profiles in the repository: each loads, is solvable, and stands on the profiles' page."""

import json
from pathlib import Path

import pytest

import autopart
from autopart.cli.main import exit_code
from autopart.records.graph_check import check_graph
from autopart.records.tensor_degree import degree_of
from tests.support.long_tests import long_tests
from tests.support.places import ROOT
from tests.support.scripts import load_script

FOLDER = ROOT / "profiles"
SCRIPT = load_script("make_profiles")
FILES = sorted(FOLDER.glob("*.json"))
SMALL = [path for path in FILES if path.stem.endswith("h100-sxm-mb2") and "70b" not in path.stem]
"""Profiles of models that fit on four GPUs."""


def test_the_script_makes_every_profile_in_the_folder() -> None:
    assert {path.name for path in FILES} == set(SCRIPT.FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_profile_loads_and_is_analytic(path: Path) -> None:
    profile, file = autopart.load_profile(path), SCRIPT.FILES[path.name]
    check_graph(profile.graph)
    assert profile.method == "analytic"
    assert (profile.device.kind, profile.device.name) == ("meta", file.gpu)
    assert profile.microbatch_size == file.microbatch_size
    asked = SCRIPT.MODELS[file.model].degrees
    degrees = sorted({variant.degree for variant in profile.variants})
    assert degrees == [int(degree) for degree in asked.split(",") if degree]


@pytest.mark.usefixtures("processor_clock")
@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_profile_is_solved_in_four_stages_with_a_bound(path: Path) -> None:
    profile = autopart.load_profile(path)
    cluster = autopart.cluster_of("h100-sxm", gpus=4)
    plan = autopart.solve(profile, cluster, num_stages=4, recompute="auto", time_limit=20.0)
    assert len(plan.stages) == 4
    assert plan.certificate.lower_bound <= plan.prediction.step_time
    assert all(check.passed for check in autopart.verify(plan, profile))


@pytest.mark.slow
def test_llama_70b_is_planned_for_eight_gpus_with_a_tensor_degree() -> None:
    profile = autopart.load_profile(FOLDER / "llama-70b-h100-sxm-mb1.json")
    cluster = autopart.cluster_of("h100-sxm", gpus=16, nodes=2)
    plan = autopart.solve(profile, cluster, tensor="auto", recompute="auto", zero1=True)
    assert degree_of(plan.tensor) > 1
    assert all(check.passed for check in autopart.verify(plan, profile))


def test_the_profiles_page_lists_each_with_its_size() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        profile = autopart.load_profile(path)
        degrees = sorted({1} | {variant.degree for variant in profile.variants})
        sizes = f"{profile.source.num_params:,} | {len(profile.graph.layers)} | {profile.dtype}"
        listed = ", ".join(map(str, degrees))
        assert f"| [{path.name}]({path.name}) | {sizes} | {listed} |" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["resnet-50-h100-sxm-mb2", *long_tests("moe-small-a100-sxm-80gb-mb8")]
)
def test_the_script_writes_the_same_profile_again(model: str, tmp_path: Path) -> None:
    made, there = tmp_path / f"{model}.json", FOLDER / f"{model}.json"
    assert exit_code(SCRIPT.FILES[made.name].arguments(tmp_path)) == 0
    again, kept = json.loads(made.read_text()), json.loads(there.read_text())
    if again["source"]["software"] != kept["source"]["software"]:
        pytest.skip("the profile was written with other releases")
    assert {**again, "created": None} == {**kept, "created": None}
