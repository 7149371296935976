"""`autopart profiles`, and `--profile` with a name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autopart.records.built_in_profiles import built_in_profiles
from autopart.records.plan import load_plan

Cli = Callable[..., Any]


def test_all_built_in_profiles_are_listed(cli: Cli, folder: Path) -> None:
    outcome = cli("profiles")
    assert outcome.code == 0
    assert all(one.name in outcome.out for one in built_in_profiles())
    document = cli("profiles", "--json").document
    assert [one["name"] for one in document["profiles"]] == [o.name for o in built_in_profiles()]


def test_one_profile_lists_its_files_and_degrees(cli: Cli, folder: Path) -> None:
    (one,) = cli("profiles", "llama-8b-h100", "--json").document["profiles"]
    assert (one["model"], one["device"], one["layers"]) == ("zoo:llama-8b", "h100-sxm", 36)
    assert one["microbatch_sizes"] == [1, 2] and one["tensor_degrees"] == [1, 2, 4, 8]
    assert all(Path(path).is_file() for path in one["files"])
    assert one["files"][0] in cli("profiles", "llama-8b-h100").out.replace("\n", "")


def test_a_plan_is_made_verified_and_simulated_by_a_profiles_name(cli: Cli, folder: Path) -> None:
    asked = ("--profile", "resnet-50-h100", "--gpus", "4", "--global-batch", "64")
    assert cli("solve", *asked).code == 0
    assert {size.microbatch_size for size in load_plan("plan.json").sizes} == {2, 8}
    assert cli("verify", "plan.json", "--profile", "resnet-50-h100").code == 0
    noisy = ("simulate", "plan.json", "--noise", "profile", "--draws", "2", "--profile")
    assert cli(*noisy, "resnet-50-h100").code == 0
    outcome = cli(*noisy, "unet-base-h100")
    assert outcome.code == 1 and " or " in outcome.err and "the plan was made from" in outcome.err


def test_an_unknown_name_is_refused_with_near_ones(cli: Cli, folder: Path) -> None:
    for words in (("profiles", "llama-9b"), ("solve", "--profile", "llama-9b", "--gpus", "8")):
        outcome = cli(*words)
        assert outcome.code == 1 and outcome.err.count("\n") == 1
        assert "near names are llama-8b" in outcome.err
