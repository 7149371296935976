"""Calibrations on the command line."""

import json
from pathlib import Path

import pytest

from autopart.records.calibration import Calibration, save_calibration
from autopart.records.kernels import kernels_of
from autopart.records.known_gpus import find_gpu
from autopart.records.plan import load_plan
from autopart.records.profile import load_profile
from tests.cli.conftest import Cli

META = ("profile", "zoo:mlp-tiny", "--device", "meta", "--dtype", "bfloat16", "-o", "own.json")


@pytest.fixture
def calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration for bfloat16 on one GPU, typed by hand."""
    monkeypatch.chdir(tmp_path)
    own = Calibration(
        gpu="a100-sxm-80gb",
        dtype="bfloat16",
        kernels=kernels_of(find_gpu("a100-sxm-80gb"), "megatron"),
        source="hand",
        made_from="my runs",
    )
    save_calibration(own, tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


def words(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


@pytest.mark.slow
def test_a_calibrated_profile_and_its_plan_say_so(cli: Cli, calibration: Path) -> None:
    told = cli(*META, "--gpu", "a100-sxm-80gb", "--calibrate", str(calibration))
    assert told.code == 0
    assert "analytic, calibrated with my runs" in words(told.out)
    assert "attention none; dropout no; gradients added by their products" in words(told.out)
    profile = load_profile("own.json")
    assert profile.kernels and profile.kernels.kernels.target == "megatron"
    told = cli("solve", "--profile", "own.json", "--gpus", "2", "-o", "plan.json")
    assert told.code == 0
    assert "(analytic, calibrated with my runs)" in words(told.out)
    assert load_plan("plan.json").origin.calibration == "my runs"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--gpu", "h100-sxm"), "the calibration is for a100-sxm-80gb, not for h100-sxm"),
        (("--gpu", "a100-sxm-80gb", "--dtype", "float32"), "is for bfloat16, and the model has"),
        (("--gpu", "a100-sxm-80gb", "--target", "torch"), "the calibration is for megatron"),
    ],
)
def test_a_calibration_of_something_else_is_refused(
    cli: Cli, calibration: Path, line: tuple[str, ...], message: str
) -> None:
    told = cli(*META, *line, "--calibrate", str(calibration))
    assert told.code in (1, 2)
    assert message in told.err
    assert len(told.err.strip().splitlines()) == 1


def test_kernels_of_a_framework_go_with_meta_only(cli: Cli, calibration: Path) -> None:
    told = cli("profile", "zoo:mlp-tiny", "--target", "torch", "-o", "own.json")
    assert told.code == 2
    assert "--target goes with --device meta; on cpu times are measured" in told.err


def test_steps_need_their_gpu_and_enough_rows(cli: Cli, calibration: Path) -> None:
    Path("runs.csv").write_text("model,gpus,batch,seconds\nm.py,1,1,1\nm.py,1,2,2\n")
    told = cli("calibrate", "from-steps", "runs.csv")
    assert told.code == 2
    assert "name it with --gpu" in told.err
    told = cli("calibrate", "from-steps", "runs.csv", "--gpu", "h100-sxm")
    assert told.code == 2
    assert "2 rows for a calibration, where 3 are needed" in told.err


def test_an_analytic_profile_is_no_source(cli: Cli, calibration: Path) -> None:
    content = json.dumps({"format": "autopart-profile"})
    Path("broken.json").write_text(content)
    assert cli("calibrate", "from-profile", "broken.json").code == 1
