"""Compares a plan's prediction with a run of the plan."""

from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

from autopart.cost.without_collectives import without_collectives
from autopart.fidelity.compare import Fidelity, judge, with_stages
from autopart.records.plan import Plan, check_plan, load_plan
from autopart.records.plan_degrees import check_one_degree
from autopart.records.rank_group import Group
from autopart.records.run_result import OneDeviceResult, RunResult
from autopart.runtime.engine.run_settings import RunKeywords, RunSettings, check_settings
from autopart.runtime.job.launch import run_with_settings
from autopart.runtime.job.one_device import planned_optimizer, run_on_one_device
from autopart.runtime.job.training import Report


class Validation(NamedTuple):
    """The measurements, and the prediction's errors."""

    run: RunResult | OneDeviceResult
    fidelity: Fidelity
    plan: Plan
    """The plan whose prediction is compared. It predicts no collectives inside a tensor group if ranks ran alone."""


class ValidationKeywords(TypedDict, total=False):
    """Keywords for `validate_plan`; `RunSettings` explains each."""

    steps: int
    """Default: 10."""
    optimizer: str | None
    """Default: the plan's own optimizer."""
    device: str | None
    timeout: float
    seed: int


def validate_plan(
    plan: Plan | Path | str,
    model: str,
    *,
    one_device: bool = False,
    report: Report | None = None,
    **keywords: Unpack[ValidationKeywords],
) -> Validation | None:
    """Run the plan and compare its prediction with the measurements.

    With `one_device` each rank runs alone in this process, with fake neighbours; `timeout` is then
    not used. Otherwise the plan runs as in `run_plan`: as a rank under torchrun, or on ranks
    started here. The result is None on ranks other than 0. Raises as `run_plan` does, UsageError
    for less than 1 step.

    With a tensor degree a rank's figures are those of the first process in its tensor group. The
    group's collectives are part of the seconds of actions and updates, predicted and measured. With
    `one_device` both sides are without them.
    """
    loaded = plan if isinstance(plan, Plan) else load_plan(plan)
    check_plan(loaded)
    check_one_degree(loaded, "validate")
    given: RunKeywords = {"steps": 10, **keywords}
    given["optimizer"] = given.get("optimizer") or planned_optimizer(loaded)
    settings = RunSettings(model=model, count_bytes=True, **given)
    check_settings(settings)
    run: RunResult | OneDeviceResult | None
    if one_device:
        run = run_on_one_device(
            loaded,
            model,
            steps=settings.steps,
            optimizer=settings.optimizer,
            device=settings.device,
            seed=settings.seed,
            report=report,
        )
    else:
        run = run_with_settings(loaded, settings, report)
    if run is None:
        return None
    if isinstance(run, OneDeviceResult) and isinstance(loaded.group, Group):
        loaded = with_stages(loaded, without_collectives(loaded, run.collectives))
    return Validation(run, judge(loaded, run), loaded)
