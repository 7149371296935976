"""A lower bound for a shape under GPipe and 1F1B whose ranks must recompute: work and memory of each stage, with prices.

Symbols   k, s, m       stages, a stage from 0 on, microbatches of a replica; m > k
          y             k - s, the microbatches in flight on stage s of 1F1B. GPipe has m of them
          w             seconds of stage s for one microbatch, with what it recomputes
          t, x, b       seconds of a layer, seconds that a policy adds, stash bytes that it keeps inside the layer
          d             bytes of a layer that last: weights, its share of optimizer state, gradients
          Z             memory of a GPU without its reserve
          L, u, n       layers with much workspace, at least u bytes each; the number of other layers. L alone counts stash

A step has, for each stage (autopart/bounds/glance.py),

    step >= T + (m - k + s) w + the w of all later stages          T  the sum of w over all stages                    (1)
    Z - u >= the sum of d + y b over the stage's layers            or Z where it has no layer of L                    (2)

(2) holds behind the first backward: 1F1B has y microbatches in flight again, GPipe still m - 1 >= y, and all gradients are
there. A stage without a layer of L has no stash that counts.

Take weights p >= 0 of (1), 1 in sum, and in each stage a price q >= 0 of (2). Let v = 1 + p (m - k + s) + the p of earlier
stages. Then

    step >= sum over stages of v w
         >= sum over stages of v (sum over its layers of (t + x + q (d + y b)) - q (Z - u)) - the n largest v q u

So it is at least the same sum where each layer takes the stage and the policy that are cheapest for it (Lagrange). A tied
parameter counts in the first of its layers. All prices give a bound. Good ones come from k equal budgets of seconds: the stage's
price is the one with which it does the least work in its budget, among those at which some layers change their policies.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import optimizer_places
from autopart.bounds.least_recomputing import pieces
from autopart.cost.syncs import gradient_bytes, update_share
from autopart.records.layer_graph import Layer, TiedParameter, positions
from autopart.records.problem import Problem
from autopart.records.training import state_bytes
from autopart.schedules.actions import microbatches_per_replica

Array = npt.NDArray[np.float64]
Pieces = Sequence[tuple[float, float]]
"""Bytes freed and seconds added by each piece, the cheapest bytes first."""

MOST_PRICES = 8
BISECTIONS = 40


class StageRoom(NamedTuple):
    """The memory of a GPU, as above."""

    usable: int
    """Z."""
    workspace: int
    """u."""
    others: int
    """n."""


class PricedShapes:
    """The bound for shapes of one problem."""

    def __init__(
        self, problem: Problem, seconds: Array, large: frozenset[str], room: StageRoom
    ) -> None:
        """`seconds` are those of the layers, `large` the names in L."""
        self._problem, self._room = problem, room
        self._lasting: dict[int, Array] = {}
        """d of each layer by the number of replicas; shape (layers,)."""
        layers, demands = problem.graph.layers, problem.demands
        stash = [la.stash_bytes * (la.name in large) for la in layers]
        hulls = [pieces(la, demands) if la.name in large else [] for la in layers]
        slopes = np.array(sorted({x / b for hull in hulls for b, x in hull if x > 0}))
        if len(slopes) > MOST_PRICES:
            slopes = slopes[np.linspace(0, len(slopes) - 1, MOST_PRICES).round().astype(int)]
        self._prices = np.array([0.0, *slopes])
        """Seconds per byte of one microbatch's stash; shape (prices,)."""
        self._costs = seconds + np.array(
            [[_least_cost(own, hull, price) for own, hull in zip(stash, hulls, strict=True)]
             for price in self._prices]
        )  # fmt: skip
        """The least t + x + price b of each layer; shape (prices, layers)."""

    def bound(self, stages: int, replicas: int) -> float:
        """Seconds that no step beats on the fastest GPU; 0 where nothing is gained by prices."""
        k, m = stages, microbatches_per_replica(self._problem.num_microbatches, replicas)
        if m <= k or len(self._prices) == 1:
            return 0.0
        lasting = self._lasting_bytes(replicas)
        in_flight = np.arange(k, 0, -1.0)
        # Step 1: prices of stage memory for each stage, shape (stages, prices), and the whole model's cost there.
        prices = self._prices / in_flight[:, None]
        whole = self._costs.sum(axis=1) + prices * lasting.sum()
        chosen = self._chosen(prices, whole)
        if not chosen.any():
            return 0.0
        own = prices[np.arange(k), chosen]
        # Step 2: weights such that a mean layer costs the same on each stage.
        weights = _weights(1 / whole[np.arange(k), chosen], m)
        # Step 3: each layer on its cheapest stage.
        costs = weights[:, None] * (self._costs[chosen] + own[:, None] * lasting)
        room = weights * own * (self._room.usable - self._room.workspace)
        spared = np.sort(weights * own * self._room.workspace)[max(0, k - self._room.others) :]
        return float(costs.min(axis=0).sum() - room.sum() - spared.sum())

    def _lasting_bytes(self, replicas: int) -> Array:
        """d of each layer. Optimizer state counts unless it may lie on the host."""
        if replicas in self._lasting:
            return self._lasting[replicas]
        graph, training = self._problem.graph, self._problem.training
        per_element = state_bytes(training) / update_share(training, replicas)
        if True in optimizer_places(self._problem.demands):
            per_element = 0.0

        def whole(own: Layer | TiedParameter) -> float:
            gradients = gradient_bytes(own, training) + (own.unscattered_grad_bytes or 0)
            return own.param_bytes + gradients + per_element * own.num_trainable

        found = np.array([whole(la) + la.buffer_bytes for la in graph.layers])
        place = positions(graph)
        for tied in graph.tied:
            _, *others = sorted({place[name] for name in tied.layers})
            found[others] -= whole(tied)
        self._lasting[replicas] = found
        return found

    def _chosen(self, prices: Array, whole: Array) -> npt.NDArray[np.int64]:
        """For each stage the place of its price."""
        free = prices * (self._room.usable - self._room.workspace)
        low, high = 0.0, float(whole[0].max())
        for _ in range(BISECTIONS):
            budget = (low + high) / 2
            done = ((budget + free) / whole).min(axis=1).sum()
            low, high = (budget, high) if done < 1 else (low, budget)
        return np.argmin((high + free) / whole, axis=1)


def _least_cost(stash: float, hull: Pieces, price: float) -> float:
    """The least x + price b of a layer."""
    kept, seconds = stash, 0.0
    for freed, added in hull:
        if added >= price * freed:
            break
        kept, seconds = kept - freed, seconds + added
    return seconds + price * kept


def _weights(targets: Array, m: int) -> Array:
    """v for each stage, in proportion to `targets` as far as weights of (1) are not negative."""
    k = len(targets)
    runs = m - k + np.arange(k)
    # Each p is a multiple of the common factor, and a constant.
    factor, constant = np.zeros(k), np.zeros(k)
    for s in range(k):
        factor[s] = (targets[s] - factor[:s].sum()) / runs[s]
        constant[s] = (-1 - constant[:s].sum()) / runs[s]
    p = np.maximum(factor * (1 - constant.sum()) / factor.sum() + constant, 0.0)
    p /= p.sum()
    return 1 + p * runs + np.cumsum(p) - p
