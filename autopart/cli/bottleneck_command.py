"""`autopart bottleneck`: another planner's file under that planner's own objective."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.options import AsJson, usage_checked
from autopart.foreign import CONVENTIONS, Limits, solve_foreign
from autopart.report.foreign_table import foreign_report
from autopart.units import parse_bandwidth, parse_bytes

EXAMPLE = "autopart bottleneck pipedream graph.txt --gpus 8 --bandwidth 10GB/s"

_SIZE = usage_checked(parse_bytes)
_BANDWIDTH = usage_checked(parse_bandwidth)


def command(
    convention: Annotated[
        str,
        typer.Argument(
            metavar="CONVENTION", help=f"Whose objective, and format: {', '.join(CONVENTIONS)}."
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other planner's file.")],
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs in all, over all nodes.")] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="pipedream: nodes of a network of two levels.")
    ] = None,
    bandwidth: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATE",
            parser=_BANDWIDTH,
            help="Such as 10GB/s; with --nodes give two, the one within a node first.",
        ),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(metavar="SIZE", parser=_SIZE, help="Memory of one GPU.")
    ] = None,
    microbatches: Annotated[
        int | None, typer.Option(min=1, help="piper: microbatches of a batch.")
    ] = None,
    one_gpu_a_stage: Annotated[
        bool, typer.Option("--one-gpu-a-stage", help="pipedream: no replicas.")
    ] = False,
    all_sends: Annotated[
        bool,
        typer.Option("--all-sends", help="pipedream: charge also the sends that it leaves out."),
    ] = False,
    no_contiguity: Annotated[
        bool,
        typer.Option("--no-contiguity", help="dnn-partitioning: a device may hold several pieces."),
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option(min=0.0, help="Seconds; default 60. piper has none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Solve another planner's FILE for the bottleneck as that planner counts it.

    What the file fixes (CPUs, colours, tensor-parallel variants) comes from the file. Prints
    stages, objective, lower bound and gap; the answer is no plan that can be run.
    """
    limits = Limits(
        gpus=_levels(gpus, nodes),
        bandwidths=tuple(bandwidth) if bandwidth else None,
        memory_bytes=memory,
        num_microbatches=microbatches,
        one_gpu_a_stage=one_gpu_a_stage,
        all_sends=all_sends,
        contiguous=not no_contiguity,
    )
    if time_limit is not None:
        limits = limits._replace(time_limit=time_limit)
    answer = solve_foreign(convention, file, limits)
    print_result(answer, foreign_report(answer), as_json=as_json)


def _levels(gpus: int | None, nodes: int | None) -> tuple[int, ...] | None:
    """GPUs, or those of a node and nodes."""
    if nodes is None:
        return None if gpus is None else (gpus,)
    if gpus is None or gpus % nodes:
        raise typer.BadParameter(
            f"{gpus or 'no'} GPUs on {nodes} nodes: --gpus counts all GPUs, and must be a multiple"
        )
    return gpus // nodes, nodes
