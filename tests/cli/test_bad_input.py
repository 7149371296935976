"""Files and options that cannot be used: one line on stderr, a code, and nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopart.profile import save_profile
from tests.samples import sample_profile

Cli = Callable[..., object]


def _refused(outcome: Any, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    errors = [line for line in outcome.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), outcome.err
    for word in words:
        assert word in errors[0]


def _edited(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_missing_file_is_named(cli: Cli) -> None:
    _refused(cli("show", "absent.json"), 1, "absent.json", "no such file")
    _refused(cli("simulate", "absent.json"), 1, "absent.json", "no such file")
    _refused(cli("verify", "absent.json", "--profile", "p.json"), 1, "absent.json")
    _refused(cli("solve", "--gpus", "2", "--profile", "absent.json"), 1, "absent.json")
    _refused(cli("solve", "--gpus", "2", "--cluster", "c.json"), 1, "no profile here")


def test_a_truncated_file_is_refused_as_such(cli: Cli, plan_file: Path) -> None:
    plan_file.write_bytes(plan_file.read_bytes()[:-40])
    _refused(cli("show", "plan.json"), 1, "plan.json", "not a whole autopart-plan file")


def test_a_file_of_another_format_is_named_as_what_it_is(cli: Cli, plan_file: Path) -> None:
    _refused(cli("show", "profile.json"), 1, "autopart-profile")
    _refused(cli("solve", "--gpus", "2", "--profile", "plan.json"), 1, "autopart-plan")


def test_a_file_of_another_version_is_refused_by_name(cli: Cli, plan_file: Path) -> None:
    _edited(plan_file, lambda plan: plan.update(version=99))
    _refused(cli("show", "plan.json"), 1, "version 99")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda layer: layer.update(forward_time=-1.0), "forward_time"),
        (lambda layer: layer.pop("kind"), "kind"),
        (lambda layer: layer.update(colour="red"), "colour"),
        (lambda layer: layer.update(param_bytes="many"), "param_bytes"),
        (lambda layer: layer.update(param_bytes=0), "gradients"),
        (lambda layer: layer.update(name="h.1"), "h.1"),
        (lambda layer: layer.update(name="unheard.of"), "unknown layer 'h.0'"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused_with_the_place(
    cli: Cli, profile_file: Path, change: Callable[[Any], None], place: str
) -> None:
    _edited(profile_file, lambda profile: change(profile["graph"]["layers"][1]))
    _refused(cli("solve", "--gpus", "2"), 1, "profile.json", place)
    assert not Path("plan.json").exists()


def test_a_nan_is_refused(cli: Cli, profile_file: Path) -> None:
    text = profile_file.read_text().replace('"forward_time": 0.004', '"forward_time": NaN', 1)
    assert "NaN" in text
    profile_file.write_text(text)
    _refused(cli("solve", "--gpus", "2"), 1, "profile.json")


def test_an_edge_that_goes_backward_is_named(cli: Cli, profile_file: Path) -> None:
    def turn(profile: Any) -> None:
        profile["graph"]["values"][3]["consumers"] = ["embed"]

    _edited(profile_file, turn)
    _refused(cli("solve", "--gpus", "2"), 1, "back to 'embed'")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("--gpus 8 --nodes 3", ["8 GPUs do not divide evenly over 3 nodes", "--gpus 9"]),
        ("--gpus 8 --nodes 2 --gpus-per-node 2", ["2 nodes of 2 GPUs are 4 GPUs, not 8"]),
        ("--gpus 2 --gpu z100", ["unknown GPU 'z100'", "h100-sxm"]),
        ("--gpus 2 --global-batch 7", ["7", "microbatch of 2"]),
    ],
)
def test_a_contradiction_is_one_line_that_says_what_would_do(
    cli: Cli, profile_file: Path, asked: str, words: list[str]
) -> None:
    _refused(cli("solve", *asked.split()), 1, *words)
    assert not Path("plan.json").exists()


def test_no_counts_at_all_is_a_question_of_usage(cli: Cli, profile_file: Path) -> None:
    _refused(cli("solve"), 2, "--gpus 8 --nodes 2")
    _refused(cli("solve", "--nodes", "2"), 2, "--gpus-per-node")


def test_too_little_memory_says_the_least_that_would_do(cli: Cli, profile_file: Path) -> None:
    outcome = cli("solve", "--gpus", "2", "--memory", "1MiB")
    _refused(outcome, 3, "1.0 MiB", "the least that would do is")
    assert not Path("plan.json").exists()
    least = outcome.err.split("(")[1].split(" bytes")[0]
    assert cli("solve", "--gpus", "2", "--memory", least).code == 0


def test_more_stages_than_layers_is_infeasible(cli: Cli, profile_file: Path) -> None:
    _refused(cli("solve", "--gpus", "64", "--stages", "11"), 3, "10 layers")


def test_more_gpus_than_can_be_used_is_infeasible(cli: Cli, profile_file: Path) -> None:
    _refused(cli("solve", "--gpus", "64", "--global-batch", "2"), 3, "64 GPUs cannot be used")


def test_a_plan_never_replaces_a_file_of_another_format(cli: Cli, profile_file: Path) -> None:
    before = profile_file.read_bytes()
    _refused(cli("solve", "--gpus", "2", "-o", "profile.json"), 1, "profile.json", "-o")
    Path("notes.txt").write_text("mine")
    _refused(cli("solve", "--gpus", "2", "-o", "notes.txt"), 1, "no autopart-plan file")
    Path("folder").mkdir()
    _refused(cli("solve", "--gpus", "2", "-o", "folder"), 1, "folder")
    assert profile_file.read_bytes() == before
    assert Path("notes.txt").read_text() == "mine"


def test_a_plan_replaces_an_older_plan_and_leaves_nothing_beside_it(
    cli: Cli, plan_file: Path
) -> None:
    assert cli("solve", "--gpus", "2", "-o", "plan.json").code == 0
    assert sorted(path.name for path in Path().iterdir()) == ["plan.json", "profile.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan["stages"][0]["ranks"].append(9), "rank 9"),
        (lambda plan: plan["stages"][1]["layers"].append("embed"), "embed"),
        (lambda plan: plan["orders"].__setitem__(0, "0F0 0B0"), "rank 0 never runs"),
        (lambda plan: plan["orders"].__setitem__(0, "0X0"), "'0X0'"),
        (lambda plan: plan["stages"].clear(), "no stages"),
    ],
)
def test_a_plan_that_is_not_whole_is_refused(
    cli: Cli, plan_file: Path, change: Callable[[Any], None], words: str
) -> None:
    _edited(plan_file, change)
    _refused(cli("show", "plan.json"), 1, "plan.json: ", words)


def test_two_profiles_that_were_changed_at_once_do_not_confuse_a_folder_without_any(
    cli: Cli, folder: Path
) -> None:
    (folder / "broken.json").write_bytes(b"\xff\xfe not json")
    _refused(cli("solve", "--gpus", "2"), 1, "no profile here", "autopart profile")
    save_profile(sample_profile(), folder / "good.json")
    assert cli("solve", "--gpus", "2").code == 0
