"""`solve --target`: the plan has what a framework does, and an export for another one says so."""

from pathlib import Path

import pytest

from autopart.records.plan import load_plan
from tests.cli.conftest import Cli

ASKED = ("solve", "--gpus", "4", "--stages", "2", "--gpu", "h100-sxm", "--global-batch", "8")


def test_the_plan_and_one_line_say_what_the_framework_does(cli: Cli, profile_file: Path) -> None:
    outcome = cli(*ASKED, "--target", "megatron")
    assert outcome.code == 0
    told = [line for line in outcome.err.splitlines() if "Megatron-Core" in line]
    assert told == [
        "assumed: for Megatron-Core: --sync megatron, --sends rendezvous, --schedule 1f1b"
    ]
    plan = load_plan("plan.json")
    assert (plan.training.sync, plan.cluster.sends) == ("megatron", "rendezvous")
    assert plan.demands.schedules == ("1f1b",)
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0


def test_an_option_wins_over_the_target(cli: Cli, profile_file: Path) -> None:
    outcome = cli(*ASKED, "--target", "megatron", "--sync", "end", "--sends", "buffered")
    assert outcome.code == 0 and "for Megatron-Core: --schedule 1f1b" in outcome.err
    plan = load_plan("plan.json")
    assert (plan.training.sync, plan.cluster.sends) == ("end", "buffered")


def test_without_a_target_the_plan_is_the_executors(cli: Cli, profile_file: Path) -> None:
    outcome = cli(*ASKED)
    assert outcome.code == 0 and "--sync" not in outcome.err
    plan = load_plan("plan.json")
    assert (plan.training.sync, plan.cluster.sends) == ("end", "buffered")


@pytest.mark.parametrize("solved", ["megatron", "deepspeed", None])
def test_an_export_says_that_the_plan_was_solved_for_another_framework(
    cli: Cli, profile_file: Path, solved: str | None
) -> None:
    target = () if solved is None else ("--target", solved)
    assert cli(*ASKED, *target).code == 0
    maps = ("--map", "embed=embedding", "--map", "h.{i}=layers.{i}")
    outcome = cli("export", "plan.json", "--to", "deepspeed", *maps)
    assert outcome.code == 0
    said = [line for line in outcome.err.splitlines() if "--target deepspeed to predict" in line]
    assert len(said) == (solved != "deepspeed")
    word = {"megatron": "--sync megatron,", None: "--sync end, autopart run's,"}.get(solved, "")
    assert all(word in line for line in said)
