"""The options for `autopart solve` that shape the plan, as users type them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from autopart.cli.export_options import TargetName
from autopart.cli.policy_options import PolicyOptions
from autopart.cli.shared_options import usage_checked
from autopart.records.expert_load import MEASURED, LayerLoad
from autopart.records.problem import Objective
from autopart.records.run_result import load_run_result
from autopart.records.training import MOMENTS
from autopart.search.demands import known_schedules
from autopart.search.options import SolveOptions
from autopart.units import parse_bytes

GlobalBatch = Annotated[
    int | None,
    typer.Option(
        "--global-batch",
        "--batch",
        min=1,
        help="Samples per optimizer step, over all replicas; default: 4 microbatches per GPU.",
    ),
]
SequenceParallel = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(help="Whether --tensor also splits the sequence; auto: both are tried."),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineOptions:
    """The batch, the stages, and how they are searched for."""

    global_batch: GlobalBatch = None
    microbatch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Microbatch sizes to search, in samples; a size without a profile is scaled from "
            "another. Default: the profiles' sizes.",
        ),
    ] = None
    objective: Annotated[
        Objective,
        typer.Option(
            help="Minimise the simulated step, the period of steps that run back to back, or the busy time "
            "of the step's busiest rank."
        ),
    ] = "step"
    target: Annotated[
        TargetName | None,
        typer.Option(
            help="The framework that the plan is for: it sets the defaults of --sync, --sends, --schedule "
            "and --gradient-dtype. Default: autopart run."
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME]|auto",
            parser=usage_checked(known_schedules),
            help="Schedules to choose from; auto: every schedule, and orders of the plan's own. "
            "Default: gpipe and 1f1b.",
        ),
    ] = None
    stages_per_rank: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stages per rank (virtual stages); default: as the schedule allows."
        ),
    ] = None
    stages: Annotated[int | None, typer.Option(min=1, help="Number of stages; default: any.")] = (
        None
    )
    replicas: Annotated[
        str,
        typer.Option(
            metavar="auto|N|per-stage",
            help="Replicas per stage: auto: one number for all stages; N; per-stage: a number for "
            "each.",
        ),
    ] = "auto"
    tensor: Annotated[
        str,
        typer.Option(
            metavar="auto|N|per-stage",
            help="GPUs of a node that run each layer together; auto: every degree in the profile; "
            "per-stage: a degree for each stage, too.",
        ),
    ] = "1"
    sequence_parallel: SequenceParallel = "auto"
    context: Annotated[
        str,
        typer.Option(
            metavar="auto|N,N,...",
            help="GPUs that divide each sequence; auto: every degree in the profile.",
        ),
    ] = "1"
    context_exchange: Annotated[
        Literal["auto", "ring", "gather"],
        typer.Option(
            help="How those GPUs exchange keys and values: block by block around a ring, or in one "
            "gather; auto: both are tried."
        ),
    ] = "auto"
    expert: Annotated[
        str,
        typer.Option(
            metavar="auto|N,N,...",
            help="GPUs that divide samples and experts; auto: every degree in the profile.",
        ),
    ] = "1"
    expert_imbalance: Annotated[
        str | None,
        typer.Option(
            metavar="N|measured|FILE",
            help="Load of the fullest expert rank divided by the mean: a number; the profile's; or that of a run, from "
            "its --json. Default: balanced.",
        ),
    ] = None
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER=STAGE", help="Put a layer on a stage, counted from 0."),
    ] = None
    same_stage: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Layers that must share a stage.")
    ] = None
    different_stage: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Layers that must not share a stage.")
    ] = None
    solver: Annotated[
        Literal["auto", "dp", "ilp", "uniform", "parameters"],
        typer.Option(help="dp and ilp are exact; uniform and parameters are the baselines."),
    ] = "auto"
    time_limit: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds for the search; an early end leaves a wider gap."),
    ] = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """The optimizer, the precisions, and shared optimizer state."""

    optimizer: Annotated[
        str,
        typer.Option(
            metavar="|".join((*MOMENTS, "BYTES")),
            help="The optimizer whose state needs memory, or bytes of state per trained element.",
        ),
    ] = "adamw"
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE[-mixed]",
            help="The profile's dtype; -mixed adds float32 master copies. Default: mixed for 16 "
            "bits.",
        ),
    ] = None
    gradient_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="Dtype of summed gradients: the profile's (default), or float32 in place of 16 "
            "bits.",
        ),
    ] = None
    zero1: Annotated[
        bool,
        typer.Option("--zero1", help="Replicas share optimizer state and master copies (ZeRO-1)."),
    ] = False
    shard: Annotated[
        str,
        typer.Option(
            metavar="auto|none,zero1,zero2,zero3",
            help="State that GPUs share: zero1: replicas share optimizer state (--zero1); zero2: GPUs that "
            "divide a microbatch share gradients, too; zero3: and weights; auto: all are searched.",
        ),
    ] = "none"
    shard_degree: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="GPUs that share state under zero2 and zero3; default: all numbers that fit.",
        ),
    ] = None
    sync: Annotated[
        Literal["end", "overlap", "megatron", "ddp", "fsdp2", "deepspeed"] | None,
        typer.Option(
            help="Whose gradient sync a step has: after all actions, in buckets beside the last "
            "backward, or as a framework does it. Default: as --target does it."
        ),
    ] = None
    sync_bucket: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=usage_checked(parse_bytes),
            help="Size of the buckets in which gradients are summed, such as 25MiB; default: the "
            "usual ones of --sync.",
        ),
    ] = None
    sends: Annotated[
        Literal["buffered", "rendezvous"] | None,
        typer.Option(
            help="Whether a send waits until its receiver asks for it (rendezvous), as other "
            "frameworks' do over NCCL; default: as --target does it, buffered in autopart run."
        ),
    ] = None


def solve_options(
    stages: PipelineOptions, policies: PolicyOptions, training: TrainingOptions
) -> SolveOptions:
    """The options as the planner takes them. Raises typer.BadParameter on unreadable text."""
    per_stage = stages.replicas == "per-stage"
    return SolveOptions(
        global_batch=stages.global_batch,
        microbatch_sizes=_counts(stages.microbatch_size),
        objective=stages.objective,
        target=stages.target,
        schedule=stages.schedule,
        stages_per_rank=stages.stages_per_rank,
        num_stages=stages.stages,
        num_replicas=None if per_stage else _replicas(stages.replicas),
        replicas_per_stage=per_stage,
        tensor=stages.tensor,
        sequence_parallel=stages.sequence_parallel,
        context=stages.context,
        context_exchange=stages.context_exchange,
        expert=stages.expert,
        expert_imbalance=_imbalance(stages.expert_imbalance),
        shard=training.shard,
        shard_degree=training.shard_degree,
        pins=_pins(stages.pin or []),
        same_stage=[group.split(",") for group in stages.same_stage or []],
        different_stage=[group.split(",") for group in stages.different_stage or []],
        solver=stages.solver,
        time_limit=stages.time_limit,
        recompute=policies.recompute,
        recompute_layers=policies.recompute_layer or [],
        selective_layers=policies.selective_layer or [],
        keep_layers=policies.keep_layer or [],
        offload=policies.offload,
        offload_layers=policies.offload_layer or [],
        offload_optimizer=policies.offload_optimizer,
        optimizer=training.optimizer,
        precision=training.precision,
        gradient_dtype=training.gradient_dtype,
        zero1=training.zero1,
        sync=training.sync,
        bucket_bytes=training.sync_bucket,
        sends=training.sends,
    )


def _imbalance(text: str | None) -> float | str | Sequence[LayerLoad] | None:
    """Read a number, `measured`, or the file of a run. Raises FileError where a file is no run."""
    if text is None or text == MEASURED:
        return text
    try:
        return float(text)
    except ValueError:
        return load_run_result(text).expert_loads


def _replicas(text: str) -> int | None:
    """Read a number of replicas; None for `auto`."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"'{text}' is no number of replicas; write auto, 4 or per-stage")
    return int(text)


def _counts(text: str | None) -> tuple[int, ...]:
    """Read `1,2,4`; empty where nothing was typed."""
    parts = text.split(",") if text is not None else []
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"'{text}' is no list of counts; write them as 1,2,4")
    return tuple(map(int, parts))


def _pins(texts: Sequence[str]) -> dict[str, int]:
    """Read `LAYER=STAGE` pins."""
    pins: dict[str, int] = {}
    for text in texts:
        layer, _, stage = text.rpartition("=")
        if not layer or not stage.isdecimal():
            raise typer.BadParameter(f"'{text}' is no pin; write a layer and a stage: head=3")
        if pins.setdefault(layer, int(stage)) != int(stage):
            raise typer.BadParameter(f"layer '{layer}' is pinned to {pins[layer]} and to {stage}")
    return pins
