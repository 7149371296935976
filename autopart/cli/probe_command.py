"""`autopart probe`: measure a machine or cluster for the cost model."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import print_result, warn
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import MOST_THREADS, AsJson
from autopart.cost.probed_cluster import cluster_of_probe, notes_on_probe
from autopart.records.cluster import FORMAT, save_cluster
from autopart.records.probe import ProbeSummary
from autopart.report.probe_table import probe_report

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
            help="Seconds for one wait on another rank; the whole probe may take ten times as long.",
        ),
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Measure links, all-reduces and copies to the host between real ranks.

    It also measures compute beside busy neighbours, and the fixed cost of an action. The result is
    the cluster file that 'autopart solve --cluster' reads.

    Start it with torchrun on all nodes, as the training will be, or with --ranks on one machine.
    Nothing else should run meanwhile.
    """
    check_may_write(output, FORMAT)
    from autopart.runtime.probing.probe import probe_cluster  # imports torch, which takes seconds

    probe = probe_cluster(num_ranks=ranks, device=device, threads=threads, timeout=timeout)
    if probe is None:
        return
    cluster, notes = cluster_of_probe(probe), notes_on_probe(probe)
    save_cluster(cluster, output)
    warn(notes)
    summary = ProbeSummary(path=str(output), cluster=cluster, probe=probe, notes=notes)
    print_result(summary, *probe_report(summary), f"cluster written to {output}", as_json=as_json)
