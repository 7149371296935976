import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autopart.cli import exit_code
from autopart.profile import save_profile
from tests.samples import sample_profile


class Outcome(NamedTuple):
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on stdout: all of stdout, and nothing else."""
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, on a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def cli(folder: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run one command line in `folder`."""

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = exit_code(arguments)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def profile_file(folder: Path) -> Path:
    """`profile.json` in `folder`: the sample profile."""
    save_profile(sample_profile(), folder / "profile.json")
    return folder / "profile.json"


@pytest.fixture
def plan_file(cli: Cli, profile_file: Path) -> Path:
    """`plan.json` in `folder`: two stages, two replicas, for `profile.json`."""
    asked = "solve --gpus 4 --nodes 2 --stages 2 --replicas 2 --global-batch 16"
    assert cli(*asked.split()).code == 0
    return profile_file.parent / "plan.json"
