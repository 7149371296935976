"""Microbatch sizes and the bottleneck on the command line."""

from pathlib import Path

import pytest

from autopart.records.microbatch_sizes import scale_profile
from autopart.records.profile import load_profile, save_profile
from tests.cli.conftest import Cli

ASKED = ("solve", "--gpus", "4", "--global-batch", "16")


@pytest.fixture
def two_profiles(profile_file: Path) -> tuple[str, ...]:
    """Options that name the sample profile with microbatch size 2, and a profile with size 4."""
    save_profile(scale_profile(load_profile(profile_file), 4), profile_file.parent / "four.json")
    return ("--profile", "profile.json", "--profile", "four.json")


@pytest.mark.slow
def test_two_profiles_are_searched_and_verified_together(cli: Cli, two_profiles: tuple[str, ...]):
    solved = cli(*ASKED, *two_profiles, "--json")
    assert solved.code == 0, solved.err
    assert solved.document["profile"] == "profile.json, four.json"
    assert [size["microbatch_size"] for size in solved.document["sizes"]] == [2, 4]
    assert solved.document["gap"] == 0 and "scaled" not in solved.err
    assert cli("verify", "plan.json", *two_profiles).code == 0
    alone = cli("verify", "plan.json", "--profile", "profile.json")
    assert alone.code == 1 and "FAILED" in alone.out
    assert "warning: microbatch sizes" not in solved.err
    assert "microbatch sizes searched: 2, 4" in cli("show", "plan.json").out


@pytest.mark.slow
def test_sizes_without_a_profile_are_scaled_with_a_warning(cli: Cli, profile_file: Path):
    done = cli(*ASKED, "--profile", "profile.json", "--microbatch-size", "1,2,8")
    assert done.code == 0, done.err
    assert "warning: scaled, not measured, are microbatch sizes 1 from 2, 8 from 2" in done.err
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        ("1,x", 2, "'1,x' is no list of counts"),
        ("0", 2, "no list of counts"),
        ("2,2", 1, "microbatch size 2 is given twice"),
        ("2,5", 1, "microbatches of 5 (2 do divide it)"),
    ],
)
def test_invalid_microbatch_sizes_are_refused(
    option: str, code: int, words: str, cli: Cli, profile_file: Path
):
    done = cli(*ASKED, "--microbatch-size", option)
    assert done.code == code and words in done.err
    assert not Path("plan.json").exists()


@pytest.mark.slow
def test_the_output_names_the_bottleneck_as_the_objective(cli: Cli, profile_file: Path):
    done = cli(*ASKED, "--objective", "bottleneck", "--stages", "4")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "solved for the bottleneck: the busiest rank is busy for" in said
    assert "bottleneck ms" in said
    shown = cli("show", "plan.json", "--json").document
    assert shown["objective"] == "bottleneck" and shown["gap"] == 0
    assert shown["bottleneck_time"] == pytest.approx(shown["lower_bound"])
    assert shown["bottleneck_time"] < shown["step_time"]
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0
