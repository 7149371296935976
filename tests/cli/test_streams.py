"""Standard streams that are closed, full or in ASCII: no traceback, and files stay whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopart.records.plan import load_plan, save_plan
from autopart.records.profile import save_profile
from tests.support.samples import sample_plan, sample_profile

FULL = Path("/dev/full")
AUTOPART = (sys.executable, "-m", "autopart")
SHOW = ("show", "plan.json")
SOLVE = (
    "solve",
    "--gpus",
    "2",
    "--global-batch",
    "8",
    "--profile",
    "profile.json",
    "-o",
    "new.json",
)

needs_full = pytest.mark.skipif(not FULL.exists(), reason="there is no full device")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a plan and a profile."""
    save_plan(sample_plan(), tmp_path / "plan.json")
    save_profile(sample_profile(), tmp_path / "profile.json")
    return tmp_path


def run(folder: Path, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(  # type: ignore[call-overload]
        [*AUTOPART, *arguments], cwd=folder, text=True, timeout=600, **options
    )


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [SHOW, (*SHOW, "--json"), ("--help",)])
def test_a_reader_that_is_gone_ends_a_command_without_a_word(
    folder: Path, arguments: tuple[str, ...]
) -> None:
    done = run(folder, *arguments, stdout=closed_pipe())
    assert done.returncode == 141
    assert "Traceback" not in done.stderr and "error" not in done.stderr


@pytest.mark.slow
@needs_full
@pytest.mark.parametrize("arguments", [(*SHOW, "--json"), SOLVE])
def test_a_full_device_is_one_line(folder: Path, arguments: tuple[str, ...]) -> None:
    with FULL.open("w") as full:
        done = run(folder, *arguments, stdout=full)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert said == ["error: stdout cannot be written: No space left on device"]
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    if arguments is SOLVE:
        load_plan(folder / "new.json")


@pytest.mark.slow
@needs_full
def test_a_full_stderr_keeps_the_exit_code(folder: Path) -> None:
    with FULL.open("w") as full:
        assert run(folder, "show", "absent.json", stderr=full).returncode == 1
        assert run(folder, "solve", "--gpus", "0", stderr=full).returncode == 2
        assert run(folder, *SHOW, stderr=full).returncode == 0


@pytest.mark.slow
def test_closed_descriptors_never_become_files(folder: Path) -> None:
    command = " ".join(AUTOPART)
    done = subprocess.run(
        ["sh", "-c", f"{command} {' '.join(SOLVE)} 0<&- 1>&- 2>&-"], cwd=folder, timeout=600
    )
    assert done.returncode == 0
    load_plan(folder / "new.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)  # fmt: skip
def test_an_ascii_terminal_gets_ascii(folder: Path, environment: dict[str, str]) -> None:
    (folder / "Modell-ü-层.json").write_bytes((folder / "plan.json").read_bytes())
    for arguments in (SHOW, ("show", "Modell-ü-层.json"), ("show", "absent-ü.json")):
        done = run(folder, *arguments, env=os.environ | environment)
        assert done.returncode == (1 if "absent" in arguments[1] else 0), done.stderr
        assert done.stdout.isascii() and done.stderr.isascii()
        assert "Traceback" not in done.stderr
    done = run(folder, "show", "Modell-ü-层.json", "--json", env=os.environ | environment)
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["plan"] == "Modell-ü-层.json"
