"""A lower bound at a glance: closed, without cuts and without lists of layouts, for choices among many problems.

Symbols   T    forward and backward of one microbatch over all layers, on the fastest GPU
          k    groups of ranks in a pipeline, r replicas, m = M / r microbatches on each
          E    the fewest seconds that recomputing adds to T, so that the stash of one microbatch has room
          Z    memory of a GPU without its reserve;  S, G  bytes of the model's state and gradients
          L    layers with much workspace, of w bytes or more each;  n the other layers
          v    bytes of the values that some layer of L keeps

    seconds >= (m / k) (T + E)            for k as large as GPUs and layers allow, and r such that k GPUs hold the model by (9)
    GPipe, 1F1B  (1 + (m - 1) / k) (T + E)                                  where m > k
                 (1 + 1 / (1 + (k - m + 1) / (c (m - 1)))) (T + E)          where 1 < m <= k

    stash inside L <= k Z - S - v - max(0, k - n) w - (G where a rank has gradients and stash at once)
                   <= (Z - w) sum over s of 1 / min(k - s, m) + (min(k, n) w - S) / k      under GPipe and 1F1B
                   <= (k (Z - w) + min(k, n) w - S) / m                                    under GPipe

*Proof.* The k groups run m microbatches through all layers. So one of them is busy for m (T + E) / k seconds or more. This holds for
every order, for steps back to back and for the bottleneck.

At most n stages have no layer of L. On each other one, look at the backward of its last layer of L: the workspace of this layer is
there, and all that the stage's layers of L keep for this microbatch. The sum over ranks is the first bound on the stash, as (9)
in autopart/bounds/of_shape.py. Stage s of 1F1B then has y = min(k - s, m) <= k microbatches in flight, and GPipe's has m >= y. So its
stash for one is at most (Z - w - S_s) / y <= (Z - w) / y - S_s / k. A stage without a layer of L has none of this stash and no such
workspace: 0 <= (Z - S_s) / k <= (Z - w) / y + (w - S_s) / k. The sums over stages are the second bound, and with y = m the third.

Under GPipe and 1F1B let D be the step less T + E, w_s the seconds of stage s, and c the least part that backwards have in a layer's
seconds, 1/2 at least. By (4) in autopart/bounds/shared_work.py (m - k + s) w_s + sum over j > s of w_j <= D, where y < m. With m > k take these lines
times L_s, such that each w_j counts once: L_s = (1 - L_0 - .. - L_(s-1)) / (m - k + s). The product of the rests telescopes, and their sum is
k / (m - 1). So T + E <= D k / (m - 1). With m <= k the last m - 1 stages have T'' <= D together in the same way. Each of the others
has (m - 1) c w_s <= D by (3). GPipe has (m - 1) w_s <= D for all. Recomputing is part of backwards, so c stays.

E is the optimum of a linear program, in which a layer may have parts of its policies: increments of each layer's convex hull,
those with the fewest seconds per byte first (autopart/bounds/least_recomputing.py). Overlapped pairs shorten T by all that they could save. Syncs, sends and offload add seconds, and
count nothing.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.bounds.any_order_shapes import Shape
from autopart.bounds.least_recomputing import least_recomputing
from autopart.bounds.of_shape import LeastBytes, least_parts, quick_bounds
from autopart.bounds.pair_savings import without_savings_if_paired
from autopart.bounds.priced_shapes import PricedShapes, StageRoom
from autopart.records.cluster import fastest_speed, largest_memory, num_gpus
from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.problem import BIDIRECTIONAL, CLASSIC, LENDING, Problem
from autopart.schedules.actions import microbatches_per_replica

MOST_PRICED = 64
"""Shapes with the least bounds, which are raised with prices of memory."""
ROUNDING = 1e-9
"""Relative margin for sums that other bounds add up in another order."""


def shape_bounds(problem: Problem, shapes: Sequence[Shape]) -> dict[Shape, float | None]:
    """`quick_bounds`, or the bound above for the shape's own k and r where it is larger."""
    quick = quick_bounds(problem, shapes)
    glance = _Glance(problem, any_order=False)
    found = {
        (k, r): None if bound is None else glance.raised(k, r, bound)
        for (k, r), bound in quick.items()
    }
    least = sorted((bound, shape) for shape, bound in found.items() if bound is not None)
    for bound, shape in least[:MOST_PRICED]:
        found[shape] = max(bound, glance.priced(*shape))
    return found


