"""What Piper charges every stage between two down-sets of a model, on every number of devices.

Symbols as in autopart/loads/piper.py, and
          x      a state: a down-set of the graph, the nodes placed so far
          s      replicas in the stages behind a stage; in flight y = ceil((s + d) / d)

A stage between two states is priced for each width t and replica count d that its time allows, and
for each level of saving: `behind` says up to which s the level is enough. Time need not grow with
what is in flight (Piper's choice is a heuristic), so a stage is given the least time of all y that
are at least its own: what fits with more in flight fits with less. No other rule of Piper is touched,
and the result is never above its own.

Most files charge both choices of a node the same bytes for transfers. Then the order of the changes
depends on t and y only, and its sums over a stage are differences of sums over states: O(log n) for
a stage and y (`_common_order`). Otherwise the order is each stage's own (`_own_order`).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.loads.piper import SMALLEST_SAVING, Choice, Limits, Net, work
from autopart.states import ROUNDING, Pairs, nested_pairs

Array = npt.NDArray[Any]
"""A numpy array."""

PAIRS_AT_ONCE = 100_000


class StageOptions(NamedTuple):
    """Stages with their price: arrays of the same length, one entry each."""

    start: Array
    end: Array
    """States; the stage is their difference."""
    width: Array
    """t: devices of a replica."""
    replicas: Array
    """d."""
    behind: Array
    """The most replicas behind the stage with which its time holds."""
    time: Array
    in_flight: Array
    """The microbatches in flight with which Piper's rule gives this time."""


class _Nodes(NamedTuple):
    """The nodes' two choices for one width, arrays [choice, node]; the second is the first where
    there is only one."""

    width: int
    known: Array
    """[node] whether it has a choice."""
    compute: Array
    weights: Array
    stash: Array
    state: Array
    entering: Array
    """[choice, edge] bytes of (2) where the edge enters a stage, as its target chooses."""
    leaving: Array


class _Steps(NamedTuple):
    """Levels of saving of some pairs: the pair, up to how many in flight, and the work added."""

    pair: Array
    in_flight: Array
    added: Array


def least_work(net: Net) -> Array:
    """For each node the least device-seconds of compute, over all widths and choices."""
    return np.array(
        [
            min((width * c.time for width, row in node.choices.items() for c in row), default=0.0)
            for node in net.nodes
        ]
    )


def replica_counts(limits: Limits) -> Array:
    """Every d: it divides the batch and does not exceed the devices."""
    counts = np.arange(1, most_replicas(limits) + 1)
    return counts[limits.microbatches % counts == 0]


def most_replicas(limits: Limits) -> int:
    """The most replicas of all stages together: never more than the microbatches of a batch."""
    return min(limits.microbatches, limits.devices)


def all_widths(net: Net) -> list[int]:
    """Every width that some node has a choice for, ascending."""
    return sorted({width for node in net.nodes for width in node.choices})


