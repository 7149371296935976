import io
import re

import msgspec
from rich.console import Console

from autopart.records.expert_load import LayerLoad
from autopart.records.run_result import CheckResult, RunResult, StageRun
from autopart.report.run_table import check_lines, run_report
from tests.support.samples import sample_plan


def _result(**changes: object) -> RunResult:
    """Every stage of the sample plan ran twice as long as predicted."""
    plan = sample_plan()
    stages = tuple(
        StageRun(
            ranks=stage.ranks,
            forward_time=2 * predicted.forward_time,
            backward_time=2 * predicted.backward_time,
            busy_time=2 * predicted.busy_time,
            wait_time=0.0123,
            sync_time=0.001,
            update_time=0.002,
            peak_bytes=2 * predicted.peak_bytes,
            predicted=predicted,
        )
        for stage, predicted in zip(plan.stages, plan.prediction.stages, strict=True)
    )
    result = RunResult(
        model="model.py",
        device="cpu",
        backend="gloo",
        dtype="float32",
        optimizer="sgd",
        num_ranks=2,
        num_microbatches=4,
        microbatch_size=2,
        losses=(3.25, 2.5),
        step_times=(0.5, 0.4),
        step_time=0.4,
        predicted_step_time=0.3,
        error=-0.25,
        stages=stages,
        memory="largest resident set",
    )
    return msgspec.structs.replace(result, **changes)


CHECK = CheckResult(
    tolerance=1e-5,
    floor=1e-7,
    losses=6.9e-8,
    gradients=1.2e-7,
    worst_gradient="h.3.weight",
    parameters=0.0,
    worst_parameter="",
    num_parameters=12,
    num_buffers=0,
    dropouts=0,
)


def _printed(run: RunResult) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(run_report(run))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_measured_stands_above_predicted_for_every_stage() -> None:
    text = _printed(_result())
    rows = [
        re.findall(r"[\d.]+", line.split(kind)[1])
        for line in text.splitlines()
        for kind in ("measured ", "predicted ")
        if kind in line and "step" not in line
    ]
    assert len(rows) == 4
    for measured, predicted in (rows[:2], rows[2:]):
        for column in (0, 1, 2, 4):
            assert abs(float(measured[column]) - 2 * float(predicted[column])) <= 0.2
        assert measured[5] == "12.3"


def test_the_step_is_compared_with_its_prediction() -> None:
    text = _printed(_result())
    assert "step 400 ms measured, 300 ms predicted (-25.0%), 20 samples/s; 2 steps of 4" in text
    assert "loss 3.25 in the first step, 2.5 in the last" in text
    assert "loss 3.25\n" in _printed(_result(losses=(3.25,)))
    assert max(map(len, text.splitlines())) <= 80


def test_a_check_says_how_close_and_where_it_is_worst() -> None:
    assert check_lines(CHECK) == [
        "equal to the plain model, 12 parameters compared, tolerance 1e-05:",
        "  losses      6.9e-08",
        "  gradients   1.2e-07 (h.3.weight)",
        "  parameters  0.0e+00 at the end",
    ]
    assert "equal to the plain model" in _printed(_result(check=CHECK))
    assert "equal to the plain model" not in _printed(_result())


def test_notes_name_tensors_that_were_not_compared() -> None:
    noted = msgspec.structs.replace(CHECK, num_buffers=3, notes=("dropout was switched off",))
    lines = check_lines(noted)
    assert "12 parameters and 3 buffers" in lines[0]
    assert lines[-1] == "  dropout was switched off"


def test_the_loads_of_expert_ranks_stand_by_degree() -> None:
    loads = [
        LayerLoad(layer=name, expert=e, imbalance=h, largest=e)
        for name, e, h in [("a", 2, 1.2), ("b", 2, 1.4), ("a", 4, 3.0)]
    ]
    text = " ".join(_printed(_result(expert_loads=tuple(loads))).split())
    assert "expert degree 2: the fullest rank has 1.3 times the mean load, 1.4 times in b" in text
    assert "expert degree 4: the fullest rank has 3 times the mean load, 3 times in a" in text
