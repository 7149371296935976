"""Stages on different numbers of devices: the fewest devices for a fixed time, and its bisection.

Symbols   0 … L-1   states: how much of the model is placed; 0 is nothing, L - 1 everything
          o         an option: one stage, from state `start` to state `end`, on `replicas` replicas of
                    `width` devices each, that takes `time` seconds as long as at most `behind`
                    replicas work in the stages behind it
          K, R      most devices and most replicas of all stages together
          tau       a bottleneck: the largest time of a stage

The smallest bottleneck for K devices is found from its dual, the fewest devices for a bottleneck.
Of the stages behind a stage, two numbers matter to it: how many devices they leave it, and how many
replicas they have, since those decide the microbatches in flight. F(tau, x) are the pairs (replicas,
devices) with which the rest of the model behind state x can be placed within tau:

    F(tau, L-1) = { (0, 0) }
    F(tau, x)   = Pareto { (r + o.replicas, k + o.devices) :  o.start = x, o.time <= tau,
                           (r, k) in F(tau, o.end), r <= o.behind }

cut down to r <= R, k <= K, less the devices that the known work ahead of x needs within tau, and to
the pairs that no other pair beats in both numbers.

Dropping a beaten pair is exact: whatever can be placed ahead of it can be placed ahead of the pair
that beats it, since every option ahead asks only that *at most* so many replicas stand behind it.
For the same reason, of the options of one stage and width only one matters to a pair (r, k): that
with the fewest replicas among those with time <= tau and behind >= r; all others give more replicas
and more devices. It is found by one binary search, because options that have no more room behind
them than one with fewer replicas never qualify, and the rest increase in both.

A plan within tau exists exactly if F(tau, 0) is not empty, and this can only change where tau passes
the time of an option: bisection over these times ends with the optimum and, just below it, the last
infeasible time, which is the certificate. O(log |o|) rounds; a round costs one pass over the options
and O(log |o|) for each stage, width and pair. Pairs are at most min(R, K), and one where every width
is 1 (then replicas and devices are the same number).

Derivation and proof: docs/solvers.md.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

ROUNDING = 1e-9
"""Of a device: what a quotient may be off by before it counts as one more."""

Array = npt.NDArray[Any]
"""Of one dimension."""


class Options(NamedTuple):
    """All stages that a plan may use, one entry each; every array has the same length."""

    start: Array
    end: Array
    """States; the level of `end` is higher than that of `start`."""
    width: Array
    """Devices of one replica."""
    replicas: Array
    behind: Array
    """The most replicas in all stages behind this one with which its time holds; at least 0."""
    time: Array


class DevicePath(NamedTuple):
    """The stages with the smallest bottleneck."""

    bottleneck: float
    options: tuple[int, ...]
    """Positions in the options, the first stage first."""
    devices: int
    infeasible: float | None
    """The largest time of an option below `bottleneck`: no path keeps within it. None where no
    option takes less than `bottleneck`."""


def solve(
    options: Options, levels: Array, work: Array, devices: int, replicas: int
) -> DevicePath | None:
    """The path from the first state to the last with the smallest largest time, on at most
    `devices` devices and `replicas` replicas; None where there is no path.

    `levels` [state] orders the states: a stage leads from a lower to a higher level. `work` [state]
    are device-seconds that the stages ahead of a state take at least, as far as they are known.
    """
    search = _Search(options, levels, work, devices, replicas)
    times = np.unique(options.time)
    best = search.path(times[-1]) if len(times) else None
    if best is None:
        return None
    low, high = -1, int(np.searchsorted(times, best.bottleneck))
    while high - low > 1:
        middle = (low + high) // 2
        found = search.path(times[middle])
        if found is None:
            low = middle
        else:
            best, high = found, int(np.searchsorted(times, found.bottleneck))
    return best._replace(infeasible=float(times[high - 1]) if high else None)


class _Points:
    """Pairs (replicas, devices) of all states, each with the option and the pair it came by."""

    def __init__(self, num_states: int) -> None:
        self.first = np.zeros(num_states, dtype=np.int64)
        self.count = np.zeros(num_states, dtype=np.int64)
        self.columns = np.zeros((4, 1024), dtype=np.int64)
        self.columns[2:, 0] = -1
        self.used = 1
        self.first[-1], self.count[-1] = 0, 1

    def add(self, states: Array, rows: Array) -> None:
        """Append the pairs `rows` (4, p) of `states` (p,), which are sorted."""
        while self.used + len(states) > self.columns.shape[1]:
            self.columns = np.concatenate([self.columns, np.zeros_like(self.columns)], axis=1)
        self.columns[:, self.used : self.used + len(states)] = rows
        which, first, count = np.unique(states, return_index=True, return_counts=True)
        self.first[which] = self.used + first
        self.count[which] = count
        self.used += len(states)


class _Search:
    """The options in an order in which a round needs no more sorting: stages that start at a higher
    level first, then by stage and width, replicas up, room behind down."""

    def __init__(
        self, options: Options, levels: Array, work: Array, devices: int, replicas: int
    ) -> None:
        self.most_devices, self.most_replicas = devices, replicas
        self.num_states, self.levels, self.work = len(levels), levels, work
        o = options
        behind = np.minimum(o.behind, replicas)
        stage = (o.start - self.num_states * levels[o.start]) * self.num_states + o.end
        stage = stage * (o.width.max(initial=0) + 1) + o.width
        order = np.lexsort((o.replicas * (replicas + 1) + replicas - behind, stage))
        self.place = order
        self.start, self.end = o.start[order], o.end[order]
        self.replicas = o.replicas[order].astype(np.int64)
        self.devices = self.replicas * o.width[order]
        self.time = o.time[order]
        new = np.diff(stage[order], prepend=-np.inf) != 0
        self.group = np.cumsum(new) - 1
        self.key = self.group * (replicas + 1) + behind[order]

    def path(self, time: float) -> DevicePath | None:
        """A path of options within `time` with the fewest devices, or None."""
        rows = np.flatnonzero(self.time <= time)
        highest = np.maximum.accumulate(self.key[rows])
        rows = rows[np.concatenate(([True], highest[1:] > highest[:-1]))[: len(rows)]]
        with np.errstate(divide="ignore", invalid="ignore"):
            ahead = np.nan_to_num(np.ceil(self.work / time - ROUNDING))
        points = self._points(rows, self.most_devices - ahead)
        if not points.count[0]:
            return None
        mine = slice(points.first[0], points.first[0] + points.count[0])
        at = int(points.first[0] + points.columns[1, mine].argmin())
        devices = int(points.columns[1, at])
        taken: list[int] = []
        while points.columns[2, at] >= 0:
            taken.append(int(points.columns[2, at]))
            at = points.columns[3, at]
        return DevicePath(
            bottleneck=float(self.time[taken].max()),
            options=tuple(int(self.place[row]) for row in taken),
            devices=devices,
            infeasible=None,
        )

    def _points(self, rows: Array, most: Array) -> _Points:
        """F of every state, by levels from the last, on at most `most` [state] devices; `rows`
        increase in room within a group."""
        points = _Points(self.num_states)
        keys = self.key[rows]
        groups, first = np.unique(self.group[rows], return_index=True)
        starts, ends = self.start[rows[first]], self.end[rows[first]]
        levels = self.levels[starts]
        for begin, stop in _runs(levels):
            part = slice(begin, stop)
            count = points.count[ends[part]]
            which = np.repeat(np.arange(begin, stop), count)
            if not len(which):
                continue
            behind = np.repeat(points.first[ends[part]] - (count.cumsum() - count), count)
            behind += np.arange(len(which))
            asked = groups[which] * (self.most_replicas + 1) + points.columns[0, behind]
            found = np.searchsorted(keys, asked)
            found[found == len(keys)] = 0
            chosen = rows[found]
            inside = self.group[chosen] == groups[which]
            inside &= keys[found] >= asked
            self._extend(points, most, starts[which[inside]], chosen[inside], behind[inside])
        return points

    def _extend(
        self, points: _Points, most: Array, states: Array, chosen: Array, behind: Array
    ) -> None:
        replicas = points.columns[0, behind] + self.replicas[chosen]
        devices = points.columns[1, behind] + self.devices[chosen]
        fits = (replicas <= self.most_replicas) & (devices <= most[states])
        states, replicas, devices = states[fits], replicas[fits], devices[fits]
        scale = self.most_devices + 1
        order = np.argsort((states * (self.most_replicas + 1) + replicas) * scale + devices)
        states, devices = states[order], devices[order]
        # Devices count down from state to state, so that the running minimum starts anew in each.
        stairs = devices - states * scale
        least = np.minimum.accumulate(stairs)
        kept = np.concatenate(([True], least[1:] < least[:-1]))[: len(order)]
        origin = np.stack([chosen[fits], behind[fits]])[:, order]
        rows = np.concatenate([[replicas[order]], [devices], origin])
        points.add(states[kept], rows[:, kept])


def _runs(values: Array) -> list[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    if not len(values):
        return []
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return list(itertools.pairwise(bounds))
