"""Stages that choose their own data- and tensor-parallel degrees, for the smallest bottleneck.

Every division into stages with forward edges is a path through the graph's downsets.
stage_options.py prices the stages between two downsets. fewest_devices.py finds the path through
the dual. Pruning is exact:

(1) Stages are priced only within a time limit. A plan within the limit has only such stages. Where
there is none, the limit is raised, in the end to infinity. (2) With more downsets than
`MANY_DOWNSETS`, the highest limit comes from the best plan along some topological orders. It is a
plan for the whole problem too. (3) With more downsets than `MOST_DOWNSETS`, or more stages between
them than fit into memory, that plan is the answer. The lower bound then is the limit without a plan
over all downsets, or all compute over all devices.
"""

from collections.abc import Iterator
from typing import NamedTuple

import networkx as nx
import numpy as np

from autopart.downsets import downset_lattice, masks_of_edges, unpack
from autopart.errors import InfeasibleError
from autopart.peers.piper import fewest_devices
from autopart.peers.piper.charges import (
    Flags,
    PiperLimits,
    PiperNet,
    StagePrice,
    price,
    topological_order,
)
from autopart.peers.piper.nested_pairs import TooManyPairs, prefixes
from autopart.peers.piper.stage_options import stage_options
from autopart.peers.piper.stage_pricer import StageOptions
from autopart.peers.piper.width_choices import all_widths, least_work, most_replicas
from autopart.text import counted

MANY_DOWNSETS = 1_000
"""Number of downsets from which on orders are tried first."""
MOST_DOWNSETS = 40_000
"""Number of downsets up to which all are searched."""

LIMITS = (1.01, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 16.0)
"""Time limits to try, as multiples of the compute bound."""

MEMORY_STEP = 1e-3
"""Relative precision for the least memory in an error message."""

ROUNDING = 1e-11
"""Relative difference at which two sums of times are the same."""


class WideStage(NamedTuple):
    """A stage on `replicas` replicas with `width` devices each."""

    nodes: tuple[int, ...]
    """Positions in the net."""
    replicas: int
    width: int
    in_flight: int
    """Microbatches in flight."""
    price: StagePrice


class WidePlan(NamedTuple):
    """The stages, the first in the pipeline first."""

    bottleneck: float
    """Seconds per microbatch in the slowest stage."""
    lower_bound: float
    """No plan has a smaller bottleneck; equal to it where the plan is proven optimal."""
    infeasible: float | None
    """The next smaller time among the stages that leave the rest enough devices; no plan keeps
    within it.

    None where there is no such stage, or where the bound has another basis.
    """
    stages: tuple[WideStage, ...]


def solve(net: PiperNet, limits: PiperLimits) -> WidePlan:
    """The plan with the smallest largest stage time; raises InfeasibleError where none fits."""
    for node in net.nodes:
        if not node.choices:
            raise InfeasibleError(f"node {node.id} ({node.name}) cannot run: it has no choices")
    # No more devices can be used than the most replicas on the greatest width.
    usable = min(limits.devices, most_replicas(limits) * all_widths(net)[-1])
    limits = limits._replace(devices=usable)
    edges = ((edge.source, edge.target) for edge in net.edges)
    lattice = downset_lattice(*masks_of_edges(len(net.nodes), edges), MOST_DOWNSETS)
    every = lattice and unpack(lattice.masks, len(net.nodes))
    bound = float(least_work(net).sum()) / limits.devices
    if every is not None and len(every) <= MANY_DOWNSETS:
        rise = _rising(net, limits, every, bound, np.inf)
    else:
        rise = _orders_then_all(net, limits, every, bound)
    if rise.plan is None:
        along = prefixes(topological_order(net))
        raise InfeasibleError(_why(net, limits, along, proven=rise.complete))
    return rise.plan


class _Rise(NamedTuple):
    """The result of raising the time limit."""

    plan: WidePlan | None
    failed: float
    """The largest limit without a plan."""
    complete: bool
    """Whether the limit was raised as far as asked for, or to a plan."""


def _orders_then_all(
    net: PiperNet, limits: PiperLimits, every: Flags | None, bound: float
) -> _Rise:
    """Cases (2) and (3) above."""
    first: WidePlan | None = None
    # Step 1: the best plan along a few orders.
    for order in _orders(net):
        found = _rising(net, limits, prefixes(order), bound, _below(first)).plan
        first = first if found is None else found
    # Step 2: one refusal just below it, over all downsets, proves it.
    rise = _Rise(None, bound, complete=False)
    if every is not None:
        rise = _rising(net, limits, every, bound, _below(first))
    if rise.plan is not None or first is None:
        return rise
    proven = first.bottleneck if rise.complete else rise.failed
    return rise._replace(plan=first._replace(lower_bound=proven, infeasible=None))