def stage_options(net: Net, limits: Limits, states: Array, most_time: float) -> StageOptions:
    """Every option of a stage that takes at most `most_time` seconds and leaves the rest of the model
    the devices that it needs for that; raises TooManyPairs.

    `states` [state, node] says which nodes are placed, smaller states first.
    """
    pricer = _Pricer(net, limits, states, most_time)
    widths = [width for width in all_widths(net) if width <= limits.devices]
    nodes = [_nodes(net, width) for width in widths]
    counts = np.unique(np.outer(widths, replica_counts(limits)))
    pairs = nested_pairs(states, least_work(net), limits.devices, counts, most_time)
    parts = list(_parts(pairs))
    found = [pricer.options(part, of_width) for part in parts for of_width in nodes]
    if not found:
        return StageOptions(*(np.zeros(0, dtype=np.int64) for _ in StageOptions._fields))
    return StageOptions(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _parts(pairs: Pairs) -> Iterator[Pairs]:
    for begin in range(0, len(pairs.low), PAIRS_AT_ONCE):
        yield Pairs(*(column[begin : begin + PAIRS_AT_ONCE] for column in pairs))


def _nodes(net: Net, width: int) -> _Nodes:
    nothing = (Choice("", 0.0, 0.0, 0.0, 0.0, {}, {}),)
    rows = [node.choices.get(width, nothing) for node in net.nodes]
    both = [(row[0], row[-1]) for row in rows]
    received = [[c.receive_bytes.get(e.source, 0.0) for c in both[e.target]] for e in net.edges]
    sent = [[c.send_bytes.get(e.target, 0.0) for c in both[e.source]] for e in net.edges]
    own = np.array([e.bytes for e in net.edges])
    return _Nodes(
        width=width,
        known=np.array([width in node.choices for node in net.nodes]),
        compute=np.array([[c.time for c in row] for row in both]).T,
        weights=np.array([[c.weight_bytes for c in row] for row in both]).T,
        stash=np.array([[c.stash_bytes for c in row] for row in both]).T,
        state=np.array([[c.state_bytes for c in row] for row in both]).T,
        entering=2 * (own + np.array(received).reshape(-1, 2).T),
        leaving=2 * (own + np.array(sent).reshape(-1, 2).T),
    )


class _Pricer:
    """Prices stages between the states of one model."""

    def __init__(self, net: Net, limits: Limits, states: Array, most_time: float) -> None:
        self.limits, self.states, self.most_time = limits, states.astype(float), most_time
        self.source = np.array([e.source for e in net.edges], dtype=np.int64)
        self.target = np.array([e.target for e in net.edges], dtype=np.int64)
        made, read = states[:, self.source], states[:, self.target]
        self.crossing = made & ~read
        self.unmade, self.read = ~made, read
        self.replicas = replica_counts(limits)
        self.widest = all_widths(net)[-1]
        self.most_bytes = limits.memory_bytes * (1 + ROUNDING)

    def options(self, pairs: Pairs, nodes: _Nodes) -> StageOptions:
        """All options of `pairs` with the width of `nodes`."""
        pairs = self._possible(pairs, nodes)
        enters = (self.crossing[pairs.low] & self.read[pairs.high]).astype(float)
        leaves = (self.crossing[pairs.high] & self.unmade[pairs.low]).astype(float)
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

    def _possible(self, pairs: Pairs, nodes: _Nodes) -> Pairs:
        """The pairs that some number of replicas could run by compute alone, with the least bytes of
        every node and no more in flight than what comes after them makes necessary."""
        least = [nodes.compute, nodes.stash, nodes.state]
        per_node = [quantity.min(axis=0) for quantity in least] + [~nodes.known]
        upto = self.states @ np.stack(per_node, axis=1).astype(float)
        compute, a, b, unknown = (upto[pairs.high] - upto[pairs.low]).T
        d = self.replicas
        fits = a[:, None] * self._least_in_flight(pairs.after) + b[:, None] <= self.most_bytes
        possible = fits & (compute[:, None] <= self.most_time * d * (1 + ROUNDING))
        possible &= d * nodes.width <= pairs.spare[:, None]
        kept = possible.any(axis=1) & (unknown < 0.5)
        return Pairs(*(column[kept] for column in pairs))

    def _least_in_flight(self, after: Array) -> Array:
        """[stage, d] what is in flight at least, with `after` devices behind the stage at least."""
        return 1 + np.ceil(np.ceil(after / self.widest)[:, None] / self.replicas)

    def _common_order(self, pairs: Pairs, nodes: _Nodes, moved: Array) -> StageOptions:
        quick = (nodes.compute[1] < nodes.compute[0]).astype(np.int64)
        each = np.arange(len(quick))
        stash, state = nodes.stash[quick, each], nodes.state[quick, each]
        per_node = [nodes.compute.min(axis=0), nodes.weights[0], stash, state]
        per_node += [nodes.stash.min(axis=0), nodes.state.min(axis=0)]
        upto = self.states @ np.stack(per_node, axis=1)
        sums = upto[pairs.high] - upto[pairs.low]
        allowed = self._within(nodes, pairs.spare, sums[:, 0], moved, sums[:, 1])
        kept = allowed.any(axis=1)
        pairs, allowed, moved = Pairs(*(c[kept] for c in pairs)), allowed[kept], moved[kept]
        compute, weights, a, b, least_a, least_b = sums[kept].T
        held = np.where(allowed, self._least_in_flight(pairs.after), np.inf).min(
            axis=1, initial=np.inf
        )
        most = np.where(allowed, -(-most_replicas(self.limits) // self.replicas), 0)
        most = most.max(axis=1, initial=0)
        free = _most_in_flight(self.limits.memory_bytes, a, b, most)
        saved = _most_in_flight(self.limits.memory_bytes, least_a, least_b, most)
        rows, in_flight = _ranges(np.maximum(free + 1, held.astype(np.int64)), saved)
        low, high = pairs.low[rows], pairs.high[rows]
        need = a[rows] * in_flight + b[rows] - self.limits.memory_bytes
        delta = (stash - nodes.stash[1 - quick, each], state - nodes.state[1 - quick, each])
        extra = np.abs(nodes.compute[1] - nodes.compute[0])
        added = self._flip_in_order(extra, delta, low, high, in_flight, need)
        return self._expand(
            nodes, pairs, _levels(free, rows, in_flight, added), compute, moved, weights
        )

    def _within(
        self, nodes: _Nodes, spare: Array, compute: Array, moved: Array, weights: Array
    ) -> Array:
        """[stage, d] whether time and devices allow it."""
        d = self.replicas
        time = work(compute[:, None], moved[:, None], weights[:, None], d, self.limits) / d
        return (time <= self.most_time) & (d * nodes.width <= spare[:, None])

    def _flip_in_order(
        self,
        extra: Array,
        delta: tuple[Array, Array],
        low: Array,
        high: Array,
        in_flight: Array,
        need: Array,
    ) -> Array:
        """For each stage and number in flight, what its nodes' changes add to its compute until
        `need` bytes are saved; infinite where that cannot be. All y that give the nodes the same
        order are done together, by bisection on how many of the order change."""
        added = np.full(len(low), np.inf)
        orders: dict[tuple[int, ...], list[int]] = {}
        for y in np.unique(in_flight).tolist():
            saving = delta[0] * y + delta[1]
            worth = np.flatnonzero(saving > SMALLEST_SAVING)
            order = worth[np.argsort(extra[worth] / saving[worth], kind="stable")]
            orders.setdefault(tuple(order.tolist()), []).append(y)
        for order, ys in orders.items():
            rows = np.flatnonzero(np.isin(in_flight, ys))
            sums = [self._upto(quantity, order) for quantity in (*delta, extra)]
            added[rows] = _fewest_flips(sums, low[rows], high[rows], in_flight[rows], need[rows])
        return added

    def _upto(self, quantity: Array, order: tuple[int, ...]) -> Array:
        """[state, r] the sum over the state's nodes among the first r of the order."""
        chosen = list(order)
        table = np.zeros((len(self.states), len(order) + 1))
        np.cumsum(self.states[:, chosen] * quantity[chosen], axis=1, out=table[:, 1:])
        return table

    def _expand(
        self,
        nodes: _Nodes,
        pairs: Pairs,
        steps: _Steps,
        compute: Array,
        moved: Array,
        weights: Array,
    ) -> StageOptions:
        """Every step with every number of replicas that time and devices allow."""
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
        nodes: _Nodes,
        pairs: Pairs,
        steps: _Steps,
        step: Array,
        replicas: Array,
        time: Array,
    ) -> StageOptions:
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
        self, pairs: Pairs, nodes: _Nodes, replicas: int, enters: Array, leaves: Array
    ) -> StageOptions:
        """The options on `replicas` replicas where choices differ in the bytes that they move."""
        inside = self.states[pairs.high] - self.states[pairs.low]
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
        second = both[1] < both[0]
        least = (np.minimum(*both) * inside).sum(axis=1)
        fits = (least / replicas <= self.most_time) & (replicas * nodes.width <= pairs.spare)
        pairs = Pairs(*(column[fits] for column in pairs))
        stash = np.where(second, nodes.stash[1], nodes.stash[0])[fits] * inside[fits]
        state = np.where(second, nodes.state[1], nodes.state[0])[fits] * inside[fits]
        delta_stash = 2 * stash - nodes.stash.sum(axis=0) * inside[fits]
        delta_state = 2 * state - nodes.state.sum(axis=0) * inside[fits]
        extra = np.abs(both[1] - both[0])[fits] * inside[fits]
        columns: list[Array] = []
        for y in range(1, -(-most_replicas(self.limits) // replicas) + 1):
            need = (stash * y + state).sum(axis=1) - self.limits.memory_bytes
            columns.append(_flip_each(extra, delta_stash * y + delta_state, need))
        added = np.minimum.accumulate(np.stack(columns, axis=1)[:, ::-1], axis=1)[:, ::-1]
        later = np.concatenate([added[:, 1:], np.full((len(added), 1), np.inf)], axis=1)
        pair, column = np.nonzero(np.isfinite(added) & (added != later))
        steps = _Steps(pair, column + 1, added[pair, column])
        time = (least[fits][pair] + steps.added) / replicas
        step = np.flatnonzero(time <= self.most_time)
        counts = np.full(len(step), replicas)
        return self._pack(nodes, pairs, steps, step, counts, time[step])


def _most_in_flight(memory: float, per_each: Array, fixed: Array, most: Array) -> Array:
    """The largest y up to `most` with per_each y + fixed <= memory; 0 where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(
            per_each > 0, (memory - fixed) / per_each, np.where(fixed <= memory, most, 0)
        )
    y = np.clip(np.floor(ratio), 0, most).astype(np.int64)
    y += (y < most) & (per_each * (y + 1) + fixed <= memory)
    return y - ((y > 0) & (per_each * y + fixed > memory))


def _ranges(first: Array, last: Array) -> tuple[Array, Array]:
    """For each place i every number first[i] … last[i]: the places and the numbers."""
    count = np.maximum(last - first + 1, 0)
    place = np.repeat(np.arange(len(first)), count)
    return place, np.arange(len(place)) - np.repeat(count.cumsum() - count - first, count)


def _fewest_flips(
    sums: list[Array], low: Array, high: Array, in_flight: Array, need: Array
) -> Array:
    """The work added by the shortest beginning of an order that saves `need` bytes."""
    per_each, fixed, extra = sums

    def lacking(flips: Array) -> Array:
        saved = (per_each[high, flips] - per_each[low, flips]) * in_flight
        return need - saved - (fixed[high, flips] - fixed[low, flips])

    least, most = np.zeros_like(low), np.full_like(low, per_each.shape[1] - 1)
    possible = lacking(most) <= 0
    while (least < most).any():
        middle = (least + most) // 2
        enough = lacking(middle) < SMALLEST_SAVING
        most = np.where(enough, middle, most)
        least = np.where(enough, least, np.minimum(middle + 1, most))
    return np.where(possible, extra[high, most] - extra[low, most], np.inf)


def _flip_each(extra: Array, saving: Array, need: Array) -> Array:
    """For each stage (row) what its nodes' changes add until `need` bytes are saved."""
    added = np.where(need <= 0, 0.0, np.inf)
    hard = np.flatnonzero((need > 0) & (np.clip(saving, 0, None).sum(axis=1) >= need))
    saving, extra, need = saving[hard], extra[hard], need[hard]
    worth = saving > SMALLEST_SAVING
    ratio = np.where(worth, extra / np.where(worth, saving, 1.0), np.inf)
    order = np.argsort(ratio, axis=1, kind="stable")
    saved = np.take_along_axis(np.where(worth, saving, 0.0), order, axis=1).cumsum(axis=1)
    slower = np.take_along_axis(np.where(worth, extra, 0.0), order, axis=1).cumsum(axis=1)
    enough = need[:, None] - saved < SMALLEST_SAVING
    last = np.where(enough.any(axis=1), enough.argmax(axis=1), saving.shape[1] - 1)
    added[hard] = slower[np.arange(len(hard)), last]
    return added


def _levels(free: Array, rows: Array, in_flight: Array, added: Array) -> _Steps:
    """The levels of saving of each stage: none up to `free`, and those of its rows, each given the
    least of its own and all later ones."""
    last = np.ones(len(rows), dtype=bool)
    last[:-1] = rows[1:] != rows[:-1]
    later = np.append(added[1:], np.inf)
    later[last] = np.inf
    for row in np.unique(rows[added > later]).tolist():
        mine = slice(*np.searchsorted(rows, [row, row + 1]))
        added[mine] = np.minimum.accumulate(added[mine][::-1])[::-1]
    later = np.append(added[1:], np.inf)
    later[last] = np.inf
    ends = np.flatnonzero((added != later) & np.isfinite(added))
    without = np.flatnonzero(free > 0)
    return _Steps(
        pair=np.concatenate([without, rows[ends]]),
        in_flight=np.concatenate([free[without], in_flight[ends]]),
        added=np.concatenate([np.zeros(len(without)), added[ends]]),
    )
