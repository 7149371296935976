"""A lower bound on the step of a layout whose ranks must recompute, from the work and the memory of all ranks together.

Symbols   l, s, r, g    a layer, a stage, a rank, a place in the order of a rank
          f, i, w, u    seconds of l in F, in I (or in the whole backward, with w = 0), in W, and for its update
          x, k          seconds that a policy adds to i, and stash bytes that it keeps inside l
          c             seconds of one copy of its stash to the host, or back; 0 where it stays
          state, d      bytes of l that last for the step, and gradients that its stage's first backward makes
          v             bytes in values that its backward needs, each value at the
                        first such layer: there it is received, or made and kept; state that may be on the host is no part
          n[g, s]       microbatches of s whose stash is there at g
          m             microbatches that a rank runs on each of its stages;  a(r)  the first stage of rank r

For each rank every order of actions and each choice of policies has

    step >= sum of f over stages ahead of a(r) + m sum of (f + i + x + w) over its own ones + u                       (1)
    step >= sum of (f + i + x) over stages ahead of a(r) + m sum of (f + i + x) over its own ones                     (2)
    room(g) >= sum over its own layers of  state + n[g, s] (k + v), and d behind the first backward    for each place g   (3)
    step >= sum of f over stages ahead of a(r) + m sum of 2 c over its own ones                                       (4)

(1) and (2) are those of autopart/bounds/any_order_formulas.py. (3) leaves out what else is there. Room is the rank's
memory without the reserve and without the least workspace of a stage. (4) holds because a rank copies in one direction
at a time, and each action waits for its own copies. Where copies do not overlap with compute, offload adds c to f and to
i in (1) and (2).

The orders are known, so a step also takes at least each path of actions that wait for each other
(autopart/bounds/order_paths.py):

    step >= sum over stages of  a f + b (i + x) + d w,  and u where the path ends           a, b, d: how often it has F, I, W   (5)

There x counts min(a, b) times where copies do not overlap with compute: half of x is in the forward.

Take weights p >= 0 of (1), (2), (4) and (5) over all ranks, 1 in sum, and prices q >= 0 of (3). Then

    step >= sum of p (right side) + sum of q (right side - room)

The right side is a sum over layers, each with its own stage and policy. So it is at least the sum where each layer takes
the stage and the policy that are cheapest for it, whatever the others do: a bound for every partition and all policies
(Lagrange). Fuller ranks get larger weights and fuller memories higher prices, round by round. After each phase, long paths
are sought for the mean of its layers' places, and join. The largest bound counts. Each rank has one place g: where it is
fullest with all layers spread evenly. Equal layers are one entry with a count. Weights, prices and the seconds by which
paths are sought are rounded, so other machines take the same steps.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import chooses_by_rank, optimizer_places
from autopart.bounds.order_paths import MOST_ACTIONS, ActionSeconds, OrderGraph, OrderPaths
from autopart.bounds.policy_costs import PolicyCosts, policy_costs
from autopart.bounds.price_rows import PriceRows, fullest_places, path_rows, rank_rows
from autopart.cost.cuts import Cuts
from autopart.cost.made_gradients import lasting_gradients, made_gradients
from autopart.cost.stage_totals import layer_sizes
from autopart.cost.syncs import update_share
from autopart.cost.transients import has_split_backward
from autopart.records.cluster import fastest_speed
from autopart.records.layouts import Layout, one_replica, own_microbatches
from autopart.records.problem import Problem, splits_backward
from autopart.records.training import state_bytes
from autopart.stopping.time_limit import check_time

FEW_PARTITIONS = 100_000
"""Partitions of a layout up to which this bound is not asked for."""

PHASES, ROUNDS = 6, 100
"""Times that paths are sought, and times that weights and prices change after each."""

OWN_SHARES = (0.3, 0.0)
"""Shares by which a rank's actions take longer while its path is sought: the first ones with the first share alone."""

SHARE_OF_NEW = 0.5
"""The weight of new paths together."""

