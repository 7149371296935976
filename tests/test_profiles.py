"""Profiles in the repository: each loads, is solvable, and stands on the profiles' page."""

import json
from pathlib import Path

import msgspec
import pytest

import autopart
from autopart.cli.main import exit_code
from autopart.records.graph_check import check_graph
from autopart.records.rank_group import group_size
from autopart.runtime.profiling.devices import software_versions
from autopart.runtime.profiling.profiled_model import prepare_model
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
def test_a_profile_loads_and_is_analytic_unless_it_is_of_a_cpu(path: Path) -> None:
    profile, file = autopart.load_profile(path), SCRIPT.FILES[path.name]
    check_graph(profile.graph)
    if file.device == "cpu":
        assert (profile.method, profile.device.kind, profile.device.threads) == (
            "measured",
            "cpu",
            1,
        )
        assert profile.pace is not msgspec.UNSET and profile.pace.threads == 1
    else:
        assert profile.method == "analytic"
        assert (profile.device.kind, profile.device.name) == ("meta", file.device)
    assert profile.microbatch_size == file.microbatch_size
    asked = SCRIPT.MODELS[file.model].degrees
    degrees = sorted({variant.group.tensor for variant in profile.variants})
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
    assert group_size(plan.group) > 1
    assert all(check.passed for check in autopart.verify(plan, profile))


def test_the_profiles_page_lists_each_with_its_size() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        profile = autopart.load_profile(path)
        degrees = sorted({1} | {variant.group.tensor for variant in profile.variants})
        sizes = f"{profile.source.num_params:,} | {len(profile.graph.layers)} | {profile.dtype}"
        listed = ", ".join(map(str, degrees))
        assert f"| [{path.name}]({path.name}) | {sizes} | {listed} |" in page


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["gpt2", *long_tests("encdec", "llama", "moe", "resnet"), "unet", "mlp"]
)
def test_a_measured_profile_has_the_graph_that_its_model_has_now(model: str) -> None:
    profile = autopart.load_profile(FOLDER / f"{model}-tiny-cpu-mb4.json")
    if profile.source.software["torch"] != software_versions()["torch"]:
        pytest.skip("the profile was written with another torch")
    now = prepare_model(
        profile.source.model, 4, dtype=profile.dtype, device="cpu", granularity="block"
    ).captured
    assert profile.source.graph_hash == now.graph_hash
    assert [la.name for la in profile.graph.layers] == [la.name for la in now.layers]


@pytest.mark.slow
def test_a_built_in_cpu_profile_plans_and_runs_at_the_pace_of_this_machine() -> None:
    profile = autopart.load_profile(FOLDER / "mlp-tiny-cpu-mb4.json")
    plan = autopart.solve(profile, autopart.cluster_of("cpu", gpus=2), num_stages=2)
    assert plan.origin.pace == profile.pace
    found = autopart.validate_plan(plan, "zoo:mlp-tiny", one_device=True, steps=1, device="cpu")
    assert found is not None and found.fidelity.pace is not None
    assert found.fidelity.pace.slowdown is not None
    # The factor from the profile's pace to this machine's stands beside each action.
    assert all(one.error_at_pace is not None for one in found.fidelity.actions)


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
