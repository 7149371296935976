"""The shared cases of wrong claims: each plan is refused, by the check that should see it."""

import json
from pathlib import Path

import msgspec
import pytest

from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.prediction import predict_again
from autopart.certificate.verify import verify
from autopart.errors import AutopartError
from autopart.exporters.targets import export_plan
from autopart.records.files import decode
from autopart.records.plan import FORMAT, VERSION, Plan, load_plan
from autopart.records.profile import load_profile, profile_hash
from tests.support.places import ROOT
from tests.support.shared_data import CASES, needs_cases

pytestmark = needs_cases

INPUTS = CASES / "inputs"
GOLDEN = ROOT / "tests" / "golden" / "profiles"


def unchecked(path: Path) -> Plan:
    """The plan in a file as `verify` reads it: decoded, not yet checked."""
    return decode(path.read_bytes(), Plan, FORMAT, VERSION, where=path.name)


@pytest.mark.parametrize(
    ("name", "check", "message"),
    [
        ("lie_dtype", "profile", "says dtype bfloat16, its profile says float32"),
        ("lie_only_custom", "demands", "does not cover the plan"),
    ],
)
def test_a_lie_is_refused(name: str, check: str, message: str):
    last = verify(unchecked(CASES / f"{name}.plan.json"), load_profile(CASES / "lie.profile.json"))[
        -1
    ]
    assert last.name == check and not last.passed and message in last.detail


def test_a_lie_about_the_gap_is_read_as_an_unknown_gap():
    """The file is of version 2, where every bound of 0 had gap 0. It has no such claim now."""
    plan = unchecked(CASES / "lie_bound0_gap0.plan.json")
    assert plan.certificate.lower_bound == 0 and plan.certificate.gap is None
    assert "gap 0.0 %" not in verify(plan, load_profile(CASES / "lie.profile.json"))[-1].detail


def test_a_lie_about_the_gap_in_this_version_is_refused():
    tree = json.loads((CASES / "lie_bound0_gap0.plan.json").read_text()) | {"version": VERSION}
    plan = decode(json.dumps(tree).encode(), Plan, FORMAT, VERSION, where="lie")
    assert plan.certificate.gap == 0
    profile = load_profile(CASES / "lie.profile.json")
    # The file's bytes are those of an earlier cost model.
    prediction = predict_again(PlanProblem(plan, [profile]))
    last = verify(msgspec.structs.replace(plan, prediction=prediction), profile)[-1]
    assert last.name == "bound" and not last.passed and "says gap 0.0" in last.detail


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cluster_contradicts_itself", "gpus lists 4 GPUs, but 1000 nodes of 4 would be 4000"),
        ("prediction_one_stage_short", "it has 1 predicted stages for 2 stages"),
        ("num_microbatches_3e8", "actions are too few for 300000000 microbatches"),
        ("send_time_1e308", r"Expected `float` <= 1000000000000.0 - at `\$.prediction.stages"),
    ],
)
def test_an_input_that_contradicts_itself_is_refused_when_it_is_read(name: str, message: str):
    with pytest.raises(AutopartError, match=message):
        load_plan(INPUTS / f"{name}.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("num_trainable_2e63", r"Expected `int` <= .* - at `\$.graph.layers\[0\].num_trainable`"),
        ("value_without_consumers", "value 'b.o' has no consumers"),
    ],
)
def test_an_altered_profile_is_refused_when_it_is_read(name: str, message: str):
    with pytest.raises(AutopartError, match=message):
        load_profile(INPUTS / f"{name}.json")


@pytest.mark.parametrize("target", ["torch", "deepspeed"])
def test_layers_backwards_are_not_exported(target: str):
    with pytest.raises(AutopartError, match="lists layer '4' before '3', and so backwards"):
        export_plan(load_plan(INPUTS / "reversed_layers.json"), target)


@pytest.mark.parametrize(
    "name",
    [
        "cluster_contradicts_itself",
        "prediction_one_stage_short",
        "num_microbatches_3e8",
        "layer_name_markup",
        "reversed_layers",
    ],
)
@pytest.mark.parametrize("profile", ["mlp-tiny", "gpt2-tiny"])
def test_no_input_passes_or_crashes_verify(name: str, profile: str):
    plan, own = unchecked(INPUTS / f"{name}.json"), load_profile(GOLDEN / f"{profile}.json")
    assert not all(check.passed for check in verify(plan, own))


def test_the_layers_of_a_stage_backwards_are_refused_by_name():
    """The plan's own profile is not at hand, so the plan is told that it was made from this one."""
    tree = json.loads((INPUTS / "reversed_layers.json").read_text())
    profile = msgspec.structs.replace(
        load_profile(GOLDEN / "mlp-tiny.json"), microbatch_size=tree["sizes"][0]["profiled_size"]
    )
    tree["origin"] |= {"profile_hash": profile_hash(profile), "method": profile.method}
    tree["origin"] |= {"model": profile.source.model, "graph_hash": profile.source.graph_hash}
    for size in tree["sizes"]:
        size["profile_hash"] = profile_hash(profile)
    plan = decode(json.dumps(tree).encode(), Plan, FORMAT, VERSION, where="reversed")
    last = verify(plan, profile)[-1]
    assert (last.name, last.passed) == ("layers", False)
    assert "and the profile has them the other way round" in last.detail
