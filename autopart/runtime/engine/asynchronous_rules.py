"""Which asynchronous schedules a plan's stages can run, and with which optimizers."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from autopart.errors import PlanError, ScheduleError, UsageError
from autopart.records.plan import Plan, stage_ranks
from autopart.records.plan_degrees import check_one_gpu_per_rank
from autopart.schedules.actions import StageRanks
from autopart.schedules.asynchronous_kind import Asynchronous, Setting, check_setting
from autopart.schedules.named.asynchronous import (
    AVGPIPE,
    HETPIPE,
    PIPEDREAM,
    PIPEMARE,
    PIPEOPTIM,
    SPECTRAIN,
    TWO_BUFFERED,
    WPIPE,
    XPIPE,
)
from autopart.text import counted

RUNNABLE = {
    kind.name: kind for kind in (PIPEDREAM, TWO_BUFFERED, SPECTRAIN, XPIPE, WPIPE, PIPEOPTIM)
}
"""Asynchronous schedules that can run."""

ONLY_PRICED = {
    PIPEMARE.name: "its stages run a forward and a backward at once, and its learning rates follow "
    "the stages' delays",
    AVGPIPE.name: "it trains several copies of the model side by side on the same ranks",
    HETPIPE.name: "its pipelines train copies of the model, and share them through a server",
}
"""Why the others are only priced."""


class AsynchronousRules(NamedTuple):
    """An asynchronous schedule, and its setting on a plan's stages."""

    kind: Asynchronous
    setting: Setting


def rules_of(plan: Plan, name: str) -> AsynchronousRules:
    """The schedule called `name` on the plan's stages.

    An update takes one microbatch in PipeDream, SpecTrain and PipeOptim, and the plan's microbatches
    in the others. Raises PlanError if the schedule cannot run, or not on these stages.
    """
    kind = _runnable(name)
    check_one_gpu_per_rank(plan, "an asynchronous run")
    ranks = stage_ranks(plan)
    counts = [len(on) for on in ranks]
    if kind is WPIPE:
        _check_groups(ranks)
    elif len({rank for on in ranks for rank in on}) < sum(counts):
        raise PlanError(
            f"{kind.name} runs one stage per rank, and this plan has ranks with several; "
            "solve with --schedule 1f1b"
        )
    if kind.every_microbatch and max(counts) > 1:
        raise PlanError(
            f"{kind.name} updates after every microbatch, so it needs stages without replicas, and "
            f"stages have up to {max(counts)}; solve with --replicas 1, or take {TWO_BUFFERED.name}"
        )
    if kind.predicts_with:
        _check_prediction(plan, kind, counts)
    microbatches_per_update = 1 if kind.every_microbatch else plan.num_microbatches
    setting = Setting(len(ranks), microbatches_per_update)
    try:
        check_setting(kind, setting._replace(num_stages=sum(counts)))
    except ScheduleError as error:
        raise PlanError(f"{error}; solve with a larger --global-batch") from error
    return AsynchronousRules(kind, setting)


def check_no_shared(
    rules: AsynchronousRules, names: Sequence[Collection[str]], ranks: StageRanks
) -> None:
    """Raise PlanError if stages share a parameter, but would run with other weights.

    `names` has the parameters of each stage, `ranks` its ranks.
    """
    stages: dict[str, list[int]] = {}
    for stage, own in enumerate(names):
        for name in own:
            stages.setdefault(name, []).append(stage)
    shared = [(name, on) for name, on in stages.items() if len(on) > 1]
    if rules.kind is TWO_BUFFERED or not shared:
        return
    name, on = shared[0]
    there = sorted({rank for stage in on for rank in ranks[stage]})
    raise PlanError(
        f"{rules.kind.name} gives each stage another weight version, and '{name}' is tied across "
        f"stages on ranks {', '.join(map(str, there))}; take {TWO_BUFFERED.name}, solve with "
        "--same-stage for its layers, or untie it"
    )


def default_optimizer(name: str | None, *, check: bool) -> str | None:
    """The optimizer that an asynchronous schedule needs; None where any will do."""
    kind = RUNNABLE.get(name or "")
    if kind is None or not kind.predicts_with:
        return None
    return kind.predicts_with[0 if check else -1]


def check_optimizer(name: str | None, optimizer: str) -> None:
    """Raise UsageError if the asynchronous schedule cannot predict weights from the optimizer."""
    kind = RUNNABLE.get(name or "")
    if kind is not None and kind.predicts_with and optimizer not in kind.predicts_with:
        known = " or ".join(kind.predicts_with)
        raise UsageError(
            f"{kind.name} predicts weights from the state of {known}, not of {optimizer}; give "
            f"--optimizer {kind.predicts_with[0]}, or take {TWO_BUFFERED.name}"
        )


def _runnable(name: str) -> Asynchronous:
    if name in ONLY_PRICED:
        raise PlanError(
            f"{name} is only priced (simulate --asynchronous) and cannot run: {ONLY_PRICED[name]}; "
            f"take {', '.join(RUNNABLE)}"
        )
    if name not in RUNNABLE:
        raise PlanError(f"asynchronous schedule '{name}' cannot run; known: {', '.join(RUNNABLE)}")
    return RUNNABLE[name]


def _check_groups(ranks: StageRanks) -> None:
    half = len(ranks) // 2
    first, second = [tuple(on) for on in ranks[:half]], [tuple(on) for on in ranks[half:]]
    if first != second or len(set(first)) < half or any(len(on) > 1 for on in first):
        raise PlanError(
            f"{WPIPE.name} runs two stages on each rank, r and r + k / 2 of k stages, without replicas; "
            "solve with --schedule interleaved-1f1b --stages-per-rank 2 --replicas 1"
        )


def _check_prediction(plan: Plan, kind: Asynchronous, counts: Sequence[int]) -> None:
    if len(counts) < 2:
        raise PlanError(
            f"{kind.name} predicts weights over the delays of a pipeline, and this plan has "
            f"{counted(len(counts), 'stage')}; solve with more stages"
        )
    if max(counts) > 1:
        raise PlanError(
            f"{kind.name} predicts weights for each stage's own updates, so it needs stages without "
            f"replicas, and stages have up to {max(counts)}; solve with --replicas 1"
        )
    if any(stage.recompute or stage.selective for stage in plan.stages):
        raise PlanError(
            f"{kind.name} runs backwards with other weights than forwards, so no forward can run "
            "again for its backward; solve with --recompute never"
        )
    if any(stage.optimizer_on_host for stage in plan.stages):
        raise PlanError(
            f"{kind.name} reads the optimizer's state for each microbatch, and this plan keeps it on "
            "the host; solve without --offload-optimizer"
        )
