"""`autopart bottleneck`: another planner's file under that planner's own objective."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.option_groups import with_groups
from autopart.cli.shared_options import AsJson, usage_checked
from autopart.peers.limits import CONVENTIONS, PeerLimits
from autopart.peers.solve import solve_peer
from autopart.report.peer_table import peer_report
from autopart.text import counted
from autopart.units import parse_bandwidth, parse_bytes

EXAMPLE = "autopart bottleneck pipedream graph.txt --gpus 8 --bandwidth 10GB/s"

_SIZE = usage_checked(parse_bytes)
_BANDWIDTH = usage_checked(parse_bandwidth)


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkOptions:
    """The GPUs, their memory, and the bandwidth between them."""

    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs, over all nodes together.")
    ] = None
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="pipedream: number of nodes, for a network of two levels."),
    ] = None
    bandwidth: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATE",
            parser=_BANDWIDTH,
            help="Bandwidth between GPUs, such as 10GB/s; with --nodes give two, inside a node first.",
        ),
    ] = None
    memory: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=_SIZE, help="Memory of one GPU, such as 16GiB."),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveOptions:
    """Choices that one planner knows, and the time of the search."""

    microbatches: Annotated[
        int | None, typer.Option(min=1, help="piper: microbatches per batch.")
    ] = None
    one_gpu_per_stage: Annotated[
        bool, typer.Option("--one-gpu-per-stage", help="pipedream: one GPU per stage, no replicas.")
    ] = False
    all_sends: Annotated[
        bool,
        typer.Option(
            "--all-sends", help="pipedream: charge the sends that its model leaves out, too."
        ),
    ] = False
    no_contiguity: Annotated[
        bool,
        typer.Option(
            "--no-contiguity", help="dnn-partitioning: let a device hold several separate parts."
        ),
    ] = False
    time_limit: Annotated[
        float | None,
        typer.Option(min=0.0, help="Seconds for the search; default: 60. piper has no limit."),
    ] = None


@with_groups
def command(
    *,
    convention: Annotated[
        str,
        typer.Argument(
            metavar="CONVENTION",
            help=f"The planner whose format and objective to use: {', '.join(CONVENTIONS)}.",
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The other planner's file.")],
    network_options: NetworkOptions,
    objective_options: ObjectiveOptions,
    as_json: AsJson = False,
) -> None:
    """Solve another planner's FILE for the bottleneck as that planner counts it.

    CPUs, colours and tensor-parallel variants come from the file. Prints stages, objective, lower
    bound and gap. The answer is not a plan: it cannot be run.
    """
    limits = _limits(network_options, objective_options)
    answer = solve_peer(convention, file, limits)
    print_result(answer, peer_report(answer), as_json=as_json)


def _limits(network: NetworkOptions, objective: ObjectiveOptions) -> PeerLimits:
    """The limits that the options name. Raises typer.BadParameter where the counts do not fit."""
    limits = PeerLimits(
        gpus=_levels(network.gpus, network.nodes),
        bandwidths=tuple(network.bandwidth) if network.bandwidth else None,
        memory_bytes=network.memory,
        num_microbatches=objective.microbatches,
        one_gpu_per_stage=objective.one_gpu_per_stage,
        all_sends=objective.all_sends,
        contiguous=not objective.no_contiguity,
    )
    if objective.time_limit is not None:
        limits = limits._replace(time_limit=objective.time_limit)
    return limits


def _levels(gpus: int | None, nodes: int | None) -> tuple[int, ...] | None:
    """The number of GPUs, or GPUs per node and the number of nodes."""
    if nodes is None:
        return None if gpus is None else (gpus,)
    if gpus is None or gpus % nodes:
        raise typer.BadParameter(
            f"{counted(gpus or 0, 'GPU')} on {counted(nodes, 'node')}: --gpus counts all GPUs and must be a multiple"
        )
    return gpus // nodes, nodes