WARMEST, COOLING = 0.1, 0.98
"""How evenly layers spread over dearer stages in the first round, and the factor of each round."""

PACE = 0.3
"""How fast weights and prices change in the first round of a phase."""

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
        gradients = lasting_gradients(sizes, problem.training)
        self.state = sizes.weight_bytes + gradients + stepped
        self.made = made_gradients(sizes, problem.training).astype(float)
        self.values = sizes.needed_value_bytes.astype(float)
        known = has_split_backward(problem.graph)
        self.left = (sizes.waiting_bytes if known else sizes.stash_bytes).astype(float)
        self.policies = policy_costs(problem, speed)
        self.kept_all = sizes.stash_bytes.astype(float)
        stash = float((self.values + self.kept_all).sum())
        self.rows = fullest_places(problem, layout, cuts, stash)
        copied = any(own.copied.any() for own in self.policies)
        self.loads = rank_rows(problem, layout, copied=copied)
        self.counts = self._join_equal_layers()
        work = self.counts @ (self.forward + self.gradient + self.weights)
        self.second = own_microbatches(layout, 0) * float(work) / len(self.rows.room) or 1.0
        self.byte = float(self.rows.room.max())

    def _join_equal_layers(self) -> Numbers:
        """How many layers each entry stands for, once equal layers have one entry together."""
        names = ("forward", "weights", "gradient", "update", "state", "made", "values", "left")
        own = [getattr(self, name) for name in names]
        columns = np.column_stack([*own, *(each for policy in self.policies for each in policy)])
        _, first, counts = np.unique(columns, axis=0, return_index=True, return_counts=True)
        for name, sizes in zip(names, own, strict=True):
            setattr(self, name, sizes[first])
        self.policies = [PolicyCosts(*(each[first] for each in own)) for own in self.policies]
        return counts.astype(float)

    def best(self) -> float:
        """The largest bound of all rounds, in seconds; infinite where a rank has no room at all."""
        if self.rows.room.min() <= 0:
            return float("inf")
        weight = np.where(self.loads.copies.any(axis=1), FIRST_OF_COPIES, 1.0)
        price = np.zeros(len(self.rows.room))
        paths = _graph_of(self.layout)
        stages = len(self.layout.stage_ranks)
        mean = ActionSeconds(
            *(
                np.full(stages, self.counts @ own / stages)
                for own in (self.forward, self.gradient, self.weights)
            )
        )
        best, shares = 0.0, OWN_SHARES[:1]
        for _ in range(PHASES if paths else 1):
            if paths is not None:
                # Step 1: paths that are long where layers lie as in the phase before.
                count = len(weight)
                for share in shares:
                    self._add(paths.longest(mean, share))
                new = np.full(len(self.loads.fixed) - count, SHARE_OF_NEW)
                old = weight * ((1 - SHARE_OF_NEW) / weight.sum())
                weight, shares = np.concatenate([old, new / len(new)]), OWN_SHARES
            weight = np.maximum(_on_grid(weight / weight.sum()), GRID)
            # Step 2: rounds of new weights and prices.
            found, weight, price, mean = self._phase(weight, price)
            best = max(best, found)
        return best

    def _phase(
        self, weight: Numbers, price: Numbers
    ) -> tuple[float, Numbers, Numbers, ActionSeconds]:
        """The largest bound of some rounds, the last weights and prices, and the stages' mean seconds, as shares."""
        best, summed = 0.0, np.zeros((3, len(self.layout.stage_ranks)))
        for turn in range(ROUNDS):
            check_time()
            # Step 1: layers spread over stages and policies, more evenly in the first rounds.
            spread = self._bound(weight, price, WARMEST * COOLING**turn)
            best = max(best, spread.bound)
            if 2 * turn >= ROUNDS:
                summed += np.array(spread.seconds)
            # Step 2: fuller ranks weigh more, and fuller places cost more.
            pace = PACE / np.sqrt(1 + turn)
            more = np.clip(spread.loads / (weight @ spread.loads) - 1, -1.0, 1.0)
            weight = weight * np.exp(pace * more)
            weight = np.maximum(_on_grid(weight / weight.sum()), GRID)
            price = (price + FIRST_PRICE) * np.exp(pace * np.clip(spread.lacking, -1.0, 1.0))
            price = _on_grid(np.maximum(price - FIRST_PRICE, 0.0))
        return best, weight, price, ActionSeconds(*_on_grid(summed / max(summed.max(), 1e-300)))

    def _add(self, paths: OrderPaths) -> None:
        """Add (5) for some paths."""
        added = path_rows(self.problem, paths)
        self.loads = PriceRows(*map(np.concatenate, zip(self.loads, added, strict=True)))

    def _bound(self, weight: Numbers, price: Numbers, warmth: float) -> "_Spread":
        """The bound, and layers spread over stages.

        With `warmth` the layers that these two count lie on dearer stages too.
        """
        weight, rows = weight / weight.sum(), self.rows
        per_byte = price * (self.second / self.byte)
        # Step 1: the price of each layer on each stage, under each policy.
        gradient, extra = weight @ self.loads.gradient, weight @ self.loads.extra
        stash, state = per_byte @ rows.stash, per_byte @ rows.own
        made = per_byte @ rows.made
        cost = np.outer(self.forward, weight @ self.loads.forward)
        cost += np.outer(self.gradient, gradient) + np.outer(
            self.weights, weight @ self.loads.weights
        )
        cost += np.outer(self.update, weight @ self.loads.update) + np.outer(self.state, state)
        cost += np.outer(self.made, made)
        cost += np.outer(self.values, stash) + np.outer(self.left, per_byte @ rows.waiting)
        every = np.array(
            [
                cost
                + np.outer(own.extra, extra)
                + np.outer(own.kept, stash)
                + np.outer(own.copied, weight @ self.loads.copies)
                for own in self.policies
            ]
        )
        least = every.min(axis=(0, 2))
        layers = float(self.counts @ least)
        bound = layers + float(weight @ self.loads.fixed - per_byte @ rows.room)
        # Step 2: what the layers make of each row, where the cheapest stages have most of them.
        usual = max(layers, 1e-300) / self.counts.sum() * warmth
        share = np.exp(-(every - least[None, :, None]) / usual)
        share *= (self.counts / share.sum(axis=(0, 2)))[None, :, None]
        on = share.sum(axis=0)
        added = sum(own.extra @ part for own, part in zip(self.policies, share, strict=True))
        kept = sum(own.kept @ part for own, part in zip(self.policies, share, strict=True))
        copied = sum(own.copied @ part for own, part in zip(self.policies, share, strict=True))
        seconds = ActionSeconds(self.forward @ on, self.gradient @ on, self.weights @ on)
        loads = self.loads.fixed + self.loads.forward @ seconds.forward
        loads = loads + self.loads.copies @ copied
        loads = loads + self.loads.gradient @ seconds.gradient + self.loads.extra @ added
        loads = (
            loads + self.loads.weights @ seconds.weights + self.loads.update @ (self.update @ on)
        )
        used = rows.own @ (self.state @ on) + rows.stash @ (self.values @ on + kept)
        used = used + rows.waiting @ (self.left @ on) + rows.made @ (self.made @ on)
        seconds = seconds._replace(gradient=seconds.gradient + added)
        return _Spread(bound, loads / self.second, (used - rows.room) / self.byte, seconds)


class _Spread(NamedTuple):
    """Layers spread over stages and policies."""

    bound: float
    """In seconds."""
    loads: Numbers
    """The right side of each row, scaled to about 1."""
    lacking: Numbers
    """What each place lacks, scaled to about 1."""
    seconds: ActionSeconds


def _graph_of(layout: Layout) -> OrderGraph | None:
    """The waits in a layout's orders; None where they have too many actions."""
    actions = 2 * len(layout.stage_ranks) * layout.num_microbatches
    return OrderGraph(layout) if actions <= MOST_ACTIONS else None


def _on_grid(numbers: Numbers) -> Numbers:
    return np.round(numbers / GRID) * GRID
