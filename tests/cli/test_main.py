import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import autopart
from autopart.cli.application import COMMANDS
from autopart.errors import AutopartError, ExportRefused, InfeasibleError, UsageError

Cli = Callable[..., object]


def test_autopart_without_arguments_lists_its_commands(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in outcome.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_a_real_example_of_the_command(cli: Cli, name: str) -> None:
    outcome = cli(name, "--help")
    assert outcome.code == 0
    last = outcome.out.rstrip().splitlines()[-1]
    assert last.startswith(f"  Example: autopart {name} ")
    assert "--json" in outcome.out


def test_the_version_option_prints_the_version_of_the_package(cli: Cli) -> None:
    assert cli("--version").out == f"autopart {autopart.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sovle"], "No such command 'sovle'"),
        (["solve", "--gpu-count", "8"], "No such option: --gpu-count"),
        (["show"], "Missing argument 'PLAN'"),
        (["solve", "--gpus", "many"], "--gpus"),
        (["solve", "--gpus", "0"], "--gpus"),
        (["solve", "--gpus", "8", "--memory", "80 apples"], "is not a size"),
        (["solve", "--gpus", "8", "--inter-bandwidth", "0GB/s"], "is not a bandwidth"),
        (["solve", "--gpus", "8", "--schedule", "zigzag"], "--schedule"),
    ],
)
def test_wrong_usage_gives_one_line_and_code_2(cli: Cli, arguments: list[str], words: str) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ")
    assert words in outcome.err


@pytest.mark.parametrize(
    ("kind", "code"),
    [(AutopartError, 1), (UsageError, 2), (InfeasibleError, 3), (ExportRefused, 4)],
)
def test_each_kind_of_error_has_its_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, kind: type[AutopartError], code: int
) -> None:
    def refuse(path: object) -> None:
        raise kind("the first line\n  and the second")

    monkeypatch.setattr("autopart.cli.show_command.load_plan", refuse)
    outcome = cli("show", "plan.json")
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err == "error: the first line and the second\n"


def test_a_bug_is_not_reported_as_a_mistake_of_the_user(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("autopart.cli.show_command.load_plan", fail)
    with pytest.raises(ZeroDivisionError):
        cli("show", "plan.json")


def test_memory_that_runs_out_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> None:
        raise MemoryError

    monkeypatch.setattr("autopart.cli.show_command.load_plan", fail)
    outcome = cli("show", "plan.json")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: memory ran out; ") and outcome.err.count("\n") == 1


def test_a_working_directory_that_is_gone_is_one_line(
    cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    outcome = cli("solve", "--gpus", "2")
    assert outcome.code == 1
    assert outcome.err.startswith("error: the working directory is gone; ")
    assert outcome.err.count("\n") == 1


@pytest.mark.slow
def test_python_dash_m_runs_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autopart", "show", "absent.json"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1
    assert done.stderr == "error: absent.json: there is no such file\n"


def test_planning_never_imports_torch() -> None:
    """The planner must run where torch is not installed, such as the login node of a cluster."""
    program = (
        "import sys, autopart.cli.application\n"
        "autopart.cli.application.app()\n"
        "sys.exit(any(name.partition('.')[0] == 'torch' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=600)
    assert done.returncode == 0
