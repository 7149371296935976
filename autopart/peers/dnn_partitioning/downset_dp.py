"""Exact dynamic program over the downsets of a partial order, for two kinds of device.

Symbols   D ⊂ D'     downsets; a stage is the difference D' - D
          a(D, D')   charge for the stage on the first kind of device;  b(D, D')  on the second
          K, M       devices in the first and second kind
          tau        a threshold; every charge must lie below it
          n_m(D)     the caller's lower bound: first-kind devices for all elements outside D, with M - m
                     devices in the second kind and every charge below tau

The smallest largest charge for K and M devices comes from its dual, the fewest devices for a
threshold. F(m, D) is the fewest first-kind devices for D, together with at most m in the second
kind, every charge below tau. On a tie the smallest largest charge wins:

    F(m, ∅)  = 0
    F(m, D') = min { F(m, D) + 1  if a(D, D') < tau,   F(m - 1, D)  if b(D, D') < tau :  D ⊊ D' }

A division below tau exists exactly if F(M, V) <= K. Each division is built up stage by stage. Fewer
devices for the stages ahead never hurt the stages behind. The caller lowers tau to each value
found, until none is found: that last, empty search is the proof that no division is better.

Two ideas make it fast. A label with F(m, D) + n_m(D) > K leads nowhere and is dropped. So the only
pairs D ⊂ D' looked at have labels that can still end within K devices. And rows
ascend by a weight that grows with a stage's charge. So all D' for one D are a short range of rows.
O(pairs in range) time, O(M · downsets) memory. Derivation and proof: docs/solvers.md.
"""

import time
from typing import NamedTuple, Protocol

import numpy as np

from autopart.downsets import Bits
from autopart.errors import AutopartError
from autopart.peers.dnn_partitioning.block_charges import Flags, Ints
from autopart.peers.dnn_partitioning.downset_charges import ChargesFrom
from autopart.peers.dnn_partitioning.downset_rows import DownsetRows, undominated
from autopart.peers.dnn_partitioning.downset_table import Floats

BLOCK = 128
"""Most sources that are extended at a time."""

TILE = 1_024
"""Most targets that they are extended to at a time."""

MANY = 2_000
"""Sources from which on it pays to look for those that others beat."""


class TimeIsUp(AutopartError):
    """The search did not end before its deadline."""


class StageCharges(Protocol):
    """Charges for the stages between rows, on one kind of device."""

    def towards(self, targets: Ints) -> ChargesFrom:
        """Charges for the stages that end at these rows."""
        ...


class DeviceKind(NamedTuple):
    """Devices in one kind."""

    devices: int
    """Number of devices."""
    charges: StageCharges
    """Charges for stages on such a device."""
    reach: int
    """A stage with a weight above this has a charge that is no longer below tau."""
    more: Floats | None = None
    """By row: the least charge by which a stage that ends here could hold one more heavy element.

    The longer stage ends at another downset that may end a stage; infinite where there is none.
    Rows that can be passed like this are not worth a label. None: not known, or some downsets are
    no rows.
    """
    excess: Floats | None = None
    """By row: a stage's charge is at most its weight plus the excess at both its rows."""


class RowStage(NamedTuple):
    """The stage between two rows, on a device in the first or second kind."""

    second: bool
    source: int
    target: int


def fewest_devices(
    rows: DownsetRows, first: DeviceKind, second: DeviceKind, tau: int, deadline: float
) -> tuple[RowStage, ...] | None:
    """Stages below `tau` on the fewest first-kind devices; None where there are none.

    `deadline` is a reading from `time.perf_counter()`; TimeIsUp is raised when it has passed.
    """
    search = _LabelSearch(rows, first, second, tau, deadline)
    # Labels are extended in ascending order of devices, so that each label is final when its turn
    # comes.
    for used in range(first.devices + 1):
        for m in range(second.devices + 1):
            search.extend(m, used)
        if search.done():
            break
    return search.stages()


