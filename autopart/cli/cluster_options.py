"""The options that describe a cluster; `autopart/cli/chosen_cluster.py` makes the cluster."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.shared_options import usage_checked
from autopart.units import parse_bandwidth, parse_bytes

_SIZE = usage_checked(parse_bytes)
_BANDWIDTH = usage_checked(parse_bandwidth)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterOptions:
    """The GPUs, their memory, and the links between them; None where nothing was typed."""

    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs, over all nodes together.")
    ] = None
    nodes: Annotated[int | None, typer.Option(min=1, help="Number of nodes; default: 1.")] = None
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="GPUs per node.")] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            help="The kind of GPU, on the known nodes that it comes in; or kinds in the order of the "
            "ranks: h100-sxm:4,l40s:4. Default: the profile's own."
        ),
    ] = None
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=_SIZE,
            help="Memory of one GPU, such as 80GiB; default: the GPU's datasheet.",
        ),
    ] = None
    reserve: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=_SIZE,
            help="Part of that memory which the framework keeps for itself, such as 1GiB.",
        ),
    ] = None
    intra_bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            parser=_BANDWIDTH,
            help="Bandwidth between GPUs of a node, such as 450GB/s.",
        ),
    ] = None
    inter_bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            parser=_BANDWIDTH,
            help="Bandwidth between nodes, such as 200Gbit/s.",
        ),
    ] = None
    host_bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            parser=_BANDWIDTH,
            help="Bandwidth between a GPU and its host, such as 50GB/s.",
        ),
    ] = None
    host_memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=_SIZE,
            help="Host memory of one node for everything offloaded, such as 1TiB; default: no limit.",
        ),
    ] = None
    cluster: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help="A cluster file, or a known cluster such as dgx-h100 (see 'autopart clusters').",
        ),
    ] = None
