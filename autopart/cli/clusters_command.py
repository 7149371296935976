"""`autopart clusters`: the nodes that `--cluster` knows by name."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import AsJson
from autopart.errors import UsageError
from autopart.records.cluster import FORMAT, check_cluster, save_cluster
from autopart.records.known_clusters import PRESETS, find_preset, preset_cluster
from autopart.report.cluster_table import KnownClusters, cluster_table, known_cluster

EXAMPLE = "autopart clusters dgx-h100 --nodes 8 -o cluster.json"


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One of them; default: all.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The cluster file to write, for one name."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the clusters that 'autopart solve --cluster NAME' knows, with the source of each figure.

    With a name and -o it writes the cluster file, whose figures can then be changed.
    """
    presets = list(PRESETS.values()) if name is None else [find_preset(name)]
    shown = [known_cluster(preset, preset_cluster(preset, nodes)) for preset in presets]
    for one in shown:
        check_cluster(one.cluster, one.name)
    known = KnownClusters(clusters=tuple(shown))
    lines = ["'autopart clusters NAME' says the sources"]
    if name is not None:
        lines = [shown[0].title, shown[0].cluster.source]
    if output is not None:
        if name is None:
            raise UsageError("-o writes one cluster: name it, for example dgx-h100")
        check_may_write(output, FORMAT)
        save_cluster(shown[0].cluster, output)
        lines.append(f"cluster written to {output}")
    print_result(known, cluster_table(known), *lines, as_json=as_json)
