"""`autopart solve`: cut a profiled model for a cluster."""

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.cluster_options import ClusterOptions, chosen_cluster, notes_on
from autopart.cli.console import check_may_write, print_result, warn
from autopart.cli.options import AsJson, parse_counts, parse_pins, parse_replicas, usage_checked
from autopart.memory_sweep import memory_sweep as sweep_memory
from autopart.plan import FORMAT, save_plan
from autopart.planner import DEFAULT_SCHEDULE, baselines, known_schedules, solve
from autopart.profile import load_profile, newest_profile
from autopart.report.plan_table import comparison_table, notes_on_scaled, plan_report, reading_of
from autopart.report.summary import solve_summary
from autopart.report.sweep_table import sweep_summary, sweep_table
from autopart.training import MOMENTS
from autopart.units import parse_bandwidth, parse_bytes

EXAMPLE = "autopart solve --gpus 8 --nodes 2 --memory 80GiB -o plan.json"

_SIZE = usage_checked(parse_bytes)
_BANDWIDTH = usage_checked(parse_bandwidth)


def command(
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="A profile, or several of one model at different microbatch sizes; default: the "
            "newest one in this folder."
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs in all, over all nodes.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Nodes; default 1.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs of one node.")] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="The kind of GPU, or kinds in the order of the ranks: h100-sxm:4,l40s:4; "
            "default: what the profile was measured on."
        ),
    ] = None,
    memory: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=_SIZE, help="Memory of one GPU, such as 80GiB."),
    ] = None,
    reserve: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=_SIZE,
            help="The part of it that the framework holds for itself, such as 1GiB.",
        ),
    ] = None,
    intra_bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", parser=_BANDWIDTH, help="Between GPUs of a node, such as 450GB/s."
        ),
    ] = None,
    inter_bandwidth: Annotated[
        float | None,
        typer.Option(metavar="RATE", parser=_BANDWIDTH, help="Between nodes, such as 200Gbit/s."),
    ] = None,
    host_bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="RATE", parser=_BANDWIDTH, help="Between a GPU and its host, such as 50GB/s."
        ),
    ] = None,
    host_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=_SIZE, help="Of one node, for what its GPUs offload; else any."
        ),
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="A cluster file, instead of --gpu and the counts.")
    ] = None,
    global_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Samples of one optimizer step, over all replicas together."),
    ] = None,
    microbatch_size: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Microbatch sizes to search; one without a profile is scaled from another.",
        ),
    ] = None,
    objective: Annotated[
        Literal["step", "bottleneck"],
        typer.Option(help="What is minimised: the simulated step, or its busiest rank's time."),
    ] = "step",
    schedule: Annotated[
        str,
        typer.Option(
            metavar="NAME[,NAME]|auto",
            parser=usage_checked(known_schedules),
            help="The schedules to choose from; auto: every one, and orders of the plan's own.",
        ),
    ] = DEFAULT_SCHEDULE,
    stages_per_rank: Annotated[
        int | None, typer.Option(min=1, help="Stages of a rank (virtual stages).")
    ] = None,
    stages: Annotated[int | None, typer.Option(min=1, help="Number of stages.")] = None,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="auto|N|per-stage",
            help="Copies of each stage: as many for all, N, or as many as suit each.",
        ),
    ] = "auto",
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER=STAGE", help="Put a layer on a stage, counted from 0."),
    ] = None,
    same_stage: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Layers that must share a stage.")
    ] = None,
    different_stage: Annotated[
        list[str] | None, typer.Option(metavar="A,B", help="Layers that must not share a stage.")
    ] = None,
    recompute: Annotated[
        Literal["never", "auto", "selective", "always"],
        typer.Option(
            help="Layers that run their forward again in backward instead of keeping their stash; "
            "auto: those that make the step fastest within the memory; selective: all, but only their "
            "cheap part."
        ),
    ] = "never",
    recompute_layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Recompute a layer in any case.")
    ] = None,
    selective_layer: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Recompute a layer's cheap part in any case."),
    ] = None,
    offload: Annotated[
        Literal["never", "auto", "always"],
        typer.Option(help="Layers whose stash waits in the memory of the host."),
    ] = "never",
    offload_optimizer: Annotated[
        Literal["never", "auto", "always"],
        typer.Option(
            help="Optimizer state and master copies on the host; auto: of the stages whose ranks are "
            "busy for a shorter step so."
        ),
    ] = "never",
    offload_layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Offload a layer in any case.")
    ] = None,
    keep_layer: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Keep a layer's stash in any case.")
    ] = None,
    solver: Annotated[
        Literal["auto", "dp", "ilp", "uniform", "parameters"],
        typer.Option(help="dp and ilp are exact; uniform and parameters are the usual splits."),
    ] = "auto",
    optimizer: Annotated[
        str,
        typer.Option(
            metavar="|".join((*MOMENTS, "BYTES")),
            help="Whose state must be held, or its bytes for each trained element.",
        ),
    ] = "adamw",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE[-mixed]",
            help="The profile's dtype; -mixed: with float32 master copies, as 16 bits are by default.",
        ),
    ] = None,
    gradient_dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            help="In which gradients are summed: the profile's dtype, or float32 where that has 16 bits.",
        ),
    ] = None,
    zero1: Annotated[
        bool,
        typer.Option(
            "--zero1", help="Replicas share out optimizer state and master copies (ZeRO-1)."
        ),
    ] = False,
    time_limit: Annotated[
        float, typer.Option(min=0.0, help="Seconds; what it leaves open widens the gap.")
    ] = 60.0,
    memory_sweep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Show the best plans within N memory sizes, from generous to impossible; no file "
            "is written.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan file.")] = Path(
        "plan.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Cut a profiled model for a cluster, and say how good the cut is."""
    if memory_sweep is None:
        check_may_write(output, FORMAT)
    paths = profile or [Path(newest_profile(Path.cwd()).name)]
    measured = [load_profile(path) for path in paths]
    typed = ClusterOptions(
        gpus=gpus,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu=gpu,
        memory=memory,
        reserve=reserve,
        intra_bandwidth=intra_bandwidth,
        inter_bandwidth=inter_bandwidth,
        host_bandwidth=host_bandwidth,
        host_memory=host_memory,
        cluster=cluster,
    )
    target = chosen_cluster(typed, measured[0])
    solve_on = functools.partial(
        solve,
        measured,
        global_batch=global_batch,
        microbatch_sizes=parse_counts(microbatch_size),
        objective=objective,
        schedule=schedule,
        stages_per_rank=stages_per_rank,
        solver=solver,
        num_stages=stages,
        num_replicas=None if replicas in ("auto", "per-stage") else parse_replicas(replicas),
        replicas_per_stage=replicas == "per-stage",
        pins=parse_pins(pin or []),
        same_stage=[group.split(",") for group in same_stage or []],
        different_stage=[group.split(",") for group in different_stage or []],
        recompute=recompute,
        recompute_layers=recompute_layer or [],
        selective_layers=selective_layer or [],
        keep_layers=keep_layer or [],
        offload=offload,
        offload_layers=offload_layer or [],
        offload_optimizer=offload_optimizer,
        optimizer=optimizer,
        precision=precision,
        gradient_dtype=gradient_dtype,
        zero1=zero1,
        time_limit=time_limit,
    )
    if memory_sweep is not None:
        points = sweep_memory(solve_on, target, memory_sweep)
        swept = sweep_summary(", ".join(map(str, paths)), len(measured[0].graph.layers), points)
        warn(notes_on(measured[0], target))
        print_result(swept, sweep_table(swept), as_json=as_json)
        return
    plan = solve_on(target)
    save_plan(plan, output)
    beside = baselines(measured, plan)
    reading, notes = (
        reading_of(plan, batch_given=global_batch is not None),
        [*notes_on(measured[0], target), *notes_on_scaled(plan)],
    )
    warn(notes)
    summary = solve_summary(
        plan,
        str(output),
        profile=", ".join(map(str, paths)),
        reading=reading,
        notes=notes,
        baselines=beside,
    )
    print_result(
        summary,
        f"profile {summary.profile}",
        reading,
        plan_report(plan),
        comparison_table(plan, beside),
        f"plan written to {output}",
        as_json=as_json,
    )
