"""`autopart probe`: measure what the cost model needs of this machine or cluster."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.console import check_may_write, print_result, warn
from autopart.cli.options import AsJson
from autopart.cluster import FORMAT, save_cluster
from autopart.probe_result import ProbeSummary, cluster_of_probe, notes_on_probe
from autopart.report.probe_table import probe_report

EXAMPLE = "autopart probe --ranks 2 -o cluster.json"


def command(
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Start so many ranks on this machine, without torchrun."),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The cluster file to write.")
    ] = Path("cluster.json"),
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="Default: cuda where each rank has a GPU of its own, else cpu."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Compute threads of a rank, on a CPU.")] = 1,
    timeout: Annotated[
        float,
        typer.Option(
            min=1.0, help="Seconds that one wait for another rank may last; all: ten times."
        ),
    ] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Measure links, all-reduces, copies to the host, compute beside neighbours and the cost of an
    action between real ranks, and write the cluster file that 'autopart solve --cluster' reads.

    Start it with torchrun on all nodes, as the training will be, or with --ranks on one machine.
    Nothing else should run meanwhile.
    """
    check_may_write(output, FORMAT)
    from autopart.runtime.probing.probe import probe_cluster  # and with it torch: seconds

    probe = probe_cluster(num_ranks=ranks, device=device, threads=threads, timeout=timeout)
    if probe is None:
        return
    cluster, notes = cluster_of_probe(probe), notes_on_probe(probe)
    save_cluster(cluster, output)
    warn(notes)
    summary = ProbeSummary(path=str(output), cluster=cluster, probe=probe, notes=notes)
    print_result(summary, *probe_report(summary), f"cluster written to {output}", as_json=as_json)
