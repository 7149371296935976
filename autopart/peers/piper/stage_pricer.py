"""Prices for the stages between pairs of downsets (stage_options.py)."""

from typing import NamedTuple

import numpy as np

from autopart.peers.piper.charges import (
    SMALLEST_SAVING,
    Flags,
    Floats,
    Ints,
    PiperLimits,
    PiperNet,
    work,
)
from autopart.peers.piper.nested_pairs import ROUNDING, Pairs
from autopart.peers.piper.recompute_levels import (
    SavingLevels,
    fewest_flips,
    flip_each,
    levels,
    most_in_flight,
    ranges,
)
from autopart.peers.piper.width_choices import (
    WidthChoices,
    all_widths,
    most_replicas,
    replica_counts,
)


class StageOptions(NamedTuple):
    """Stages with their price: arrays with the same length, one entry each."""

    start: Ints
    """Downset ahead of the stage."""
    end: Ints
    """Downset after the stage; the stage is their difference."""
    width: Ints
    """t: devices per replica."""
    replicas: Ints
    """d."""
    behind: Ints
    """The most replicas behind the stage with which its time holds."""
    time: Floats
    """Seconds."""
    in_flight: Ints
    """Microbatches in flight with which Piper's rule gives this time."""


class StagePricer:
    """Prices stages between the downsets of one model."""

    def __init__(
        self, net: PiperNet, limits: PiperLimits, downsets: Flags, most_time: float
    ) -> None:
        self.limits, self.downsets, self.most_time = limits, downsets.astype(float), most_time
        self.source = np.array([e.source for e in net.edges], dtype=np.int64)
        self.target = np.array([e.target for e in net.edges], dtype=np.int64)
        made, read = downsets[:, self.source], downsets[:, self.target]
        self.crossing = made & ~read
        self.unmade, self.read = ~made, read
        self.replicas = replica_counts(limits)
        self.widest = all_widths(net)[-1]
        self.most_bytes = limits.memory_bytes * (1 + ROUNDING)

    def options(self, pairs: Pairs, nodes: WidthChoices) -> StageOptions:
        """All options for `pairs` with the width in `nodes`."""
        pairs = self._possible(pairs, nodes)
        enters = (self.crossing[pairs.low] & self.read[pairs.high]).astype(float)
        leaves = (self.crossing[pairs.high] & self.unmade[pairs.low]).astype(float)
        # One order for all stages where both choices move the same bytes.
        alike = all((a[0] == a[1]).all() for a in (nodes.weights, nodes.entering, nodes.leaving))
        if alike:
            moved = enters @ nodes.entering[0] + leaves @ nodes.leaving[0]
            return self._common_order(pairs, nodes, moved)
        found = [
            self._own_order(pairs, nodes, int(d), enters, leaves)
            for d in self.replicas
            if d * nodes.width <= self.limits.devices
        ]
        return StageOptions(*(np.concatenate(column) for column in zip(*found, strict=True)))

    def _possible(self, pairs: Pairs, nodes: WidthChoices) -> Pairs:
        """The pairs that some number of replicas could run by compute alone.

        Each pair counts with the least bytes for every node, and with the fewest microbatches in
        flight that the stages behind it allow.
        """
        least = [nodes.compute, nodes.stash, nodes.state]
        per_node = [quantity.min(axis=0) for quantity in least] + [~nodes.known]
        upto = self.downsets @ np.stack(per_node, axis=1).astype(float)
        compute, a, b, unknown = (upto[pairs.high] - upto[pairs.low]).T
        d = self.replicas
        fits = a[:, None] * self._least_in_flight(pairs.after) + b[:, None] <= self.most_bytes
        possible = fits & (compute[:, None] <= self.most_time * d * (1 + ROUNDING))
        possible &= d * nodes.width <= pairs.spare[:, None]
        kept = possible.any(axis=1) & (unknown < 0.5)
        return Pairs(*(column[kept] for column in pairs))

    def _least_in_flight(self, after: Ints) -> Floats:
        """[stage, d] fewest microbatches in flight, with at least `after` devices behind the stage."""
        return 1 + np.ceil(np.ceil(after / self.widest)[:, None] / self.replicas)

    def _common_order(self, pairs: Pairs, nodes: WidthChoices, moved: Floats) -> StageOptions:
        """The options where the order of changes depends on width and microbatches in flight only."""
        quick = (nodes.compute[1] < nodes.compute[0]).astype(np.int64)
        each = np.arange(len(quick))
        stash, state = nodes.stash[quick, each], nodes.state[quick, each]
        per_node = [nodes.compute.min(axis=0), nodes.weights[0], stash, state]
        per_node += [nodes.stash.min(axis=0), nodes.state.min(axis=0)]
        # Step 1: sums over each stage, as differences between its ends.
        upto = self.downsets @ np.stack(per_node, axis=1)
        sums = upto[pairs.high] - upto[pairs.low]
        # Step 2: replica counts that time and devices allow.
        allowed = self._within(nodes, pairs.spare, sums[:, 0], moved, sums[:, 1])
        kept = allowed.any(axis=1)
        pairs, allowed, moved = Pairs(*(c[kept] for c in pairs)), allowed[kept], moved[kept]
        compute, weights, a, b, least_a, least_b = sums[kept].T
        least = np.where(allowed, self._least_in_flight(pairs.after), np.inf).min(
            axis=1, initial=np.inf
        )
        most = np.where(allowed, -(-most_replicas(self.limits) // self.replicas), 0)
        most = most.max(axis=1, initial=0)
        # Step 3: the range of y for which changes are needed, and possible.
        free = most_in_flight(self.limits.memory_bytes, a, b, most)
        saved = most_in_flight(self.limits.memory_bytes, least_a, least_b, most)
        rows, in_flight = ranges(np.maximum(free + 1, least.astype(np.int64)), saved)
        low, high = pairs.low[rows], pairs.high[rows]
        # Step 4: the work that these changes add.
        need = a[rows] * in_flight + b[rows] - self.limits.memory_bytes
        delta = (stash - nodes.stash[1 - quick, each], state - nodes.state[1 - quick, each])
        extra = np.abs(nodes.compute[1] - nodes.compute[0])
        added = self._flip_in_order(extra, delta, low, high, in_flight, need)
        return self._expand(
            nodes, pairs, levels(free, rows, in_flight, added), compute, moved, weights
        )

    def _within(
        self, nodes: WidthChoices, spare: Ints, compute: Floats, moved: Floats, weights: Floats
    ) -> Flags:
        """[stage, d] whether time and devices allow it."""
        d = self.replicas
        time = work(compute[:, None], moved[:, None], weights[:, None], d, self.limits) / d
        return (time <= self.most_time) & (d * nodes.width <= spare[:, None])

    def _flip_in_order(
        self,
        extra: Floats,
        delta: tuple[Floats, Floats],
        low: Ints,
        high: Ints,
        in_flight: Ints,
        need: Floats,
    ) -> Floats:
        """For each stage and y the work that its nodes' changes add; infinite where memory is too
        small.

        All y with the same order are done together, by bisection on the number of changes.
        """
        added = np.full(len(low), np.inf)
        orders: dict[tuple[int, ...], list[int]] = {}
        # Step 1: group the y by the order of their changes.
        for y in np.unique(in_flight).tolist():
            saving = delta[0] * y + delta[1]
            worth = np.flatnonzero(saving > SMALLEST_SAVING)
            order = worth[np.argsort(extra[worth] / saving[worth], kind="stable")]
            orders.setdefault(tuple(order.tolist()), []).append(y)
        # Step 2: sums along each order, then the fewest changes.
        for order, ys in orders.items():
            rows = np.flatnonzero(np.isin(in_flight, ys))
            sums = [self._upto(quantity, order) for quantity in (*delta, extra)]
            added[rows] = fewest_flips(sums, low[rows], high[rows], in_flight[rows], need[rows])
        return added

    def _upto(self, quantity: Floats, order: tuple[int, ...]) -> Floats:
        """[downset, r] the sum over the downset's nodes among the first r in the order."""
        chosen = list(order)
        table = np.zeros((len(self.downsets), len(order) + 1))
        np.cumsum(self.downsets[:, chosen] * quantity[chosen], axis=1, out=table[:, 1:])
        return table

    def _expand(
        self,
        nodes: WidthChoices,
        pairs: Pairs,
        steps: SavingLevels,
        compute: Floats,
        moved: Floats,
        weights: Floats,
    ) -> StageOptions:
        """Every level with every number of replicas that time and devices allow."""
        at, d = steps.pair, self.replicas
        total = work(
            (compute[at] + steps.added)[:, None],
            moved[at][:, None],
            weights[at][:, None],
            d,
            self.limits,
        )
        time = total / d
        possible = (time <= self.most_time) & (d * nodes.width <= pairs.spare[at][:, None])
        possible &= steps.in_flight[:, None] >= self._least_in_flight(pairs.after[at])
        step, column = np.nonzero(possible)
        return self._pack(nodes, pairs, steps, step, d[column], time[step, column])

    def _pack(
        self,
        nodes: WidthChoices,
        pairs: Pairs,
        steps: SavingLevels,
        step: Ints,
        replicas: Ints,
        time: Floats,
    ) -> StageOptions:
        """The options as arrays."""
        at, in_flight = steps.pair[step], steps.in_flight[step]
        return StageOptions(
            start=pairs.low[at],
            end=pairs.high[at],
            width=np.full(len(step), nodes.width),
            replicas=replicas,
            behind=(in_flight - 1) * replicas,
            time=time,
            in_flight=in_flight,
        )

    def _own_order(
        self, pairs: Pairs, nodes: WidthChoices, replicas: int, enters: Floats, leaves: Floats
    ) -> StageOptions:
        """The options on `replicas` replicas where choices differ in the bytes that they move."""
        inside = self.downsets[pairs.high] - self.downsets[pairs.low]
        # Step 1: each node's work under both choices, with the bytes that its edges move in this
        # stage.
        spread = np.zeros((2, 2, len(self.target), inside.shape[1]))
        edges = np.arange(len(self.target))
        spread[0][:, edges, self.target] = nodes.entering
        spread[1][:, edges, self.source] = nodes.leaving
        both = [
            work(
                nodes.compute[c],
                enters @ spread[0][c] + leaves @ spread[1][c],
                nodes.weights[c],
                replicas,
                self.limits,
            )
            for c in (0, 1)
        ]
        # Step 2: the faster choice for each node; drop stages that are too slow even so.
        second = both[1] < both[0]
        least = (np.minimum(*both) * inside).sum(axis=1)
        fits = (least / replicas <= self.most_time) & (replicas * nodes.width <= pairs.spare)
        pairs = Pairs(*(column[fits] for column in pairs))
        # Step 3: bytes, and the bytes that a change saves.
        stash = np.where(second, nodes.stash[1], nodes.stash[0])[fits] * inside[fits]
        state = np.where(second, nodes.state[1], nodes.state[0])[fits] * inside[fits]
        delta_stash = 2 * stash - nodes.stash.sum(axis=0) * inside[fits]
        delta_state = 2 * state - nodes.state.sum(axis=0) * inside[fits]
        extra = np.abs(both[1] - both[0])[fits] * inside[fits]
        columns: list[Floats] = []
        # Step 4: the work that changes add, for each y.
        for y in range(1, -(-most_replicas(self.limits) // replicas) + 1):
            need = (stash * y + state).sum(axis=1) - self.limits.memory_bytes
            columns.append(flip_each(extra, delta_stash * y + delta_state, need))
        # Step 5: the least over all larger y, one entry per step of the stair.
        added = np.minimum.accumulate(np.stack(columns, axis=1)[:, ::-1], axis=1)[:, ::-1]
        later = np.concatenate([added[:, 1:], np.full((len(added), 1), np.inf)], axis=1)
        pair, column = np.nonzero(np.isfinite(added) & (added != later))
        steps = SavingLevels(pair, column + 1, added[pair, column])
        time = (least[fits][pair] + steps.added) / replicas
        step = np.flatnonzero(time <= self.most_time)
        counts = np.full(len(step), replicas)
        return self._pack(nodes, pairs, steps, step, counts, time[step])