def _below(plan: WidePlan | None) -> float:
    """A time limit that only better plans keep."""
    return np.inf if plan is None else plan.bottleneck * (1 - 3 * ROUNDING)


def _orders(net: PiperNet) -> Iterator[tuple[int, ...]]:
    """Topological orders in which nodes stand as early or as late as edges allow.

    The tie between nodes goes to the first one in the file, or to the last one.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(net.nodes)))
    graph.add_edges_from((edge.source, edge.target) for edge in net.edges)
    behind = graph.reverse()
    for keys in (range(len(net.nodes)), range(0, -len(net.nodes), -1)):
        yield tuple(nx.lexicographical_topological_sort(graph, key=keys.__getitem__))
        yield tuple(nx.lexicographical_topological_sort(behind, key=keys.__getitem__))[::-1]


def _rising(
    net: PiperNet, limits: PiperLimits, downsets: Flags, bound: float, most: float
) -> _Rise:
    """The best plan over `downsets`, with the time limit raised until there is one, up to `most`."""
    failed = bound
    for limit in (*(bound * factor for factor in LIMITS if bound * factor < most), most):
        try:
            found = _within(net, limits, downsets, limit)
        except TooManyPairs:
            return _Rise(None, failed, complete=False)
        if found is not None:
            return _Rise(found, failed, complete=True)
        failed = limit
    return _Rise(None, failed, complete=True)


def _within(
    net: PiperNet, limits: PiperLimits, downsets: Flags, most_time: float
) -> WidePlan | None:
    """The best plan over `downsets` with stages within `most_time` seconds, or None."""
    options = stage_options(net, limits, downsets, most_time * (1 + ROUNDING))
    best = fewest_devices.solve(
        options,
        levels=downsets.sum(axis=1),
        work=downsets @ least_work(net),
        devices=limits.devices,
        replicas=most_replicas(limits),
    )
    if best is None:
        return None
    stages = _stages(net, limits, downsets, options, best.options)
    bottleneck = max(stage.price.time for stage in stages)
    return WidePlan(bottleneck, bottleneck, best.infeasible, stages)


def _stages(
    net: PiperNet,
    limits: PiperLimits,
    downsets: Flags,
    options: StageOptions,
    taken: tuple[int, ...],
) -> tuple[WideStage, ...]:
    """The stages with their real microbatches in flight, and their prices."""
    behind = 0
    stages: list[WideStage] = []
    for at in reversed(taken):
        nodes = tuple(
            np.flatnonzero(downsets[options.end[at]] & ~downsets[options.start[at]]).tolist()
        )
        replicas, width = int(options.replicas[at]), int(options.width[at])
        in_flight = 1 - (-behind // replicas)
        cost = price(net, limits, nodes, width, replicas, in_flight)
        time = float(options.time[at])
        if cost is None or cost.time > time * (1 + ROUNDING):
            # Piper's rule is better here when it makes room for more microbatches than there are.
            cost = price(net, limits, nodes, width, replicas, int(options.in_flight[at]))
        assert cost is not None, "the option was priced with that many in flight"
        stages.append(WideStage(nodes, replicas, width, in_flight, cost))
        behind += replicas
    return tuple(reversed(stages))


def _why(net: PiperNet, limits: PiperLimits, along: Flags, *, proven: bool) -> str:
    """The message where nothing fits, with the least memory to a thousandth."""
    where = "" if proven else ", cut along some orders,"
    asked = f"no stages on {counted(limits.devices, 'device')}{where} fit into {limits.memory_bytes:.0f} bytes each"
    low, high = limits.memory_bytes, 2 * limits.memory_bytes
    if _within(net, limits._replace(memory_bytes=np.inf), along, np.inf) is None:
        return (
            f"no stages on {counted(limits.devices, 'device')}, however much memory they have: some node has no "
            "choice for so few; try more devices"
        )
    while _within(net, limits._replace(memory_bytes=high), along, np.inf) is None:
        low, high = high, 2 * high
    while high > low * (1 + MEMORY_STEP):
        middle = (low + high) / 2
        if _within(net, limits._replace(memory_bytes=middle), along, np.inf) is None:
            low = middle
        else:
            high = middle
    return f"{asked}; {high:.0f} would do; try more memory or more devices"
