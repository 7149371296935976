"""Stages on different numbers of devices: the fewest devices for a fixed time, and its bisection.

Symbols   0 … L-1   downsets: the nodes placed so far; 0 is empty, L - 1 holds everything
          o         an option: one stage from downset `start` to downset `end`, on `replicas` replicas
                    with `width` devices each, that takes `time` seconds as long as at most `behind`
                    replicas work in the stages behind it
          K, R      most devices and most replicas over all stages
          tau       a bottleneck: the largest time of a stage

The smallest bottleneck for K devices comes from its dual, the fewest devices for a bottleneck. Two
numbers matter to a stage about the stages behind it: the devices that they leave, and their
replicas, which decide the microbatches in flight. F(tau, x) holds pairs (replicas, devices) with
which all nodes behind downset x can be placed within tau:

    F(tau, L-1) = { (0, 0) }
    F(tau, x)   = Pareto { (r + o.replicas, k + o.devices) :  o.start = x, o.time <= tau,
                           (r, k) in F(tau, o.end), r <= o.behind }

Pairs are kept only if no other pair beats them in both numbers, and r <= R. The known work ahead of x
needs some devices within tau: k is at most K less these.

Dropping a beaten pair is exact. Take any stages that can stand ahead of it. They can stand ahead of
the pair that beats it too: every option asks only for *at most* so many replicas behind it. For the
same reason only one option matters per stage, width and pair (r, k). It has the fewest replicas
among those with time <= tau and behind >= r; all others give more replicas and more devices. One
binary search finds it: options with no more room behind than one with fewer replicas never qualify,
and the rest increase in both.

A plan within tau exists exactly if F(tau, 0) is not empty. This can only change where tau passes
the time of an option. Bisection over these times ends with the optimum and, just below it, the last
infeasible time, which is the certificate. There are O(log |o|) rounds. A round costs one pass over
the options, and O(log |o|) per stage, width and pair. There are at most min(R, K) pairs. With every
width 1 there is only one, since replicas and devices are then the same number.

Derivation and proof: docs/solvers.md.
"""

import itertools
from typing import NamedTuple

import numpy as np

from autopart.peers.piper.charges import Floats, Ints
from autopart.peers.piper.stage_pricer import StageOptions

ROUNDING = 1e-9
"""Error in a quotient, as a share of a device, up to which it does not count as one more."""


class DevicePath(NamedTuple):
    """The stages with the smallest bottleneck."""

    bottleneck: float
    options: tuple[int, ...]
    """Positions in the options, the first stage first."""
    devices: int
    """Devices in all."""
    infeasible: float | None
    """The largest option time below `bottleneck`: no path keeps within it. None where there is no
    such option."""


def solve(
    options: StageOptions, levels: Ints, work: Floats, devices: int, replicas: int
) -> DevicePath | None:
    """The path from the first downset to the last with the smallest largest time, or None.

    It takes at most `devices` devices and `replicas` replicas. `levels` [downset] orders the
    downsets: a stage leads from a lower to a higher level. `work` [downset] are known
    device-seconds for the stages ahead.
    """
    search = _PathSearch(options, levels, work, devices, replicas)
    times = np.unique(options.time)
    best = search.path(times[-1]) if len(times) else None
    if best is None:
        return None
    # Bisection over the distinct times: `low` is infeasible, `high` is feasible.
    low, high = -1, int(np.searchsorted(times, best.bottleneck))
    while high - low > 1:
        middle = (low + high) // 2
        found = search.path(times[middle])
        if found is None:
            low = middle
        else:
            best, high = found, int(np.searchsorted(times, found.bottleneck))
    return best._replace(infeasible=float(times[high - 1]) if high else None)


class _ParetoPairs:
    """Pairs (replicas, devices) for all downsets, each with the option and the pair it came by."""

    def __init__(self, num_downsets: int) -> None:
        self.first = np.zeros(num_downsets, dtype=np.int64)
        self.count = np.zeros(num_downsets, dtype=np.int64)
        self.columns = np.zeros((4, 1024), dtype=np.int64)
        self.columns[2:, 0] = -1
        self.used = 1
        self.first[-1], self.count[-1] = 0, 1

    def add(self, downsets: Ints, rows: Ints) -> None:
        """Append the pairs `rows` (4, p) to `downsets` (p,), which are sorted."""
        while self.used + len(downsets) > self.columns.shape[1]:
            self.columns = np.concatenate([self.columns, np.zeros_like(self.columns)], axis=1)
        self.columns[:, self.used : self.used + len(downsets)] = rows
        which, first, count = np.unique(downsets, return_index=True, return_counts=True)
        self.first[which] = self.used + first
        self.count[which] = count
        self.used += len(downsets)