class _LabelSearch:
    """F(m, D), level by level.

    When labels with some m and first-kind devices are extended, everything that could improve them
    is done.
    """

    def __init__(
        self, rows: DownsetRows, first: DeviceKind, second: DeviceKind, tau: int, deadline: float
    ) -> None:
        self.rows, self.first, self.second, self.tau = rows, first, second, tau
        self.deadline = deadline
        self.without = ~rows.bits
        shape = (second.devices + 1, len(rows.weight))
        self.used = np.full(shape, first.devices + 1, dtype=np.int32)
        self.worst = np.full(shape, np.inf)
        self.parents = np.zeros(shape, dtype=np.int32)
        self.by_second = np.zeros(shape, dtype=bool)
        self.used[0, 0], self.worst[0, 0] = 0, 0.0

    def extend(self, m: int, used: int) -> None:
        """Lengthen all labels with m second-kind and `used` first-kind devices by a stage."""
        rows, room = self.rows, self.first.devices - used
        # Step 1: the labels that can still end within all devices.
        alive = (self.used[m] == used) & (rows.needs[m] <= room)
        # Step 2: drop labels that fewer second-kind devices reach as well.
        for fewer in range(m):
            beaten = (self.used[fewer] < used) | (
                (self.used[fewer] == used) & (self.worst[fewer] <= self.worst[m])
            )
            alive &= ~beaten
        sources = np.flatnonzero(alive[:-1])
        # Step 3: drop sources that a row with a heavy element more beats.
        if len(sources) > MANY:
            known = np.flatnonzero((self.used[: m + 1] <= used).any(axis=0))
            sources = undominated(rows, sources, known)
        if not len(sources):
            return
        # Step 4: one more stage, on either kind.
        if m < self.second.devices:
            open_rows = (self.used[m + 1] >= used) & (rows.needs[m + 1] <= room)
            self._stages(sources, open_rows, self.second, (m, m + 1, used))
        if room:
            open_rows = (self.used[m] > used) & (rows.needs[m] < room)
            self._stages(sources, open_rows, self.first, (m, m, used + 1))

    def _stages(
        self, sources: Ints, open_rows: Flags, kind: DeviceKind, step: tuple[int, int, int]
    ) -> None:
        """All stages on one kind from the sources to open rows.

        `step` has m before and after, and the first-kind devices after.
        """
        weight = self.rows.weight
        targets = np.flatnonzero(open_rows)
        charges_from = kind.charges.towards(targets)
        without, reached = self.without[:, targets], weight[targets]
        # Rows ascend by weight: the targets for a source are one range.
        begins = np.searchsorted(targets, sources, side="right")
        ends = np.searchsorted(reached, weight[sources] + kind.reach, side="right")
        more = None if kind.more is None else kind.more[targets]
        least, most = self._worthwhile(sources, targets, kind)
        for at in range(0, len(sources), BLOCK):
            block = sources[at : at + BLOCK]
            last = int(ends[min(at + BLOCK, len(sources)) - 1])
            for begin in range(int(begins[at]), last, TILE):
                if time.perf_counter() > self.deadline:
                    raise TimeIsUp("the search over downsets did not end in time")
                # Step 1: drop targets that are passed anyway, or that include no source in the
                # block.
                tile = np.arange(begin, min(begin + TILE, last))
                tile = tile[most[tile] >= least[at : at + BLOCK].min()]
                inside = self._includes(block, without[:, tile])
                useful = inside.any(axis=0)
                tile, inside = tile[useful], inside[:, useful]
                if len(tile):
                    # Step 2: charges, infinite where the target does not include the source.
                    charges = charges_from(block, tile)
                    charges[~inside | (targets[tile] == block[:, None])] = np.inf
                    # Step 3: a stage that could take one more heavy element is not worth a label.
                    if more is not None:
                        charges[charges + more[tile] < self.tau] = np.inf
                    self._put(block, targets[tile], charges, kind is self.second, step)

    def _worthwhile(self, sources: Ints, targets: Ints, kind: DeviceKind) -> tuple[Floats, Floats]:
        """A number for each source and target: a target below the source's number is always passed."""
        if kind.more is None or kind.excess is None:
            return np.zeros(len(sources)), np.zeros(len(targets))
        weight = self.rows.weight.astype(float)
        least = weight[sources] - kind.excess[sources] + self.tau
        return least, weight[targets] + kind.excess[targets] + kind.more[targets]

    def _includes(self, sources: Ints, without: Bits) -> Flags:
        """Whether each target includes each source, at [source, target]."""
        inside = np.ones((len(sources), without.shape[1]), dtype=bool)
        for lacking, bits in zip(without, self.rows.bits[:, sources], strict=True):
            if bits.any() and lacking.any():
                inside &= (lacking & bits[:, None]) == 0
        return inside

    def _put(
        self,
        sources: Ints,
        targets: Ints,
        charges: Floats,
        second: bool,
        step: tuple[int, int, int],
    ) -> None:
        """Keep each target's best label from a block of sources."""
        before, row, used = step
        charges[charges >= self.tau] = np.inf
        worst = np.maximum(charges, self.worst[before, sources][:, None])
        best = worst.argmin(axis=0)
        values = worst[best, np.arange(len(targets))]
        known, now = self.used[row, targets], self.worst[row, targets]
        better = np.isfinite(values) & ((known > used) | ((known == used) & (values < now)))
        where = targets[better]
        self.used[row, where], self.worst[row, where] = used, values[better]
        self.parents[row, where] = sources[best[better]]
        self.by_second[row, where] = second

    def done(self) -> bool:
        """Whether the full row is reached; labels with more devices cannot beat its label."""
        return bool((self.used[:, -1] <= self.first.devices).any())

    def stages(self) -> tuple[RowStage, ...] | None:
        """The stages on the full row's best label."""
        row, end = int(self.used[:, -1].argmin()), len(self.rows.weight) - 1
        if self.used[row, end] > self.first.devices:
            return None
        found: list[RowStage] = []
        while end:
            source, is_second = int(self.parents[row, end]), bool(self.by_second[row, end])
            found.append(RowStage(is_second, source, end))
            row, end = row - is_second, source
        return tuple(reversed(found))