def least_at_a_glance(problem: Problem, *, any_order: bool = False) -> float:
    """Seconds that no plan can beat; infinite where no number of GPUs holds the model.

    `any_order` says whether all orders count, not only those that the problem asks for. 0 where replicas differ.
    """
    if problem.demands.replicas_per_stage:
        return 0.0
    glance = _Glance(problem, any_order=any_order)
    bounds = (glance.least(groups, replicas) for replicas, groups in _shapes(problem))
    return min((bound for bound in bounds if bound is not None), default=float("inf"))


class _Glance:
    """What the bounds of all shapes of a problem share."""

    def __init__(self, problem: Problem, *, any_order: bool) -> None:
        self.problem, names = problem, set(problem.demands.schedules)
        self.classic = not any_order and names <= set(CLASSIC)
        paired = without_savings_if_paired(problem)
        layers = paired.graph.layers
        passes = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
        self.work = sum(passes)
        self.share = min(map(_share_of_backward, layers), default=1.0)
        self.large = _large_layers(problem.graph, classic=self.classic)
        # Where two pipelines share ranks, or ranks lend stash, the stash of one microbatch may lie elsewhere.
        apart = names.isdisjoint({*BIDIRECTIONAL, *LENDING})
        inside = [layer for layer in problem.graph.layers if layer.name in self.large.names]
        self.policies = least_recomputing(inside, problem.demands) if apart else None
        self.prices: PricedShapes | None = None
        if self.policies is not None and self.classic and problem.objective == "step":
            room = StageRoom(
                largest_memory(problem.cluster) - problem.cluster.reserve_bytes,
                self.large.workspace,
                self.large.others,
            )
            self.prices = PricedShapes(problem, np.array(passes), self.large.names, room)
        self._parts: dict[int, LeastBytes] = {}

    def raised(self, groups: int, replicas: int, bound: float) -> float | None:
        """The larger one of a bound and the one at a glance."""
        own = self.least(groups, replicas)
        return None if own is None else max(bound, own)

    def least(self, groups: int, replicas: int) -> float | None:
        """The bound above; None where the shape's ranks do not hold the model."""
        problem = self.problem
        m = microbatches_per_replica(problem.num_microbatches, replicas)
        flying = m if self.classic else None
        room = _room(problem, self.large, self._least_parts(replicas), groups, flying)
        if room is None and self.policies is not None:
            return None
        turns = m / groups
        if problem.objective == "step" and self.classic:
            turns = max(turns, _turns_of_classic(groups, m, self.share))
        extra = 0.0 if self.policies is None or room is None else self.policies.least(room)
        if extra == float("inf"):
            return None
        seconds = turns * (self.work + extra) / fastest_speed(problem.cluster)
        return seconds * (1 - ROUNDING)

    def _least_parts(self, replicas: int) -> LeastBytes:
        if replicas not in self._parts:
            own = least_parts(self.problem, replicas, any_order=not self.classic)
            self._parts[replicas] = own
        return self._parts[replicas]

    def priced(self, groups: int, replicas: int) -> float:
        """The bound of autopart/bounds/priced_shapes.py; 0 where it says nothing."""
        problem = self.problem
        if self.prices is None:
            return 0.0
        seconds = self.prices.bound(groups, replicas)
        return seconds / fastest_speed(problem.cluster) * (1 - ROUNDING)

    def may_hold_gpipe(self, groups: int, replicas: int) -> bool:
        """Whether all microbatches of a replica may have room at once."""
        problem = self.problem
        if self.policies is None:
            return True
        m = microbatches_per_replica(problem.num_microbatches, replicas)
        flying = [m] * groups
        room = _room_in_flight(problem, self.large, self._least_parts(replicas).state, flying, m)
        return self.policies.least(room) < float("inf")


