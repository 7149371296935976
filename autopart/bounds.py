"""Lower bounds on the step time of a problem, each a short sweep over prefix sums.

Symbols   k stages, r replicas, m microbatches a rank runs; F[i], B[i] forward and backward seconds of
          the layers before i; f, b forward and backward of a stage; o the fixed cost of an action;
          y in flight

Bound of one shape (k, r). Stage s of layers i … j - 1 cannot start before one microbatch came
through the stages ahead, then works m times, and after its last backward that microbatch goes back
through the stages ahead, or the stage syncs and updates; nor can the last microbatch take less than
its way down and back after the stage's other forwards:

    step >= F[i] + s (o + send) + m (f + b + 2 o) + max( B[i] + s (o + send), sync + update )       (1)
    step >= F[n] + B[n] + 2 k o + 2 (k - 1) send + (m - 1) (max(f, b) + o)                          (2)
    memory >= state + y * (what the stage keeps inside) + workspace + batch + reserve               (3)

with `send` the cheapest cut over the fastest link; where sends do not overlap compute, they also
count to the stage's work, and the hop next to the stage is then left out of its way. Every term grows with j, and for a fixed j none
grows with i, so taking each stage as long as (1)-(3) allow covers the chain with k stages exactly
when any k consecutive stages do: one O(k log n) sweep decides a value, bisection finds the bound.

Where the graph has other orders, stages need not be intervals of this one; then

    step >= T / (1 - (1 - 1/m)^k)         every stage fills at most what (1) leaves, T = F[n] + B[n]  (4)
    step >= m (f + b)_l + the (f + b) of all layers ahead of l, for each layer l                      (5)
    k * memory >= all state + all that is kept inside + k * reserve                                   (6)

The bound of a problem is the smallest over its shapes. It holds for every schedule in which a stage
runs whole forwards and backwards of its microbatches, on any placement of the ranks.
"""

import math

import networkx as nx
import numpy as np

from autopart.cost import (
    Number,
    StageLoad,
    all_reduce_time,
    in_flight,
    interval_loads,
    memory,
    send_time,
    total,
)
from autopart.errors import InfeasibleError
from autopart.graph import as_networkx, is_chain
from autopart.problem import Problem, shapes

BISECTIONS = 60


def lower_bound(problem: Problem) -> float:
    """Seconds that no plan of the problem can beat; raises InfeasibleError where no shape fits."""
    bounds = shape_bounds(problem)
    if not bounds:
        raise InfeasibleError("no number of stages and replicas fits into memory")
    return min(bounds.values())


def shape_bounds(problem: Problem) -> dict[tuple[int, int], float]:
    """For each (stages, replicas) that may fit into memory, seconds that no plan of it can beat."""
    loads = interval_loads(problem.graph)
    bound = _chain_bound if is_chain(problem.graph) else _any_order_bound
    found = {shape: bound(problem, loads, *shape) for shape in shapes(problem)}
    return {shape: value for shape, value in found.items() if value is not None}


def _chain_bound(problem: Problem, loads: StageLoad, k: int, r: int) -> float | None:
    sweep = _Sweep(problem, loads, k, r)
    if not sweep.covers(math.inf):
        return None
    low, high = sweep.at_least, max(sweep.at_least, float(sweep.finish(0, 0)[-1]))
    if sweep.covers(low):
        return low
    while not sweep.covers(high):
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if sweep.covers(middle):
            high = middle
        else:
            low = middle
    return low


