"""A lower bound on the step of a layout whose ranks must recompute, from the work and the memory of all ranks together.

Symbols   l, s, r, g    a layer, a stage, a rank, a place in the order of a rank
          f, i, w, u    seconds of l in F, in I (or in the whole backward, with w = 0), in W, and for its update
          x, k          seconds that a policy adds to i, and stash bytes that it keeps inside l
          c             seconds of one copy of its stash to the host, or back; 0 where it stays
          state, v      bytes of l that last for the step, and bytes in values that its backward needs, each value at the
                        first such layer: there it is received, or made and kept; state that may be on the host is no part
          n[g, s]       microbatches of s whose stash is there at g
          m             microbatches that a rank runs on each of its stages;  a(r)  the first stage of rank r

For each rank every order of actions and each choice of policies has

    step >= sum of f over stages ahead of a(r) + m sum of (f + i + x + w) over its own ones + u                       (1)
    step >= sum of (f + i + x) over stages ahead of a(r) + m sum of (f + i + x) over its own ones                     (2)
    room(g) >= sum over its own layers of  state + n[g, s] (k + v)                       for each place g             (3)
    step >= sum of f over stages ahead of a(r) + m sum of 2 c over its own ones                                       (4)

(1) and (2) are those of autopart/bounds/any_order_formulas.py. (3) leaves out what else is there. Room is the rank's
memory without the reserve and without the least workspace of a stage. (4) holds because a rank copies in one direction
at a time, and each action waits for its own copies. Where copies do not overlap with compute, offload adds c to f and to
i in (1) and (2).

Take weights p >= 0 of (1), (2) and (4) over all ranks, 1 in sum, and prices q >= 0 of (3). Then

    step >= sum of p (right side) + sum of q (right side - room)

The right side is a sum over layers, each with its own stage and policy. So it is at least the sum where each layer takes
the stage and the policy that are cheapest for it, whatever the others do: a bound for every partition and all policies
(Lagrange). Fuller ranks get larger weights and fuller memories higher prices, round by round. The largest bound counts. Each
rank has one place g: where it is fullest with all layers spread evenly. Weights and prices are rounded, so other machines
take the same steps.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import chooses_by_rank, optimizer_places
from autopart.bounds.microbatch_path import Mask
from autopart.bounds.policy_costs import policy_costs
from autopart.cost.cuts import Cuts
from autopart.cost.in_flight import ranks_in_flight
from autopart.cost.stage_totals import Array, layer_sizes
from autopart.cost.syncs import gradient_bytes, update_share
from autopart.cost.transients import has_split_backward
from autopart.records.cluster import fastest_speed
from autopart.records.layouts import Layout, one_replica, own_microbatches
from autopart.records.problem import Problem, splits_backward
from autopart.records.training import state_bytes
from autopart.schedules.encoding import I, W
from autopart.schedules.in_flight import STASH, WAITING
from autopart.stopping.time_limit import check_time

FEW_PARTITIONS = 100_000
"""Partitions of a layout up to which this bound is not asked for."""

ROUNDS = 200
"""Times that weights and prices change."""

WARMEST, COOLING = 0.1, 0.98
"""How evenly layers spread over dearer stages in the first round, and the factor of each round."""

PACE = 0.1
"""How fast weights and prices change in the first round."""

FIRST_PRICE = 0.01
"""The price from which a place begins to cost."""

FIRST_OF_COPIES = 0.01
"""The first weight of (4), as a share of the others': copies rarely keep a rank busier than its work."""

GRID = 2.0**-24
"""Weights and prices are whole multiples of it."""

SAFE = 1 - 1e-9
"""Share of the bound that counts: sums are rounded."""

Numbers = npt.NDArray[np.float64]


def memory_priced_bound(problem: Problem, layout: Layout, cuts: Cuts) -> float:
    """Seconds that no partition and no policies on a layout with a named schedule can beat.

    0 where GPUs differ, where no policies are open, and where the partitions are few enough to be simulated.
    """
    few = math.comb(max(len(cuts.nested) - 2, 0), len(layout.stage_ranks) - 1) <= FEW_PARTITIONS
    if few or problem.cluster.gpus or not chooses_by_rank(problem, layout):
        return 0.0
    return _bound_of_pipeline(problem, one_replica(layout), len(layout.stage_ranks[0]), cuts)


@functools.lru_cache(maxsize=64)
def _bound_of_pipeline(problem: Problem, one: Layout, replicas: int, cuts: Cuts) -> float:
    """The bound for one replica's ranks, on any GPUs."""
    return priced_bound(problem, one, replicas, cuts)


