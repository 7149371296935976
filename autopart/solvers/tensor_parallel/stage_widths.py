"""Stages that choose their own data- and tensor-parallel degrees, for the smallest bottleneck.

States are the down-sets of the graph, so that every division into stages whose edges go forward is
a path through them; the stages between two states are priced in autopart/loads/piper_stages.py, and
the path is found through the dual in autopart/solvers/tensor_parallel/devices.py. Nothing is lost on the way:

(1) Only stages within a time limit are priced. Where a plan exists within the limit, its stages are
    among them; where none exists, the limit is raised, at last to infinity.
(2) With more down-sets than `MANY_STATES`, the highest limit comes from the best plan along some
    topological orders, which is a plan of the whole problem too.
(3) With more down-sets than `MOST_STATES`, or more stages between them than fit into memory, that
    plan is the answer, and the lower bound is what is known of all down-sets: the limit
    within which they have no plan, or the compute of all nodes over all devices.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import numpy.typing as npt

from autopart.errors import InfeasibleError
from autopart.loads.piper import Limits, Net, Price, price, topological_order
from autopart.loads.piper_stages import (
    StageOptions,
    all_widths,
    least_work,
    most_replicas,
    stage_options,
)
from autopart.solvers.tensor_parallel import devices
from autopart.states import TooManyPairs, down_sets, prefixes

Array = npt.NDArray[Any]
"""A numpy array."""

MANY_STATES = 1_000
MOST_STATES = 40_000

LIMITS = (1.01, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 16.0)
"""Time limits to try, as multiples of the compute bound."""

MEMORY_STEP = 1e-3
"""How closely the memory that would do is found, relatively."""

ROUNDING = 1e-11
"""Relative difference at which two sums of times are the same."""


class WideStage(NamedTuple):
    """A stage on `replicas` replicas of `width` devices each."""

    nodes: tuple[int, ...]
    """Positions in the net."""
    replicas: int
    width: int
    in_flight: int
    price: Price


class WidePlan(NamedTuple):
    """The stages, the first of the pipeline first."""

    bottleneck: float
    lower_bound: float
    """No plan has a smaller bottleneck; equal to it where the plan is proven optimal."""
    infeasible: float | None
    """The next smaller time of a stage that leaves the rest enough devices for its compute: there
    is no plan within it. None where there is no such stage, or the bound is another."""
    stages: tuple[WideStage, ...]


def solve(net: Net, limits: Limits) -> WidePlan:
    """The plan with the smallest largest stage time; raises InfeasibleError where none fits."""
    for node in net.nodes:
        if not node.choices:
            raise InfeasibleError(f"node {node.id} ({node.name}) has no way to run: no choices")
    # More devices than all replicas of the greatest width cannot be used.
    usable = min(limits.devices, most_replicas(limits) * all_widths(net)[-1])
    limits = limits._replace(devices=usable)
    edges = ((edge.source, edge.target) for edge in net.edges)
    every = down_sets(len(net.nodes), edges, MOST_STATES)
    bound = float(least_work(net).sum()) / limits.devices
    if every is not None and len(every) <= MANY_STATES:
        rise = _rising(net, limits, every, bound, np.inf)
    else:
        rise = _orders_then_all(net, limits, every, bound)
    if rise.plan is None:
        along = prefixes(topological_order(net))
        raise InfeasibleError(_why(net, limits, along, proven=rise.complete))
    return rise.plan


class _Rise(NamedTuple):
    """What came of raising the time limit."""

    plan: WidePlan | None
    failed: float
    """The largest limit within which there is no plan."""
    complete: bool
    """Whether it was raised as far as was asked for, or to a plan."""


def _orders_then_all(net: Net, limits: Limits, every: Array | None, bound: float) -> _Rise:
    """(2) and (3) above."""
    first: WidePlan | None = None
    for order in _orders(net):
        found = _rising(net, limits, prefixes(order), bound, _below(first)).plan
        first = first if found is None else found
    rise = _Rise(None, bound, complete=False)
    if every is not None:
        rise = _rising(net, limits, every, bound, _below(first))
    if rise.plan is not None or first is None:
        return rise
    proven = first.bottleneck if rise.complete else rise.failed
    return rise._replace(plan=first._replace(lower_bound=proven, infeasible=None))


def _below(plan: WidePlan | None) -> float:
    """A time limit within which only better plans lie."""
    return np.inf if plan is None else plan.bottleneck * (1 - 3 * ROUNDING)


def _orders(net: Net) -> Iterator[tuple[int, ...]]:
    """Topological orders in which nodes stand as early or as late as edges allow, those first in the
    file before the others or behind them."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(net.nodes)))
    graph.add_edges_from((edge.source, edge.target) for edge in net.edges)
    behind = graph.reverse()
    for keys in (range(len(net.nodes)), range(0, -len(net.nodes), -1)):
        yield tuple(nx.lexicographical_topological_sort(graph, key=keys.__getitem__))
        yield tuple(nx.lexicographical_topological_sort(behind, key=keys.__getitem__))[::-1]


def _rising(net: Net, limits: Limits, states: Array, bound: float, most: float) -> _Rise:
    """The best plan over `states`, with the time limit raised until there is one, up to `most`."""
    failed = bound
    for limit in (*(bound * factor for factor in LIMITS if bound * factor < most), most):
        try:
            found = _within(net, limits, states, limit)
        except TooManyPairs:
            return _Rise(None, failed, complete=False)
        if found is not None:
            return _Rise(found, failed, complete=True)
        failed = limit
    return _Rise(None, failed, complete=True)


def _within(net: Net, limits: Limits, states: Array, most_time: float) -> WidePlan | None:
    options = stage_options(net, limits, states, most_time * (1 + ROUNDING))
    best = devices.solve(
        devices.Options(*options[:6]),
        levels=states.sum(axis=1),
        work=states @ least_work(net),
        devices=limits.devices,
        replicas=most_replicas(limits),
    )
    if best is None:
        return None
    stages = _stages(net, limits, states, options, best.options)
    bottleneck = max(stage.price.time for stage in stages)
    return WidePlan(bottleneck, bottleneck, best.infeasible, stages)


def _stages(
    net: Net, limits: Limits, states: Array, options: StageOptions, taken: tuple[int, ...]
) -> tuple[WideStage, ...]:
    behind = 0
    stages: list[WideStage] = []
    for at in reversed(taken):
        nodes = tuple(np.flatnonzero(states[options.end[at]] & ~states[options.start[at]]).tolist())
        replicas, width = int(options.replicas[at]), int(options.width[at])
        in_flight = 1 - (-behind // replicas)
        cost = price(net, limits, nodes, width, replicas, in_flight)
        time = float(options.time[at])
        if cost is None or cost.time > time * (1 + ROUNDING):
            # Piper's rule does better here when it makes room for more than there is.
            cost = price(net, limits, nodes, width, replicas, int(options.in_flight[at]))
        assert cost is not None, "the option was priced with that many in flight"
        stages.append(WideStage(nodes, replicas, width, in_flight, cost))
        behind += replicas
    return tuple(reversed(stages))


def _why(net: Net, limits: Limits, along: Array, *, proven: bool) -> str:
    """Why nothing fits, and the memory that would do, to a thousandth."""
    where = "" if proven else ", cut along some orders,"
    asked = f"no stages on {limits.devices} devices{where} fit into {limits.memory_bytes:.0f} bytes each"
    low, high = limits.memory_bytes, 2 * limits.memory_bytes
    if _within(net, limits._replace(memory_bytes=np.inf), along, np.inf) is None:
        return (
            f"no stages on {limits.devices} devices, however much memory they have: some node has no "
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
