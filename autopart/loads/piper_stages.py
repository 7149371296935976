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

Array = npt.NDArray[Any]
"""A numpy array."""

PAIRS_AT_ONCE = 20_000

ROUNDING = 1e-9
"""Relative slack with which a stage may be left out as hopeless."""


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


class _Pairs(NamedTuple):
    """Stages between two states."""

    low: Array
    high: Array
    spare: Array
    """The devices that the rest of the model leaves them at most."""


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


def stage_options(net: Net, limits: Limits, states: Array, most_time: float) -> StageOptions:
    """Every option of a stage that takes at most `most_time` seconds and leaves the rest of the model
    the devices that it needs for that.

    `states` [state, node] says which nodes are placed, smaller states first.
    """
    pricer = _Pricer(net, limits, states, most_time)
    widths = sorted({width for node in net.nodes for width in node.choices})
    nodes = [_nodes(net, width) for width in widths if width <= limits.devices]
    parts = list(_parts(_pairs(net, limits, states, most_time)))
    found = [pricer.options(part, of_width) for part in parts for of_width in nodes]
    if not found:
        return StageOptions(*(np.zeros(0, dtype=np.int64) for _ in StageOptions._fields))
    return StageOptions(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _pairs(net: Net, limits: Limits, states: Array, most_time: float) -> _Pairs:
    """The pairs of nested states between which a stage within `most_time` leaves the rest of the
    model enough devices: compute alone needs work / time of them, rounded up on either side."""
    done = states @ least_work(net)
    packed = np.packbits(states, axis=1)
    words = np.zeros((len(states), -(-packed.shape[1] // 8) * 8), dtype=np.uint8)
    words[:, : packed.shape[1]] = packed
    words = words.view(np.uint64)
    before = np.ceil(done / most_time - ROUNDING)
    after = np.ceil((done[-1] - done) / most_time - ROUNDING)
    rows: list[tuple[Array, Array, Array]] = []
    for low in range(len(states) - 1):
        spare = limits.devices - before[low] - after[low + 1 :]
        fits = spare * most_time >= (done[low + 1 :] - done[low]) * (1 - ROUNDING)
        high = low + 1 + np.flatnonzero(fits & (spare >= 1))
        high = high[((words[low] & ~words[high]) == 0).all(axis=1)]
        rows.append((np.full(len(high), low), high, spare[high - low - 1].astype(np.int64)))
    return _Pairs(*(np.concatenate(column) for column in zip(*rows, strict=True)))


def _parts(pairs: _Pairs) -> Iterator[_Pairs]:
    for begin in range(0, len(pairs.low), PAIRS_AT_ONCE):
        yield _Pairs(*(column[begin : begin + PAIRS_AT_ONCE] for column in pairs))


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

    def options(self, pairs: _Pairs, nodes: _Nodes) -> StageOptions:
        """All options of `pairs` with the width of `nodes`."""
        unknown = self.states @ ~nodes.known
        pairs = _Pairs(*(column[unknown[pairs.high] == unknown[pairs.low]] for column in pairs))
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

    def _common_order(self, pairs: _Pairs, nodes: _Nodes, moved: Array) -> StageOptions:
        quick = (nodes.compute[1] < nodes.compute[0]).astype(np.int64)
        each = np.arange(len(quick))
        stash, state = nodes.stash[quick, each], nodes.state[quick, each]
        per_node = [nodes.compute.min(axis=0), nodes.weights[0], stash, state]
        per_node += [nodes.stash.min(axis=0), nodes.state.min(axis=0)]
        upto = self.states @ np.stack(per_node, axis=1)
        compute, weights, a, b, least_a, least_b = (upto[pairs.high] - upto[pairs.low]).T
        allowed = self._within(nodes, pairs.spare, compute, moved, weights)
        kept = allowed.any(axis=1)
        fewest = self.replicas[allowed[kept].argmax(axis=1)] if kept.any() else np.ones(0)
        most = np.ceil(most_replicas(self.limits) / fewest).astype(np.int64)
        memory = self.limits.memory_bytes
        free = _most_in_flight(memory, a[kept], b[kept], most)
        saved = _most_in_flight(memory, least_a[kept], least_b[kept], most)
        rows, in_flight = _ranges(free + 1, saved)
        low, high = pairs.low[kept][rows], pairs.high[kept][rows]
        need = a[kept][rows] * in_flight + b[kept][rows] - memory
        delta = (stash - nodes.stash[1 - quick, each], state - nodes.state[1 - quick, each])
        extra = np.abs(nodes.compute[1] - nodes.compute[0])
        added = self._flip_in_order(extra, delta, low, high, in_flight, need)
        steps = _levels(free, rows, in_flight, added)
        return self._expand(
            nodes,
            _Pairs(*(c[kept] for c in pairs)),
            steps,
            compute[kept],
            moved[kept],
            weights[kept],
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
        pairs: _Pairs,
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
        step, column = np.nonzero(
            (time <= self.most_time) & (d * nodes.width <= pairs.spare[at][:, None])
        )
        return self._pack(nodes, pairs, steps, step, d[column], time[step, column])

    def _pack(
        self,
        nodes: _Nodes,
        pairs: _Pairs,
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
        self, pairs: _Pairs, nodes: _Nodes, replicas: int, enters: Array, leaves: Array
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
        pairs = _Pairs(*(column[fits] for column in pairs))
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