def shapes_without_gpipe(problem: Problem, shapes: Sequence[Shape]) -> frozenset[Shape]:
    """The shapes on whose ranks GPipe never fits, by the third bound on the stash above."""
    glance = _Glance(problem, any_order=False)
    return frozenset(shape for shape in shapes if not glance.may_hold_gpipe(*shape))


def _turns_of_classic(groups: int, m: int, share: float) -> float:
    """The step under GPipe and 1F1B over T + E, as above."""
    # One microbatch takes T + E alone.
    if m > groups:
        return 1 + (m - 1) / groups
    if m == 1:
        return 1.0
    return 1 + 1 / (1 + (groups - m + 1) / (share * (m - 1)))


def _share_of_backward(layer: Layer) -> float:
    backward = layer.input_grad_time + layer.weight_grad_time
    both = layer.forward_time + backward
    return max(0.5, backward / both) if both > 0 else 1.0


class _LargeLayers(NamedTuple):
    """L above."""

    names: frozenset[str]
    workspace: int
    """w."""
    others: int
    """n."""
    kept: int
    """v."""


def _large_layers(graph: LayerGraph, *, classic: bool) -> _LargeLayers:
    """The layers with at least half of the median workspace in their backward."""
    needs = [_backward_workspace(layer, classic=classic) for layer in graph.layers]
    least = statistics.median(needs) / 2
    some = {la.name: own for la, own in zip(graph.layers, needs, strict=True) if own >= least}
    return _LargeLayers(
        frozenset(some),
        min(some.values()),
        len(needs) - len(some),
        sum(value.bytes for value in graph.values if not some.keys().isdisjoint(value.kept_by)),
    )


def _backward_workspace(layer: Layer, *, classic: bool) -> int:
    """Workspace while a layer's stash is there: in a whole backward, or in I where it may be split."""
    whole = layer.backward_workspace_bytes
    whole = layer.workspace_bytes if whole is None else whole
    split = layer.split_backward
    if classic or split is None:
        return whole if classic else 0
    return min(whole, split.input_grad_workspace_bytes)


def _shapes(problem: Problem) -> list[tuple[int, int]]:
    """For each number of replicas the most groups of a pipeline."""
    gpus, batch, demands = (
        num_gpus(problem.cluster),
        problem.num_microbatches,
        problem.demands,
    )
    stages = demands.num_stages or len(problem.graph.layers)
    return [
        (replicas, min(gpus // replicas, stages))
        for replicas in range(1, min(gpus, batch) + 1)
        if batch % replicas == 0 and demands.num_replicas in (None, replicas)
    ]


def _room(
    problem: Problem, large: _LargeLayers, parts: LeastBytes, groups: int, in_flight: int | None
) -> float | None:
    """Bytes that are left for the stash of one microbatch inside L; None where the model does not fit.

    `in_flight` are the microbatches of a replica under GPipe and 1F1B, which bound those in flight.
    """
    usable = largest_memory(problem.cluster) - problem.cluster.reserve_bytes
    alone = usable - large.workspace
    if parts.whole > groups * usable or alone < 0:
        return None
    room = float(groups * usable - parts.state - parts.gradients * parts.together - large.kept)
    room -= max(0, groups - large.others) * large.workspace
    if in_flight is not None:
        flying = [min(ahead, in_flight) for ahead in range(groups, 0, -1)]
        room = min(room, _room_in_flight(problem, large, parts.state, flying, groups))
    return None if room < 0 else room


def _room_in_flight(
    problem: Problem, large: _LargeLayers, state: int, flying: Sequence[int], most: int
) -> float:
    """The second or third bound on the stash: `flying` microbatches on each stage, at most `most`."""
    alone = largest_memory(problem.cluster) - problem.cluster.reserve_bytes - large.workspace
    # Stages without large layers need no such workspace.
    spared = min(len(flying), large.others) * large.workspace
    return alone * sum(1 / own for own in flying) + (spared - state) / most
