"""A plan's prediction held against a run of it."""

from pathlib import Path
from typing import NamedTuple

from autopart.errors import UsageError
from autopart.fidelity import Fidelity, judge
from autopart.plan import Plan, check_plan, load_plan
from autopart.run_result import OneDeviceResult, RunResult
from autopart.runtime.execution.launch import run_as_told
from autopart.runtime.execution.one_device import planned_optimizer, run_on_one_device
from autopart.runtime.execution.run_settings import RunSettings
from autopart.runtime.execution.training import Report


class Validation(NamedTuple):
    """What was measured, and what it says of the prediction."""

    run: RunResult | OneDeviceResult
    fidelity: Fidelity


def validate_plan(
    plan: Plan | Path | str,
    model: str,
    *,
    steps: int = 10,
    one_device: bool = False,
    optimizer: str | None = None,
    device: str | None = None,
    timeout: float = 60.0,
    seed: int = 0,
    report: Report | None = None,
) -> Validation | None:
    """Run the plan and hold its prediction against what was measured.

    With `one_device` each rank runs alone in this process, with stand-ins for its neighbours. Else it
    runs as `run_plan` does: as a rank under torchrun, or on ranks that are started here; the result
    is None on a rank other than 0. `optimizer` is by default the one that the plan reckons with.
    Raises what running a plan raises.
    """
    loaded = plan if isinstance(plan, Plan) else load_plan(plan)
    check_plan(loaded)
    chosen = optimizer or planned_optimizer(loaded)
    run: RunResult | OneDeviceResult | None
    if steps < 1:
        raise UsageError(f"{steps} steps: run at least 1")
    if one_device:
        run = run_on_one_device(
            loaded, model, steps=steps, optimizer=chosen, device=device, seed=seed, report=report
        )
    else:
        settings = RunSettings(
            model=model,
            steps=steps,
            optimizer=chosen,
            timeout=timeout,
            device=device,
            seed=seed,
            count_bytes=True,
        )
        run = run_as_told(loaded, settings, report)
    return None if run is None else Validation(run, judge(loaded, run))
