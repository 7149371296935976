"""What totals and frontiers depend on: where two stages have equal keys, they share both."""

from typing import NamedTuple

from autopart.activations.chooser import StagePlace
from autopart.records.cluster import HostLink, host_share
from autopart.records.problem import Demands, Problem


class GraphEnds(NamedTuple):
    """Which ends of the graph a stage must reach."""

    first: bool = False
    last: bool = False


ANYWHERE = GraphEnds()


class FrontierKey(NamedTuple):
    """Everything in a problem that its frontiers depend on, except the graph."""

    demands: Demands
    host_link: HostLink | None
    hosted: bool
    """Whether host memory is limited."""
    speed: float | None
    """None where only bytes count."""
    split: bool
    """Whether backwards may be split."""
    apart: bool
    """Whether forward and backward seconds count apart."""
    first: bool
    """Whether first backwards count apart."""


class TotalsKey(NamedTuple):
    """Everything in a problem and a layout that totals depend on, except the graph."""

    problem: tuple[object, ...]
    place: StagePlace
    on_host: bool | None
    """Whether optimizer state lies on the host; None for each stage's better place."""
    least: bool
    """Whether only bytes count."""
    ends: GraphEnds = ANYWHERE
    """The stages whose policies are chosen."""


def without_graph(problem: Problem) -> tuple[object, ...]:
    """All fields in a problem that totals depend on, except the graph, which its cuts stand for.

    Totals do not depend on nodes, nor on the links between ranks.
    """
    names = [name for name in problem.__struct_fields__ if name not in ("graph", "cluster")]
    linked = (
        "num_nodes", "gpus_per_node", "intra_node", "inter_node", "network", "host_memory_bytes",
    )  # fmt: skip
    cluster = [name for name in problem.cluster.__struct_fields__ if name not in linked]
    return (
        *(getattr(problem, name) for name in names),
        *(getattr(problem.cluster, name) for name in cluster),
        host_share(problem.cluster),
    )
