import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from autopart.cli.main import exit_code
from autopart.records.profile import save_profile
from tests.support.samples import sample_profile
from tests.support.small_model_file import MODEL


class Outcome(NamedTuple):
    """Exit code and output of one command line."""

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


@pytest.fixture
def two_ranks(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`plan.json` in `folder`: `model.py` in two stages."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (folder / "model.py").write_text(MODEL)
    assert cli("profile", "model.py", "--warmup", "0", "--repeats", "1").code == 0
    asked = "solve --gpus 2 --stages 2 --global-batch 4 --pin 1=0 --pin 2=1"
    assert cli(*asked.split()).code == 0
    return folder / "plan.json"