class _Sweep:
    """Decides whether k consecutive stages can each stay within a time and the memory."""

    def __init__(self, problem: Problem, loads: StageLoad, k: int, r: int) -> None:
        self.problem, self.loads, self.k = problem, loads, k
        self.m = problem.num_microbatches // r
        self.overhead = problem.cluster.action_overhead
        self.send, self.send_back = _cheapest_cut(problem, loads) if k > 1 else (0.0, 0.0)
        self.after = loads.update_time + _least_sync(problem, loads.grad_bytes, r)
        whole = loads.forward_time[0, -1] + loads.backward_time[0, -1]
        moving = (k - 1) * (self.send + self.send_back)
        self.round_trip = whole + 2 * k * self.overhead + moving
        self.at_least = float(self.round_trip)

    def covers(self, seconds: float) -> bool:
        at, last = 0, self.loads.forward_time.shape[0] - 1
        for stage in range(self.k):
            within = (self.finish(stage, at) <= seconds) & self._fits(stage, at)
            reach = at + int(np.argmin(np.append(within[at + 1 :], False)))
            if reach == at:
                return False
            at = reach
            if at == last:
                return True
        return False

    def finish(self, stage: int, at: int) -> Number:
        """The right-hand sides of (1) and (2) for stages that start at layer `at`, by their end."""
        loads, m, o = self.loads, self.m, self.overhead
        forward, backward = loads.forward_time, loads.backward_time
        hops = stage if self.problem.cluster.sends_overlap else max(0, stage - 1)
        down = forward[0, at] + stage * o + hops * self.send
        back = backward[0, at] + stage * o + hops * self.send_back
        work = forward[at] + backward[at] + 2 * o + self._sends_of_its_own(stage)
        alone = down + m * work + np.maximum(back, self.after[at])
        return np.maximum(
            alone, self.round_trip + (m - 1) * (np.maximum(forward[at], backward[at]) + o)
        )

    def _sends_of_its_own(self, stage: int) -> float:
        """Seconds that sends keep the stage busy for each microbatch; the hop next to it is then
        counted here and not in the way through the stages ahead."""
        if self.problem.cluster.sends_overlap:
            return 0.0
        return ((stage > 0) + (stage < self.k - 1)) * (self.send + self.send_back)

    def _fits(self, stage: int, at: int) -> Number:
        held = min(
            in_flight(name, self.k, stage, self.m) for name in self.problem.demands.schedules
        )
        return _least_memory(self.problem, self.loads, at, self.m, held)


def _least_memory(problem: Problem, loads: StageLoad, at: int, m: int, held: int) -> Number:
    """(3), for stages that start at layer `at`, by their end."""
    row = StageLoad(*(None if isinstance(x, tuple) else x[at] for x in loads))  # pyright: ignore[reportArgumentType]
    nothing = loads.sent._replace(bytes=0, grad_bytes=0)
    alone = row._replace(stash_bytes=row.inner_stash_bytes, received=nothing, sent=nothing)
    return total(memory(alone, problem, m, held)) <= problem.cluster.memory_bytes


def _cheapest_cut(problem: Problem, loads: StageLoad) -> tuple[float, float]:
    """Seconds of the activations' and of the gradients' way over the cheapest cut."""
    sent, links = loads.sent, (problem.cluster.intra_node, problem.cluster.inter_node)
    inner = slice(1, -1)
    forward = min(
        float(send_time(link, sent.bytes[0, inner], sent.tensors[0, inner]).min()) for link in links
    )
    backward = min(
        float(send_time(link, sent.grad_bytes[0, inner], sent.grad_tensors[0, inner]).min())
        for link in links
    )
    return forward, backward


def _least_sync(problem: Problem, grad_bytes: Number, r: int) -> Number:
    """Seconds of the replicas' all-reduce in the best placement."""
    cluster = problem.cluster
    inter = all_reduce_time(cluster.inter_node, grad_bytes, r)
    if r > cluster.gpus_per_node:
        return inter
    return np.minimum(inter, all_reduce_time(cluster.intra_node, grad_bytes, r))


def _any_order_bound(problem: Problem, loads: StageLoad, k: int, r: int) -> float | None:
    m = problem.num_microbatches // r
    whole = StageLoad(*(None if isinstance(x, tuple) else x[0, -1] for x in loads))  # pyright: ignore[reportArgumentType]
    if not _fits_at_all(problem, whole, k):
        return None
    layers = problem.graph.layers
    work = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
    ahead = as_networkx(problem.graph)
    behind_others = max(
        m * t + sum(work[u] for u in nx.ancestors(ahead, place)) for place, t in enumerate(work)
    )
    fills = sum(work) / (1 - (1 - 1 / m) ** k)
    halves = max(max(la.forward_time, la.input_grad_time + la.weight_grad_time) for la in layers)
    way = sum(work) + (m - 1) * halves
    return max(fills, behind_others, way) + 2 * m * problem.cluster.action_overhead


def _fits_at_all(problem: Problem, whole: StageLoad, k: int) -> bool:
    """(6): the whole model, with one microbatch in flight, in the memory of k GPUs."""
    needed = (
        whole.weight_bytes
        + whole.grad_bytes
        + whole.num_trainable * problem.optimizer_bytes
        + whole.inner_stash_bytes
    )
    usable = problem.cluster.memory_bytes - problem.cluster.reserve_bytes
    return int(needed) <= k * usable
