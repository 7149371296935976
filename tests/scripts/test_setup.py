"""Scripts that a newcomer runs first."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.places import ROOT

TOOLS = ("bash", "dirname", "cmp", "cp", "rm")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with scripts and project file, and its own PATH in `bin` without Python."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / "bin" / tool).symlink_to(found)
    return tmp_path


def _set_up(clone: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "scripts/setup", "test"],
        cwd=clone,
        env={"PATH": str(clone / "bin")},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _fake_python(path: Path, *, new_enough: bool, log: Path) -> None:
    """A program that records its calls; with `-c` it answers whether it is new enough."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" = -c ] && exit {0 if new_enough else 1}\nexit 0\n'
    )
    path.chmod(0o755)


def test_set_up_without_a_new_enough_python_prints_a_remedy(clone: Path) -> None:
    _fake_python(clone / "bin" / "python3", new_enough=False, log=clone / "log")
    done = _set_up(clone)
    assert done.returncode == 1
    assert "no Python 3.11 or newer found" in done.stderr
    assert not (clone / ".venv").exists()


def test_set_up_reuses_an_environment_and_installs_into_it_once(clone: Path) -> None:
    _fake_python(clone / ".venv" / "bin" / "python", new_enough=True, log=clone / "log")
    assert _set_up(clone).returncode == 0
    assert _set_up(clone).returncode == 0
    calls = (clone / "log").read_text().splitlines()
    assert len(calls) == 1 and calls[0].endswith("-e .[test]")
    with (clone / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    assert _set_up(clone).returncode == 0
    assert len((clone / "log").read_text().splitlines()) == 2


def test_set_up_repeats_a_failed_installation(clone: Path) -> None:
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    assert _set_up(clone).returncode == 7
    _fake_python(python, new_enough=True, log=clone / "log")
    assert _set_up(clone).returncode == 0
    assert (clone / "log").exists()


@pytest.mark.slow
def test_the_quickstart_runs_the_main_job(tmp_path: Path) -> None:
    """Profile, solve, show and verify a plan; its real run equals the plain model."""
    done = subprocess.run(
        ["bash", "scripts/quickstart", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in (
        "8 GPUs in all: 2 nodes x 4",
        "compared with the whole model",
        "rank 7  ",
        "compared with the baselines",
        "equal to the plain model",
    ):
        assert words in done.stdout
    assert "FAILED" not in done.stdout
    shown = [line for line in done.stdout.splitlines() if not line.startswith("$ ")]
    assert max(map(len, shown)) <= 80
