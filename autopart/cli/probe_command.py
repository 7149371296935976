"""`autopart probe`: measure a machine or cluster for the cost model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, warn
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import MOST_THREADS, AsJson
from autopart.cost.probe_comparison import compare_network, notes_on_comparisons
from autopart.cost.probed_cluster import cluster_of_probe, notes_on_probe
from autopart.records.cluster import FORMAT, save_cluster
from autopart.records.probe import Probe, ProbeSummary
from autopart.report.probe_table import probe_report

MOST_LIMIT = 86400.0
"""Most seconds for the network: a day."""

MeasuresNetwork = Annotated[
    bool | None,
    typer.Option(
        "--network/--no-network",
        help="Measure rails, rings and collectives between all ranks; default: where there are several nodes.",
        show_default=False,
    ),
]
NetworkLimit = Annotated[
    float,
    typer.Option(
        min=1.0,
        max=MOST_LIMIT,
        help="Seconds for the network; the largest messages are left out where it is short.",
    ),
]
EXAMPLE = "autopart probe --ranks 2 -o cluster.json"


def command(
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Number of ranks to start on this machine, without torchrun."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The cluster file to write.")
    ] = Path("cluster.json"),
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(
            help="Device of the ranks; default: cuda where each rank has its own GPU, else cpu."
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=MOST_THREADS, help="Compute threads per rank, on a CPU.")
    ] = 1,
    timeout: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="Seconds for one wait on another rank; without the network the whole probe may take ten times as long.",
        ),
    ] = 60.0,
    network: MeasuresNetwork = None,
    limit: NetworkLimit = 120.0,
    as_json: AsJson = False,
) -> None:
    """Measure links, all-reduces and copies to the host between real ranks.

    It also measures compute beside busy neighbours, and the fixed cost of an action. On several
    nodes it measures collectives between all ranks too, and fits the network record. The result is
    the cluster file that 'autopart solve --cluster' reads.

    Start it with torchrun on all nodes, as the training will be, or with --ranks on one machine.
    Nothing else should run meanwhile.
    """
    check_may_write(output, FORMAT)
    from autopart.runtime.probing.probe import probe_cluster  # imports torch, which takes seconds

    probe = probe_cluster(
        num_ranks=ranks,
        device=device,
        threads=threads,
        timeout=timeout,
        network=network,
        limit=limit,
    )
    if probe is None:
        return
    summary = _summary(probe, output)
    save_cluster(summary.cluster, output)
    warn(summary.notes)
    print_result(summary, *probe_report(summary), f"cluster written to {output}", as_json=as_json)


def _summary(probe: Probe, output: Path) -> ProbeSummary:
    cluster = cluster_of_probe(probe)
    compared = () if probe.network is None else compare_network(cluster, probe.network)
    notes = (*notes_on_probe(probe), *notes_on_comparisons(compared))
    return ProbeSummary(
        path=str(output), cluster=cluster, probe=probe, comparisons=compared, notes=notes
    )
