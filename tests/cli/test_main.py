import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import autopart
from autopart.cli.application import COMMANDS
from autopart.errors import AutopartError, ExportRefused, InfeasibleError, UsageError

Cli = Callable[..., object]


def test_autopart_without_arguments_shows_the_main_path_in_three_lines(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code == 0 and outcome.err == ""
    lines = outcome.out.splitlines()
    shown = [line.split()[1] for line in lines if line.startswith("  autopart ")]
    assert shown == ["profile", "solve", "run"]
    assert "autopart --help" in lines[-1] and max(map(len, lines)) <= 80


def test_the_help_lists_all_commands_and_how_to_complete_them(cli: Cli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0 and "--install-completion" in outcome.out
    for name in COMMANDS:
        assert f"\n  {name} " in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "words", "expected"),
    [
        ("bash", "autopart so", {"solve"}),
        ("bash", "autopart exp", {"explain", "export"}),
        ("bash", "autopart solve --glob", {"--global-batch"}),
        ("bash", "autopart profile zoo:gpt2-tiny --device m", {"meta"}),
        ("zsh", "autopart ver", {"verify"}),
        ("fish", "autopart ver", {"verify"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(
    shell: str, words: str, expected: set[str]
) -> None:
    asked = {
        "_AUTOPART_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv[0] = 'autopart'\n"
         "from autopart.cli.main import main; main()"],
        env=os.environ | asked,
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert expected <= set(re.findall(r"-*[a-z][\w-]*", done.stdout)), done.stdout
    assert "Traceback" not in done.stderr and "run" not in done.stdout.split()


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("sovle", "Did you mean 'solve'?"),
        ("solve --nodez 8", "--nodes"),
        (
            "solve --gpus 8 --recompute autoo",
            "unknown 'autoo'; did you mean auto? known: never, auto",
        ),
        ("solve --gpus 8 --schedule 1f1bb", "did you mean 1f1b?"),
        ("solve --profile llama-8b-h100-sxm-mb --gpus 8", "near names are llama-8b-h100-sxm"),
        ("solve --profile gpt2-tiny-cpu --gpus 8 --gpu h10-sxm", "did you mean h100-sxm?"),
        ("solve --profile gpt2-tiny-cpu --gpus 8 --cluster dgx-h10", "did you mean dgx-h100?"),
        ("solve --profile gpt2-tiny-cpu --gpus 2 --optimizer adam", "did you mean adamw?"),
        ("profile zoo:gpt2-tinyy", "did you mean gpt2-tiny?"),
        ("profile zoo:gpt2-tiny --device mta", "did you mean meta?"),
        ("import pipr x.json", "did you mean piper?"),
        ("bottleneck pipr x.json", "did you mean piper?"),
        ("import-plan megatro --layout x", "did you mean megatron?"),
        ("export plan.json --to torchtian", "did you mean torchtitan?"),
        ("run plan.json zoo:gpt2-tiny --asynchronous pipdream", "did you mean pipedream?"),
        ("calibrate from-step x.csv", "did you mean from-steps?"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_one(cli: Cli, line: str, suggested: str) -> None:
    outcome = cli(*line.split())
    assert outcome.code in (1, 2) and outcome.out == ""
    assert outcome.err.rstrip().splitlines()[-1].startswith("error: ")
    assert suggested in outcome.err, outcome.err


def test_wrong_usage_names_the_help_of_its_command(cli: Cli) -> None:
    assert cli("solve", "--nodez", "8").err.endswith("see 'autopart solve --help'\n")


@pytest.mark.slow
def test_colours_are_for_terminals_and_obey_the_environment(tmp_path: Path) -> None:
    """Bold heads are no colours; NO_COLOR leaves them to those who force a terminal."""

    def printed(**asked: str) -> str:
        plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
        done = subprocess.run(
            [sys.executable, "-m", "autopart", "clusters"],
            env=plain | {"TERM": "xterm-256color"} | asked,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stderr == ""
        return done.stdout

    piped = printed()
    assert "\x1b" not in piped
    forced = printed(FORCE_COLOR="1")
    assert "\x1b[" in forced and re.sub(r"\x1b\[[\d;]*m", "", forced) == piped
    assert not re.search(r"\x1b\[[\d;]*[349]\d[;m]", printed(FORCE_COLOR="1", NO_COLOR="1"))
    assert printed(NO_COLOR="1") == piped


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
