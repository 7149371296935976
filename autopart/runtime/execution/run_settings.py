"""What a run is told, the same on every rank."""

import msgspec

from autopart.errors import UsageError
from autopart.runtime.execution.optimizer import LEARNING_RATES
from autopart.runtime.execution.plan_match import Backend


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run and how; the same on every rank."""

    model: str
    steps: int
    check: bool = False
    optimizer: str | None = None
    """A key of `optimizer.LEARNING_RATES`; None: sgd where the run is checked, else adamw."""
    lr: float | None = None
    timeout: float = 60.0
    """Seconds without progress on any rank after which the run stops; building and capturing a
    model may take ten times as long."""
    device: str | None = None
    """cpu or cuda; None: cuda where each rank has a GPU of its own."""
    seed: int = 0
    count_bytes: bool = False
    """Whether one step more is run, after those that are timed, to count the bytes of tensors."""
    backend: Backend = "autopart"
    autocast: bool = False
    """Compute under torch's autocast to bfloat16; parameters keep the plan's dtype."""
    asynchronous: str | None = None
    """pipedream or pipedream-2bw: train without flushes; None: the plan's own schedule."""


def optimizer_name(settings: RunSettings) -> str:
    """The one asked for; else AdamW, and in a check SGD, whose step is as exact as its gradient."""
    return settings.optimizer or ("sgd" if settings.check else "adamw")


def check_settings(settings: RunSettings) -> None:
    """Raise UsageError unless there is something to run with a known optimizer."""
    if settings.steps < 1:
        raise UsageError(f"{settings.steps} steps: run at least 1")
    if not settings.timeout > 0.0:
        raise UsageError(f"a timeout of {settings.timeout} s: give more than 0")
    if settings.optimizer is not None and settings.optimizer not in LEARNING_RATES:
        known = ", ".join(LEARNING_RATES)
        raise UsageError(f"unknown optimizer '{settings.optimizer}'; known: {known}")
    if settings.asynchronous is not None and settings.count_bytes:
        raise UsageError("bytes are counted in a step of its own, and an asynchronous run has none")
    if settings.asynchronous is not None and settings.backend == "torch":
        raise UsageError(
            "torch's schedules end every step with a flush; leave --backend torch or --asynchronous out"
        )