class _PathSearch:
    """The options in an order in which a round needs no more sorting.

    Stages that start at a higher level come first. Then the order is by stage and width, with
    replicas ascending and room behind descending.
    """

    def __init__(
        self, options: StageOptions, levels: Ints, work: Floats, devices: int, replicas: int
    ) -> None:
        self.most_devices, self.most_replicas = devices, replicas
        self.num_downsets, self.levels, self.work = len(levels), levels, work
        o = options
        behind = np.minimum(o.behind, replicas)
        stage = (o.start - self.num_downsets * levels[o.start]) * self.num_downsets + o.end
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
        """A path with options within `time` on the fewest devices, or None."""
        # Step 1: keep options with more room behind than all options with fewer replicas.
        rows = np.flatnonzero(self.time <= time)
        highest = np.maximum.accumulate(self.key[rows])
        rows = rows[np.concatenate(([True], highest[1:] > highest[:-1]))[: len(rows)]]
        with np.errstate(divide="ignore", invalid="ignore"):
            ahead = np.nan_to_num(np.ceil(self.work / time - ROUNDING))
        # Step 2: compute F for every downset.
        points = self._points(rows, self.most_devices - ahead)
        if not points.count[0]:
            return None
        # Step 3: follow the pair with the fewest devices back to the end.
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

    def _points(self, rows: Ints, most: Floats) -> _ParetoPairs:
        """F for every downset, by levels from the last, on at most `most` [downset] devices.

        `rows` increase in room within a group.
        """
        points = _ParetoPairs(self.num_downsets)
        keys = self.key[rows]
        groups, first = np.unique(self.group[rows], return_index=True)
        starts, ends = self.start[rows[first]], self.end[rows[first]]
        levels = self.levels[starts]
        for begin, stop in _runs(levels):
            part = slice(begin, stop)
            # Step 1: join each stage with all pairs behind its end.
            count = points.count[ends[part]]
            which = np.repeat(np.arange(begin, stop), count)
            if not len(which):
                continue
            behind = np.repeat(points.first[ends[part]] - (count.cumsum() - count), count)
            behind += np.arange(len(which))
            # Step 2: the first option with enough room behind it, by binary search.
            asked = groups[which] * (self.most_replicas + 1) + points.columns[0, behind]
            found = np.searchsorted(keys, asked)
            found[found == len(keys)] = 0
            chosen = rows[found]
            inside = self.group[chosen] == groups[which]
            inside &= keys[found] >= asked
            # Step 3: add the pairs that this makes.
            self._extend(points, most, starts[which[inside]], chosen[inside], behind[inside])
        return points

    def _extend(
        self, points: _ParetoPairs, most: Floats, downsets: Ints, chosen: Ints, behind: Ints
    ) -> None:
        """Add the pairs that options make with the pairs behind them, without beaten ones."""
        replicas = points.columns[0, behind] + self.replicas[chosen]
        devices = points.columns[1, behind] + self.devices[chosen]
        fits = (replicas <= self.most_replicas) & (devices <= most[downsets])
        downsets, replicas, devices = downsets[fits], replicas[fits], devices[fits]
        scale = self.most_devices + 1
        order = np.argsort((downsets * (self.most_replicas + 1) + replicas) * scale + devices)
        downsets, devices = downsets[order], devices[order]
        # Devices count down from downset to downset, so that the running minimum starts anew in
        # each.
        stairs = devices - downsets * scale
        least = np.minimum.accumulate(stairs)
        kept = np.concatenate(([True], least[1:] < least[:-1]))[: len(order)]
        origin = np.stack([chosen[fits], behind[fits]])[:, order]
        rows = np.concatenate([[replicas[order]], [devices], origin])
        points.add(downsets[kept], rows[:, kept])


def _runs(values: Ints) -> list[tuple[int, int]]:
    """Where equal neighbours begin and end."""
    if not len(values):
        return []
    edges = np.flatnonzero(values[1:] != values[:-1]) + 1
    bounds = [0, *edges.tolist(), len(values)]
    return list(itertools.pairwise(bounds))
