"""Ctrl-C during a solve: the best plan so far, or an end at once."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

import autopart
from autopart.certificate.verify import verify
from autopart.cli import solve_command
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile, save_profile
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.planner import solve
from autopart.search.progress import told_to
from tests.cli.conftest import Cli
from tests.support.places import ROOT
from tests.support.problems import chain_graph, cluster, layer, profile

LLAMA = ROOT / "profiles" / "llama-8b-h100-sxm-mb2.json"


def uneven_profile() -> autopart.Profile:
    """Twelve layers that differ, so that a search with `auto` goes on after its first plan."""
    return profile(chain_graph(*(layer(f"l{i}", forward_time=1 + i % 5 / 7) for i in range(12))))


def press_ctrl_c(times: int) -> Callable[[float], None]:
    """A listener that presses Ctrl-C so many times when the first plan is found."""
    pressed = 0

    def listener(_seconds: float) -> None:
        nonlocal pressed
        while pressed < times:
            pressed += 1
            signal.raise_signal(signal.SIGINT)

    return listener


def test_ctrl_c_gives_the_best_plan_so_far_with_a_gap_that_is_verified() -> None:
    given = uneven_profile()
    with told_to(press_ctrl_c(1)):
        hasty = solve(given, cluster(1, 4), num_microbatches=8, schedule="auto")
    assert all(check.passed for check in verify(hasty, given))
    whole = solve(given, cluster(1, 4), num_microbatches=8)
    assert hasty.certificate.lower_bound <= whole.prediction.step_time


def test_a_second_ctrl_c_ends_a_search_at_once() -> None:
    with told_to(press_ctrl_c(2)), pytest.raises(KeyboardInterrupt):
        solve(uneven_profile(), cluster(1, 4), num_microbatches=8, schedule="auto")


@pytest.mark.parametrize(("times", "code"), [(1, 0), (2, 130)])
def test_the_command_takes_the_plan_or_ends_without_a_file(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch, times: int, code: int
) -> None:
    @contextmanager
    def pressing(_objective: str, _: float) -> Generator[Callable[[float], None]]:
        yield press_ctrl_c(times)

    monkeypatch.setattr(solve_command, "search_line", pressing)
    save_profile(uneven_profile(), folder / "profile.json")
    outcome = cli(
        "solve", "--gpus", "4", "--memory", "80GiB", "--intra-bandwidth", "100GB/s",
        "--global-batch", "8", "--schedule", "auto",
    )  # fmt: skip
    assert outcome.code == code, outcome.err
    written = sorted(path.name for path in folder.iterdir())
    if code == 0:
        assert re.search(r"interrupted after [\d.]+ s: the best plan so far", outcome.err)
        assert written == ["plan.json", "profile.json"]
        assert all(check.passed for check in verify(load_plan(Path("plan.json")), uneven_profile()))
    else:
        assert "stopped from the keyboard" in outcome.err
        assert written == ["profile.json"]


def test_ctrl_c_before_the_first_plan_ends_the_search_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pressing(self: BranchAndBound, _until: float) -> None:
        signal.raise_signal(signal.SIGINT)

    # Nothing is found: the phases that would find something press Ctrl-C.
    monkeypatch.setattr(BranchAndBound, "_visit_shapes", pressing)
    with pytest.raises(KeyboardInterrupt):
        solve(uneven_profile(), cluster(1, 4), num_microbatches=8)


def wait_for(terminal: int, said: str, seconds: float) -> str:
    """Everything that comes over a terminal until it says something; fails after `seconds`."""
    until, heard = time.monotonic() + seconds, ""
    while said not in heard:
        ready, _, _ = select.select([terminal], [], [], max(0.0, until - time.monotonic()))
        assert ready, f"'{said}' was not said in {seconds} s: {heard}"
        heard += os.read(terminal, 4096).decode()
    return heard


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of its own")
def test_a_real_ctrl_c_on_a_terminal_ends_a_long_search_with_its_plan(tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    # So many choices take minutes; the first plan takes about a second.
    command = [
        *(sys.executable, "-m", "autopart", "solve", "--profile", str(LLAMA)),
        *("--gpus", "64", "--nodes", "8", "--schedule", "auto", "--recompute", "auto"),
        *("--offload", "auto", "--microbatch-size", "1,2,4,8", "--global-batch", "512"),
        *("--time-limit", "3000", "-o", str(tmp_path / "plan.json")),
    ]
    environment = os.environ | {"COLUMNS": "200", "TERM": "xterm"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    ) as process:
        try:
            wait_for(ours, "Ctrl-C takes this plan", seconds=600)
            process.send_signal(signal.SIGINT)
            heard = wait_for(ours, "the best plan so far, with the gap", seconds=600)
            out, _ = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 0, heard
    assert "interrupted after" in heard and "plan written to" in out
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    plan = load_plan(tmp_path / "plan.json")
    checks = verify(plan, load_profile(LLAMA))
    assert all(check.passed for check in checks), checks[-1]
    assert plan.certificate.gap is not None and plan.certificate.gap > 0
