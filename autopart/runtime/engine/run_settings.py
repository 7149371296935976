"""Settings for a run."""

import math
from typing import Literal, Required, TypedDict

import msgspec

from autopart.errors import UsageError
from autopart.records.plan import Plan
from autopart.records.rank_group import group_name, shard_degree
from autopart.runtime.engine.asynchronous_rules import check_optimizer, default_optimizer
from autopart.runtime.engine.plan_match import Backend
from autopart.runtime.update.optimizer import LEARNING_RATES
from autopart.text import counted, known_names


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for a run, equal on every rank."""

    model: str
    """Model file, or a name such as `zoo:gpt2-tiny`."""
    steps: int
    """Steps to run, at least 1."""
    check: bool = False
    """Whether the run is compared with the plain model."""
    optimizer: str | None = None
    """A key of `optimizer.LEARNING_RATES`. None means sgd in a checked run, else adamw; or one that
    the asynchronous schedule predicts weights from."""
    lr: float | None = None
    """Learning rate; None means the optimizer's default."""
    timeout: float = 60.0
    """Seconds without progress on any rank before the run stops. Building and capturing a model may
    take ten times as long."""
    device: str | None = None
    """cpu or cuda. None means cuda if each rank has its own GPU, else cpu."""
    seed: int = 0
    """Seed for weights and data."""
    count_bytes: bool = False
    """Whether one more step runs after the timed ones, to count tensor bytes."""
    backend: Backend = "autopart"
    """The loop that runs the orders: ours or torch's."""
    autocast: bool = False
    """Whether forwards run under torch's autocast to bfloat16. Parameters keep the plan's dtype."""
    compile: bool = False
    """Whether each stage's graph runs under torch's compiler."""
    sync: Literal["end", "overlap"] | None = None
    """Whether gradient sums follow all actions or run beside last backwards. None means as the plan
    was solved, and end for a framework's sync."""
    asynchronous: str | None = None
    """Asynchronous schedule, a key of `asynchronous_rules.RUNNABLE`. None means the plan's own
    schedule."""
    save: str | None = None
    """New folder for the saved state after the last step."""
    load: str | None = None
    """Folder with the saved state from which the run continues, under any plan for the model."""
    clip_norm: float | None = None
    """Largest norm of all gradients together; larger ones are scaled down before each update. None
    leaves gradients as they are."""


class RunKeywords(TypedDict, total=False):
    """Keywords for `run_plan`: the fields of `RunSettings` that its callers may set."""

    steps: Required[int]
    check: bool
    optimizer: str | None
    lr: float | None
    timeout: float
    device: str | None
    seed: int
    backend: Backend
    autocast: bool
    compile: bool
    sync: Literal["end", "overlap"] | None
    asynchronous: str | None
    save: str | None
    load: str | None
    clip_norm: float | None


def runs_back_to_back(plan: Plan, settings: RunSettings) -> bool:
    """Whether each rank starts its next step behind its own update, as the plan's period says.

    A run that counts bytes compares single steps with their timelines.
    """
    one_by_one = settings.count_bytes or settings.asynchronous is not None
    return plan.objective == "period" and not one_by_one


def optimizer_name(settings: RunSettings) -> str:
    """The optimizer that was asked for. Default: adamw, and in a check sgd.

    A step with sgd is as exact as its gradient. Schedules that predict weights have other defaults.
    """
    check = settings.check
    needed = default_optimizer(settings.asynchronous, check=check)
    return settings.optimizer or needed or ("sgd" if check else "adamw")


def check_settings(settings: RunSettings) -> None:
    """Raise UsageError for settings that cannot be run."""
    if settings.steps < 1:
        raise UsageError(f"{counted(settings.steps, 'step')}: run at least 1")
    if not settings.timeout > 0.0:
        raise UsageError(f"a timeout of {settings.timeout} s: give more than 0")
    if settings.optimizer is not None and settings.optimizer not in LEARNING_RATES:
        known = known_names(settings.optimizer, LEARNING_RATES)
        raise UsageError(f"unknown optimizer '{settings.optimizer}'; {known}")
    check_optimizer(settings.asynchronous, optimizer_name(settings))
    _check_saved_state(settings)
    if settings.asynchronous is not None and settings.count_bytes:
        raise UsageError(
            "bytes are counted in a separate step, which an asynchronous run does not have"
        )
    if settings.asynchronous is not None and settings.compile:
        raise UsageError(
            "compiled stages cannot run with older weights; leave out --compile or --asynchronous"
        )
    other = "--backend torch" if settings.backend == "torch" else "--asynchronous"
    if settings.sync == "overlap" and (settings.asynchronous or settings.backend == "torch"):
        raise UsageError(
            f"{other} sums gradients after all actions; leave out --sync overlap or {other}"
        )
    if settings.asynchronous is not None and settings.backend == "torch":
        raise UsageError(
            "torch's schedules flush at the end of every step; leave out --backend torch or "
            "--asynchronous"
        )


def check_compiler_fits(plan: Plan, settings: RunSettings) -> None:
    """Raise UsageError where stages would be compiled whose weights come and go."""
    if settings.compile and shard_degree(plan.group) > 1:
        raise UsageError(
            f"the plan has {group_name(plan.group)}, and a compiled stage reads its weights all at once; leave out "
            "--compile, or solve with --shard none"
        )


def check_clipping(plan: Plan, settings: RunSettings) -> None:
    """Raise UsageError where gradients are clipped by the norm of all, and a rank may not wait for it."""
    norm = settings.clip_norm
    if norm is None:
        return
    if not 0.0 < norm < math.inf:
        raise UsageError(f"--clip-norm {norm}: give a number above 0")
    if settings.asynchronous is not None:
        raise UsageError(
            "clipping needs the norm of all gradients of one update, and no two stages of an asynchronous "
            "run are at the same update; leave out --clip-norm or --asynchronous"
        )
    if plan.objective == "period":
        raise UsageError(
            "the plan's period has each rank update before other ranks are done, and clipping needs the "
            "norm of all gradients first, so its steps would not run back to back; leave out --clip-norm, "
            "or solve with --objective step"
        )


def _check_saved_state(settings: RunSettings) -> None:
    option = "--save" if settings.save is not None else "--load"
    if settings.save is None and settings.load is None:
        return
    if settings.asynchronous is not None:
        raise UsageError(
            f"{option} saves or loads one weight version, and an asynchronous run has several; leave out "
            f"{option} or --asynchronous"
        )
    if optimizer_name(settings) == "adafactor":
        raise UsageError(f"{option} cannot save or load adafactor's state; take adamw or sgd")
    if settings.load is not None and settings.check:
        raise UsageError(
            "--check trains the plain model from its first step, and --load continues from a later "
            "one; leave one of them out"
        )
