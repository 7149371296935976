"""A bad file or option gives one line on stderr and an exit code, and writes no file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autopart.records.plan import load_plan
from autopart.records.profile import save_profile
from tests.support.samples import sample_profile
from tests.support.tensor_profiles import with_degrees

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


def test_a_plan_with_a_tensor_degree_is_shown_and_simulated_but_some_exports_refuse_it(
    cli: Cli, folder: Path
) -> None:
    save_profile(with_degrees(sample_profile(), 2), folder / "tensor.json")
    solved = cli("solve", "--gpus", "4", "--profile", "tensor.json", "--tensor", "2")
    assert solved.code == 0, solved.err
    assert cli("show", "plan.json").code == cli("simulate", "plan.json").code == 0
    assert cli("simulate", "plan.json", "--noise", "profile", "--profile", "tensor.json").code == 0
    assert cli("verify", "plan.json", "--profile", "tensor.json").code == 0
    _refused(cli("run", "plan.json", "zoo:mlp-tiny"), 2, "--nproc-per-node 4")
    _refused(cli("validate", "plan.json", "zoo:mlp-tiny"), 2, "--nproc-per-node 4")
    nearest = "the nearest plan has --tensor 1"
    for target in ("torch", "deepspeed", "device-map"):
        _refused(cli("export", "plan.json", "--to", target), 4, "tensor degree 2", nearest)


def test_a_tensor_degree_that_profile_or_node_lack_is_refused(cli: Cli, folder: Path) -> None:
    save_profile(with_degrees(sample_profile(), 2, 4), folder / "tensor.json")
    solve = ("solve", "--profile", "tensor.json", "--gpus", "2")
    _refused(cli(*solve, "--tensor", "8"), 1, "no tensor degree 8, only 1, 2, 2 with")
    _refused(cli(*solve, "--tensor", "4"), 1, "does not fill a node of 2 GPUs")
    _refused(cli(*solve, "--sequence-parallel", "on"), 1, "ask for one: --tensor auto")


def test_what_a_tensor_degree_per_stage_cannot_have_is_refused(cli: Cli, folder: Path) -> None:
    save_profile(sample_profile(), folder / "plain.json")
    save_profile(with_degrees(sample_profile(), 4), folder / "tensor.json")
    own = ("solve", "--gpus", "2", "--tensor", "per-stage", "--profile")
    _refused(cli(*own, "plain.json"), 1, "no tensor degree above 1, only 1", "--tensor 2,4,8")
    _refused(cli(*own, "tensor.json"), 1, "none of 1, 4, 4 with", "fills nodes of 2 GPUs")
    _refused(cli(*own, "tensor.json", "--objective", "bottleneck"), 1, "not the bottleneck")
    _refused(cli(*own, "tensor.json", "--replicas", "per-stage"), 1, "equal replicas")
    _refused(cli(*own, "tensor.json", "--target", "torch"), 1, "no --target takes several degrees")


def test_a_truncated_file_is_refused_with_its_path(cli: Cli, plan_file: Path) -> None:
    plan_file.write_bytes(plan_file.read_bytes()[:-40])
    _refused(cli("show", "plan.json"), 1, "plan.json", "not a whole autopart-plan file")


def test_a_file_in_another_format_is_refused_by_its_format(cli: Cli, plan_file: Path) -> None:
    _refused(cli("show", "profile.json"), 1, "autopart-profile")
    _refused(cli("solve", "--gpus", "2", "--profile", "plan.json"), 1, "autopart-plan")


def test_a_file_with_another_version_is_refused_by_its_version(cli: Cli, plan_file: Path) -> None:
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
def test_an_inconsistent_profile_is_refused_with_the_place(
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
        ("--gpus 8 --nodes 2 --gpus-per-node 2", ["2 nodes of 2 GPUs make 4 GPUs, not 8"]),
        ("--gpus 2 --gpu z100", ["unknown GPU 'z100'", "h100-sxm"]),
        ("--gpus 2 --global-batch 7", ["7", "microbatch of 2"]),
    ],
)
def test_contradicting_options_give_one_line_with_a_remedy(
    cli: Cli, profile_file: Path, asked: str, words: list[str]
) -> None:
    _refused(cli("solve", *asked.split()), 1, *words)
    assert not Path("plan.json").exists()


def test_a_command_without_counts_is_wrong_usage(cli: Cli, profile_file: Path) -> None:
    _refused(cli("solve"), 2, "--gpus 8 --nodes 2")
    _refused(cli("solve", "--nodes", "2"), 2, "--gpus-per-node")


def test_an_infeasible_problem_names_the_least_memory_that_would_do(
    cli: Cli, profile_file: Path
) -> None:
    outcome = cli("solve", "--gpus", "2", "--memory", "1MiB")
    _refused(outcome, 3, "1.0 MiB", "the least that would do is")
    assert not Path("plan.json").exists()
    least = outcome.err.split("(")[1].split(" bytes")[0]
    assert cli("solve", "--gpus", "2", "--memory", least).code == 0


def test_more_stages_than_layers_is_infeasible(cli: Cli, profile_file: Path) -> None:
    _refused(cli("solve", "--gpus", "64", "--stages", "11"), 3, "10 layers")


def test_too_few_layers_point_to_the_profile_s_warning(cli: Cli, folder: Path) -> None:
    warning = "model.py:7: the model branches by value, so it is one layer"
    save_profile(sample_profile(warnings=(warning,)), folder / "profile.json")
    _refused(cli("solve", "--gpus", "64", "--stages", "11"), 3, "10 layers", warning)
    assert warning not in cli("solve", "--gpus", "2", "--memory", "1MiB").err


def test_more_gpus_than_the_plan_can_use_stay_idle(cli: Cli, profile_file: Path) -> None:
    outcome = cli("solve", "--gpus", "64", "--global-batch", "2")
    assert outcome.code == 0, outcome.err
    plan = load_plan(Path("plan.json"))
    assert max(rank for stage in plan.stages for rank in stage.ranks) < 63


def test_a_plan_never_replaces_a_file_in_another_format(cli: Cli, profile_file: Path) -> None:
    before = profile_file.read_bytes()
    _refused(cli("solve", "--gpus", "2", "-o", "profile.json"), 1, "profile.json", "-o")
    Path("notes.txt").write_text("mine")
    _refused(cli("solve", "--gpus", "2", "-o", "notes.txt"), 1, "no autopart-plan file")
    Path("folder").mkdir()
    _refused(cli("solve", "--gpus", "2", "-o", "folder"), 1, "folder")
    assert profile_file.read_bytes() == before
    assert Path("notes.txt").read_text() == "mine"


def test_a_plan_replaces_an_older_plan_and_leaves_no_other_file(cli: Cli, plan_file: Path) -> None:
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
def test_an_incomplete_plan_is_refused(
    cli: Cli, plan_file: Path, change: Callable[[Any], None], words: str
) -> None:
    _edited(plan_file, change)
    _refused(cli("show", "plan.json"), 1, "plan.json: ", words)


def test_a_file_that_is_not_text_is_ignored_in_the_search_for_profiles(
    cli: Cli, folder: Path
) -> None:
    (folder / "broken.json").write_bytes(b"\xff\xfe not json")
    _refused(cli("solve", "--gpus", "2"), 1, "no profile here", "autopart profile")
    save_profile(sample_profile(), folder / "good.json")
    assert cli("solve", "--gpus", "2").code == 0


def test_a_search_out_of_time_has_its_own_exit_code_and_claims_nothing(
    cli: Cli, profile_file: Path
) -> None:
    outcome = cli("solve", "--gpus", "2", "--solver", "ilp", "--time-limit", "0")
    _refused(outcome, 5, "no plan was found within 0 s", "--time-limit")
    assert cli("solve", "--gpus", "2", "--solver", "ilp").code == 0


def test_a_denormal_bandwidth_is_wrong_usage_and_not_infeasible(
    cli: Cli, profile_file: Path
) -> None:
    for option in ("--inter-bandwidth", "--intra-bandwidth", "--host-bandwidth"):
        _refused(cli("solve", "--gpus", "2", option, "1e-310"), 2, option, "no bandwidth of a link")
    _refused(cli("solve", "--gpus", "2", "--memory", "1e300TiB"), 2, "too large a size")


def test_stages_per_rank_that_1f1b_never_has_are_no_pins(cli: Cli, profile_file: Path) -> None:
    outcome = cli("solve", "--gpus", "2", "--schedule", "1f1b", "--stages-per-rank", "2")
    _refused(outcome, 3, "1f1b", "stages per rank")
    assert "pin" not in outcome.err


def test_entries_that_are_no_profiles_are_skipped_and_told(cli: Cli, profile_file: Path) -> None:
    Path("folder.json").mkdir()
    os.mkfifo("pipe.json")
    outcome = cli("solve", "--gpus", "2")
    assert outcome.code == 0
    assert "warning: folder.json: skipped, it is no ordinary file" in outcome.err
    assert "warning: pipe.json: skipped, it is no ordinary file" in outcome.err


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ("--gpus 1000000", 1, "1000000 GPUs are too many; at most 262144"),
        ("--gpus 2 --memory-sweep 100000", 2, "--memory-sweep"),
        ("--gpus 2 --global-batch 1000000000", 1, "500000000 microbatches per step are too many"),
        ("--gpus 2 --global-batch 1" + "0" * 30, 1, "are too many; at most 1048576"),
        ("--gpus 2 --microbatch-size 1" + "0" * 30, 1, "is too large; at most 2147483648"),
        ("--gpus 2 --microbatch-size 2147483648", 1, "at most 1125899906842624 are planned for"),
        (
            "--gpus 9 --stages 9 --replicas 1 --global-batch 2000000", 1,
            "18000000 actions, and at most 4194304 are simulated",
        ),
    ],
)  # fmt: skip
def test_absurd_counts_are_refused_before_memory_is_taken(
    cli: Cli, profile_file: Path, asked: str, code: int, words: str
) -> None:
    _refused(cli("solve", *asked.split()), code, words)


def test_absurd_draws_are_refused_before_memory_is_taken(cli: Cli, plan_file: Path) -> None:
    asked = "simulate plan.json --noise 5% --draws 1000000000"
    _refused(cli(*asked.split()), 2, "1000000000 draws are too many", "draw at most")
