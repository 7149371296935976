"""Defaults of a solve that a framework fixes: `autopart solve --target`."""

import dataclasses

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.demands import able_schedules
from autopart.records.frameworks import FRAMEWORKS, Framework
from autopart.records.group_choice import SHARDINGS
from autopart.records.problem import CLASSIC, SCHEDULES
from autopart.records.rank_group import Shard
from autopart.search.options import PER_STAGE, SolveOptions

OPTIONS = {
    "sync": "--sync",
    "sends": "--sends",
    "schedule": "--schedule",
    "gradient_dtype": "--gradient-dtype",
    "zero1": "--zero1",
    "tensor": "--tensor",
    "sequence_parallel": "--sequence-parallel",
    "shard": "--shard",
    "num_stages": "--stages",
    "context_exchange": "--context-exchange",
}
"""The options that a framework may fix, by the field's name."""


def with_target(options: SolveOptions, cluster: Cluster, dtype: str) -> SolveOptions:
    """The options, with what their target does wherever the user said nothing.

    `dtype` is the profile's. Raises AutopartError where the target is unknown, or stages choose their degrees.
    """
    if options.target is None:
        return options
    if options.target not in FRAMEWORKS:
        known = ", ".join(FRAMEWORKS)
        raise AutopartError(f"unknown --target '{options.target}'; known: {known}")
    if str(options.tensor) == PER_STAGE:
        raise AutopartError(
            f"--tensor {PER_STAGE} is for plans of autopart: no --target takes several degrees; write auto"
        )
    framework = FRAMEWORKS[options.target]
    if options.objective == "period":
        raise AutopartError(
            f"--objective period is for autopart run, which has no barrier between steps; {framework.title} "
            "may wait for all ranks in each step; leave out --target, or minimise the step"
        )
    sends = options.sends
    if sends is None and cluster.sends_overlap:
        # Blocking sends are gloo's on a CPU; the frameworks' own sends never block there.
        sends = framework.sends
    dtype_of_sums = options.gradient_dtype
    if dtype_of_sums is None and dtype in framework.sums_in_float32:
        dtype_of_sums = "float32"
    tensor, split = _tensor_groups(options, framework)
    _check_groups(options, framework)
    return dataclasses.replace(
        options,
        sync=options.sync or framework.sync,
        sends=sends,
        schedule=_schedules(options, framework),
        gradient_dtype=dtype_of_sums,
        zero1=options.zero1 or (framework.shards and options.shard in ("none", "zero1")),
        shard=_shard(options, framework),
        num_stages=options.num_stages or framework.stages,
        tensor=tensor,
        sequence_parallel=split,
        context_exchange=_exchange(options, framework),
    )


def _tensor_groups(options: SolveOptions, framework: Framework) -> tuple[str | int, str]:
    """The tensor degree and the sequence parallelism to choose from, as far as the framework runs them."""
    tensor, split = options.tensor, options.sequence_parallel
    if framework.tensor_groups == "none" and tensor == "auto":
        tensor = 1
    if framework.tensor_groups == "whole sequences" and split == "auto" and str(tensor) != "1":
        split = "off"
    if options.expert != "1":
        if framework.beside_experts == "none" and tensor == "auto":
            tensor = 1
        if framework.beside_experts == "split sequences" and split == "auto" and str(tensor) != "1":
            split = "on"
    return tensor, split


def _shard(options: SolveOptions, framework: Framework) -> str:
    """The kinds of sharded state to choose from, as far as the framework has them."""
    if framework.unsharded and options.shard != "auto":
        return options.shard
    if not framework.unsharded:
        said = options.shard in ("auto", "none") and not options.zero1
        return ",".join(framework.sharded_state) if said else options.shard
    plain = ("zero1",) if framework.shards else ("none", "zero1")
    return ",".join((*plain, *framework.sharded_state))


def _exchange(options: SolveOptions, framework: Framework) -> str:
    """The exchange of keys and values to choose, as far as the framework has it."""
    if framework.ring or options.context == "1":
        return options.context_exchange
    if options.context_exchange == "ring":
        raise AutopartError(
            f"--context-exchange ring is for autopart run: the export for {framework.title} gathers keys and values; "
            "leave out --target or --context-exchange"
        )
    return "gather"


def _check_groups(options: SolveOptions, framework: Framework) -> None:
    """Raise AutopartError where the framework has no sharded state, or no context or expert degree, that is asked for."""
    kinds = (*(("none", "zero1") if framework.unsharded else ()), *framework.sharded_state)
    wanted = [word for word in options.shard.split(",") if word in SHARDINGS]
    if options.shard != "none" and not set(wanted) <= set(kinds):
        names = [name for name, one in FRAMEWORKS.items() if set(wanted) <= {*one.sharded_state}]
        raise AutopartError(
            f"--shard {options.shard}: the export for {framework.title} takes {', '.join(kinds)}; take one of these, "
            "leave out --target"
            + f", or take another one, such as {', '.join(names)}"
            * bool(names)
        )
    for word, asked, able in (
        ("expert", options.expert, framework.expert),
        ("context", options.context, framework.context),
    ):
        if asked != "1" and not able:
            names = ", ".join(name for name, one in FRAMEWORKS.items() if getattr(one, word))
            raise AutopartError(
                f"--{word} {asked}: the export for {framework.title} has no {word} degree; leave out --target or --{word}, "
                f"or take another target, such as {names}"
            )


def able_kinds(target: str | None) -> tuple[Shard, ...]:
    """The kinds of sharded state inside a group that a plan for the target may have."""
    return ("zero2", "zero3") if target is None else FRAMEWORKS[target].sharded_state


def target_line(options: SolveOptions, cluster: Cluster, dtype: str) -> str | None:
    """What a target fixes, in one line; None without a target."""
    if options.target is None:
        return None
    made = with_target(options, cluster, dtype)
    fixed = [
        option if field == "zero1" else f"{option} {getattr(made, field)}"
        for field, option in OPTIONS.items()
        if getattr(made, field) != getattr(options, field)
    ]
    said = ", ".join(fixed) or "all as the other options say"
    return f"for {FRAMEWORKS[options.target].title}: {said}"


def _schedules(options: SolveOptions, framework: Framework) -> str | None:
    """The schedules to choose from, as far as the framework runs them."""
    if options.schedule not in (None, "auto") or framework.schedules is None:
        return options.schedule
    objective = "bottleneck" if options.objective == "bottleneck" else "step"
    able = able_schedules(objective, per_stage=options.replicas_per_stage)
    asked = CLASSIC if options.schedule is None else SCHEDULES
    runs = tuple(n for n in asked if n in able and n in framework.schedules)
    return None if runs == CLASSIC else ",".join(runs)
