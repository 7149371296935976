"""A calibration from steps of runs: rows that known shares make give these shares back."""

from pathlib import Path

import pytest

from autopart.calibration.from_steps import (
    COLUMNS,
    Run,
    calibrate_from_steps,
    read_runs,
    step_of,
)
from autopart.calibration.kinds import CalibratedDevice, Wanted, profiles_by_kind
from autopart.errors import UsageError
from autopart.records.cluster import cluster_of
from autopart.records.kernels import kernels_of, stretched
from autopart.records.known_gpus import find_gpu

DEVICE = ("a100-sxm-80gb", "bfloat16", "torch")
TABLE = kernels_of(find_gpu("cpu"), "torch")
MICROBATCH = 4
HEAD = "model,gpus,batch,seconds"


def runs_file(folder: Path, *lines: str) -> Path:
    path = folder / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_24_rows_give_the_shares_back_that_made_them() -> None:
    true = stretched(TABLE, "products", 1.5)
    profile, _ = profiles_by_kind(
        Wanted("zoo:gpt2-tiny", MICROBATCH), CalibratedDevice("cpu", "float32", true), ()
    )
    runs: list[Run] = []
    for gpus, pipeline in ((1, 1), (2, 1), (2, 2), (4, 2)):
        for batch in (32, 48, 64, 80, 96, 112):
            run = Run(
                name=f"row {len(runs)}",
                model="zoo:gpt2-tiny",
                gpus=gpus,
                nodes=1,
                tensor=1,
                pipeline=pipeline,
                microbatch=MICROBATCH,
                batch=batch,
                schedule="1f1b",
                recompute="never",
                seconds=1.0,
            )
            runs.append(run._replace(seconds=step_of(run, profile, cluster_of("cpu", gpus))))
    assert len(runs) == 24
    made, fitted = calibrate_from_steps(
        runs, "runs.csv", ("cpu", "float32", "torch"), kinds=("products",)
    )
    assert fitted.stretches["products"] == pytest.approx(1.5, rel=0.02)
    assert fitted.fit.rows == 24
    assert fitted.fit.held_out_worst < 0.01
    assert made.validity is not None
    assert made.validity.microbatch_sizes == (MICROBATCH,)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "it has no column"),
        (("model,gpus,batch",), "it has no column"),
        (("model,gpus,batch", "m,1,1"), "it has no column seconds"),
        ((f"{HEAD},colour", "m,1,1,1,red"), "unknown column 'colour'"),
        ((HEAD, "m,1,1,0"), "line 2: seconds '0' must be a number above 0"),
        (
            (HEAD, "m,1,1,1e300"),
            "line 2: seconds '1e300' must be a number above 0, and at most",
        ),
        ((HEAD, "m,1,1,1", "m,1,1,nan"), "line 3: seconds 'nan'"),
        ((HEAD, "m,1,1,inf"), "seconds 'inf'"),
        ((HEAD, "m,0,1,1"), "gpus '0' must be a whole number of at least 1"),
        ((HEAD, "m,1,many,1"), "batch 'many'"),
        ((HEAD, "m,1"), "batch '' must be"),
        ((HEAD, ",1,1,1"), "it names no model"),
        ((f"{HEAD},pipeline", "m,4,8,1,3"), "4 GPUs cannot be shared by 3 stages of 1"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(
    tmp_path: Path, lines: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read_runs(runs_file(tmp_path, *lines))


def test_columns_that_are_missing_have_defaults(tmp_path: Path) -> None:
    (run,) = read_runs(runs_file(tmp_path, HEAD, "zoo:gpt2-tiny,8,64,0.5"))
    assert (run.tensor, run.pipeline, run.microbatch, run.nodes) == (1, 1, 1, 0)
    assert (run.schedule, run.recompute, run.seconds) == ("1f1b", "never", 0.5)
    assert set(COLUMNS) == set(Run._fields) - {"name"}


def test_two_rows_are_refused_before_anything_is_profiled(tmp_path: Path) -> None:
    runs = read_runs(runs_file(tmp_path, HEAD, "absent.py,1,1,1", "absent.py,1,2,2"))
    with pytest.raises(UsageError, match="2 rows for a calibration, where 3 are needed"):
        calibrate_from_steps(runs, "runs.csv", DEVICE)


@pytest.mark.long
def test_a_run_that_no_plan_can_be_is_refused_with_its_line(tmp_path: Path) -> None:
    lines = [f"zoo:mlp-tiny,64,64,{seconds},64" for seconds in (1, 2, 3)]
    runs = read_runs(runs_file(tmp_path, f"{HEAD},pipeline", *lines))
    with pytest.raises(UsageError, match=r"runs.csv, line 2: .*layer"):
        calibrate_from_steps(runs, "runs.csv", DEVICE)