def priced_bound(problem: Problem, one: Layout, replicas: int, cuts: Cuts) -> float:
    """The bound by weights and prices, for the first of so many replicas."""
    return _Prices(problem, one, replicas, cuts).best() * SAFE


class _FullestPlaces(NamedTuple):
    """The places of all ranks."""

    stash: Numbers
    """n, shape (places, stages)."""
    waiting: Numbers
    """Microbatches that wait for W, shape (places, stages)."""
    own: Numbers
    """1 where a stage is on the rank, shape (places, stages)."""
    room: Numbers
    """Shape (places,)."""


class _Prices:
    """Weights and prices for one layout."""

    def __init__(self, problem: Problem, layout: Layout, replicas: int, cuts: Cuts) -> None:
        self.problem, self.layout, self.cuts = problem, layout, cuts
        split = splits_backward(layout.schedule)
        sizes, speed = layer_sizes(problem.graph), fastest_speed(problem.cluster)
        self.forward = sizes.forward_time / speed
        self.weights = sizes.weight_grad_time / speed * split
        self.gradient = sizes.backward_time / speed - self.weights
        sharing = update_share(problem.training, replicas)
        self.update = sizes.update_time / speed / sharing
        stepped = sizes.num_trainable / sharing * state_bytes(problem.training)
        stepped = stepped * (True not in optimizer_places(problem.demands))
        self.state = sizes.weight_bytes + gradient_bytes(sizes, problem.training) + stepped
        self.values = sizes.needed_value_bytes.astype(float)
        known = has_split_backward(problem.graph)
        self.left = (sizes.waiting_bytes if known else sizes.stash_bytes).astype(float)
        self.policies = policy_costs(problem, speed)
        self.kept_all = sizes.stash_bytes.astype(float)
        self.first = _first_stages(layout)
        self.rows = self._rows()
        self.loads = self._loads()
        work = (self.forward + self.gradient + self.weights).sum()
        self.second = own_microbatches(layout, 0) * float(work) / len(self.first) or 1.0
        self.byte = float(self.rows.room.max())

    def best(self) -> float:
        """The largest bound of all rounds, in seconds; infinite where a rank has no room at all."""
        if self.rows.room.min() <= 0:
            return float("inf")
        weight = np.where(self.loads.copies.any(axis=1), FIRST_OF_COPIES, 1.0)
        weight = np.maximum(_on_grid(weight / weight.sum()), GRID)
        price = np.zeros(len(self.rows.room))
        best = 0.0
        for turn in range(ROUNDS):
            check_time()
            # Step 1: layers spread over stages and policies, more evenly in the first rounds.
            bound, loads, lacking = self._bound(weight, price, WARMEST * COOLING**turn)
            best = max(best, bound)
            # Step 2: fuller ranks weigh more, and fuller places cost more.
            pace = PACE / np.sqrt(1 + turn)
            more = np.clip(loads / (weight @ loads) - 1, -1.0, 1.0)
            weight = weight * np.exp(pace * more)
            weight = np.maximum(_on_grid(weight / weight.sum()), GRID)
            price = (price + FIRST_PRICE) * np.exp(pace * np.clip(lacking, -1.0, 1.0))
            price = _on_grid(np.maximum(price - FIRST_PRICE, 0.0))
        return best

    def _bound(
        self, weight: Numbers, price: Numbers, warmth: float
    ) -> tuple[float, Numbers, Numbers]:
        """The bound in seconds, each right side of (1) and (2), and what each place lacks; scaled to about 1.

        With `warmth` the layers that these two count lie on dearer stages too.
        """
        weight, rows = weight / weight.sum(), self.rows
        per_byte = price * (self.second / self.byte)
        # Step 1: the price of each layer on each stage, under each policy.
        gradient = weight @ self.loads.gradient
        stash, state = per_byte @ rows.stash, per_byte @ rows.own
        cost = np.outer(self.forward, weight @ self.loads.forward)
        cost += np.outer(self.gradient, gradient) + np.outer(
            self.weights, weight @ self.loads.weights
        )
        cost += np.outer(self.update, weight @ self.loads.update) + np.outer(self.state, state)
        cost += np.outer(self.values, stash) + np.outer(self.left, per_byte @ rows.waiting)
        every = np.array(
            [
                cost
                + np.outer(own.extra, gradient)
                + np.outer(own.kept, stash)
                + np.outer(own.copied, weight @ self.loads.copies)
                for own in self.policies
            ]
        )
        least = every.min(axis=(0, 2))
        bound = float(least.sum() + weight @ self.loads.fixed - per_byte @ rows.room)
        # Step 2: what the layers make of each row, where the cheapest stages have most of them.
        usual = max(float(least.sum()), 1e-300) / len(least) * warmth
        share = np.exp(-(every - least[None, :, None]) / usual)
        share /= share.sum(axis=(0, 2))[None, :, None]
        on = share.sum(axis=0)
        extra = sum(own.extra @ part for own, part in zip(self.policies, share, strict=True))
        kept = sum(own.kept @ part for own, part in zip(self.policies, share, strict=True))
        copied = sum(own.copied @ part for own, part in zip(self.policies, share, strict=True))
        loads = self.loads.fixed + self.loads.forward @ (self.forward @ on)
        loads = loads + self.loads.copies @ copied
        loads = loads + self.loads.gradient @ (self.gradient @ on + extra)
        loads = (
            loads
            + self.loads.weights @ (self.weights @ on)
            + self.loads.update @ (self.update @ on)
        )
        used = rows.own @ (self.state @ on) + rows.stash @ (self.values @ on + kept)
        used = used + rows.waiting @ (self.left @ on)
        return bound, loads / self.second, (used - rows.room) / self.byte

    def _rows(self) -> "_FullestPlaces":
        """(3) for all ranks."""
        stages, nested = len(self.layout.stage_ranks), self.cuts.nested
        totals, cluster = self.cuts.totals, self.problem.cluster
        whole = _least(totals.workspace_bytes, nested)
        works = [whole, whole, whole, whole]
        works[I] = _least(totals.input_grad_workspace_bytes, nested)
        works[W] = _least(totals.weight_grad_workspace_bytes, nested)
        found: list[tuple[Array, ...]] = []
        for in_flight in ranks_in_flight(self.layout).values():
            own = list(in_flight.stages)
            counts = np.zeros((2, len(in_flight.op), stages))
            counts[:, :, own] = in_flight.counts[:, [STASH, WAITING]].swapaxes(0, 1)
            on = np.zeros_like(counts[0])
            on[:, own] = 1.0
            room = cluster.memory_bytes - cluster.reserve_bytes - np.array(works)[in_flight.op]
            # The place that is fullest where layers lie evenly on all stages: other places rarely bind before it.
            even = (
                counts[0].sum(axis=1) * float((self.values + self.kept_all).sum()) / stages - room
            )
            at = int(np.argmax(even))
            found.append(
                (*counts[:, at : at + 1], on[at : at + 1], room[at : at + 1].astype(float))
            )
        return _FullestPlaces(*(np.concatenate(each) for each in zip(*found, strict=True)))

    def _loads(self) -> "_Loads":
        """(1), then (2), for all ranks; then (4), where any layer may be copied beside compute."""
        stages, count = len(self.layout.stage_ranks), own_microbatches(self.layout, 0)
        fixed = self.problem.cluster.action_overhead
        first = np.array([[own[0]] for own in self.first])
        ahead = (np.arange(stages)[None, :] < first).astype(float)
        here = np.zeros(ahead.shape)
        for rank, own in enumerate(self.first):
            here[rank, own] = count
        none = np.zeros(ahead.shape)
        actions = 2 * here.sum(axis=1) + ahead.sum(axis=1)
        parts = [
            # forward, gradient, weights, update and copies
            (here + ahead, here, here, (here > 0).astype(float), none),
            (here + ahead, here + ahead, none, none, none),
        ]
        counts = [actions, actions + ahead.sum(axis=1)]
        if any(own.copied.any() for own in self.policies):
            parts.append((ahead, none, none, none, here))
            counts.append(ahead.sum(axis=1))
        rows = [np.concatenate(own) for own in zip(*parts, strict=True)]
        return _Loads(*rows, fixed=fixed * np.concatenate(counts))


class _Loads(NamedTuple):
    """How often each stage's seconds count in each row, shape (rows, stages)."""

    forward: Numbers
    gradient: Numbers
    weights: Numbers
    update: Numbers
    copies: Numbers
    fixed: Numbers
    """Fixed seconds of all actions, shape (rows,)."""


def _first_stages(layout: Layout) -> list[list[int]]:
    """The stages of each rank in the first replica, lowest first."""
    found: dict[int, list[int]] = {}
    for stage, ranks in enumerate(layout.stage_ranks):
        found.setdefault(ranks[0], []).append(stage)
    return list(found.values())


def _least(sizes: Array, nested: Mask) -> int:
    return int(np.broadcast_to(sizes, nested.shape)[nested].min(initial=0))


def _on_grid(numbers: Numbers) -> Numbers:
    return np.round(numbers / GRID) * GRID
