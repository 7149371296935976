"""Searches over all downsets of blocks, or over those near a division's stage ends."""

import time

import numpy as np

from autopart.downsets import Bits, enumerate_downsets
from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Flags
from autopart.peers.dnn_partitioning.blocks import BlockStage, Division
from autopart.peers.dnn_partitioning.device_needs import DeviceNeeds, device_needs
from autopart.peers.dnn_partitioning.downset_charges import AcceleratorCharges, CpuCharges
from autopart.peers.dnn_partitioning.downset_dp import (
    MANY,
    DeviceKind,
    RowStage,
    TimeIsUp,
    fewest_devices,
)
from autopart.peers.dnn_partitioning.downset_neighbourhood import downsets_near
from autopart.peers.dnn_partitioning.downset_rows import DownsetRows, least_more
from autopart.peers.dnn_partitioning.downset_table import (
    BlockSums,
    DownsetTable,
    bytes_of,
    chosen,
    counts,
    flags_of,
    joined,
    sorted_by_work,
    split_costs,
    sums,
)

FLAGS = 1 << 21
"""Blocks times downsets per array operation while downsets are listed."""

TABLE_BYTES = 1 << 27
"""Most memory for the downsets that are kept."""


class DownsetSearch:
    """Lists the downsets that may end a stage below a threshold, and looks for a division among
    them."""

    def __init__(
        self, charges: BlockCharges, num_accelerators: int, num_cpus: int, deadline: float
    ) -> None:
        self.charges, self.blocks = charges, charges.blocks
        self.num_accelerators, self.num_cpus = num_accelerators, num_cpus
        self.deadline = deadline
        self.enumerated = 0

    def listed(self, tau: int, lower: int, most: int | None = None) -> tuple[int, DownsetTable]:
        """The downsets that may end a stage below a threshold: `tau`, or less where memory is
        short.

        With more than `most` downsets the threshold is the lower bound `lower`, and the table is
        partial. Raises TimeIsUp.
        """
        blocks, kept, room = self.blocks, list[DownsetTable](), TABLE_BYTES
        bounds = self._needs(tau)
        self.enumerated = 0
        for rows in enumerate_downsets(blocks.before, max(1, FLAGS // len(blocks.work))):
            if time.perf_counter() > self.deadline:
                raise TimeIsUp("the downsets could not be enumerated in time")
            self.enumerated += len(rows)
            kept.append(_inside(self.charges, rows, bounds))
            if most is not None and self.enumerated > most:
                return lower, joined(kept)
            # Above the memory limit, a lower threshold keeps fewer downsets.
            while sum(map(bytes_of, kept)) > room and tau > lower + 1:
                tau = (lower + tau) // 2
                bounds = self._needs(tau)
                kept = [chosen(t, bounds.inside(t.sums, t.split)) for t in kept]
        return tau, sorted_by_work(joined(kept))

    def near(self, ends: Flags, count: int, tau: int) -> DownsetTable:
        """The downsets around `ends` that may end a stage below `tau`, about `count` per end."""
        rows = downsets_near(self.blocks.before, ends, count)
        return sorted_by_work(_inside(self.charges, rows, self._needs(tau)))

    def pairs(self, table: DownsetTable, upper: int) -> float:
        """The number of pairs of downsets that a search below `upper` looks at, about."""
        weight = table.sums.work
        ends = np.searchsorted(weight, weight + upper, side="right")
        return float((ends - np.arange(len(weight))).sum()) * (self.num_cpus + 1)

    def best_below(
        self, table: DownsetTable, tau: int, deadline: float, *, whole: bool = True
    ) -> Division | None:
        """The division on the fewest accelerators below `tau`, or None; raises TimeIsUp.

        `whole` means that the table has every downset that may end a stage below `tau`.
        """
        # Step 1: keep the downsets that leave both sides enough devices.
        bounds = self._needs(tau)
        table = chosen(table, bounds.inside(table.sums, table.split))
        size = len(self.blocks.work)
        if not len(table.split) or table.sums.blocks[0] or table.sums.blocks[-1] < size:
            return None
        on_accelerator, on_cpu = AcceleratorCharges(self.charges, table), CpuCharges(table)
        # Step 2: search for the fewest devices.
        rows = DownsetRows(
            bits=table.bits,
            weight=table.sums.work,
            needs=bounds.needs(table.sums, table.split),
            before=self.blocks.before,
            heavy=self.charges.heavy,
        )
        first = DeviceKind(self.num_accelerators, on_accelerator, tau - 1)
        second = DeviceKind(self.num_cpus, on_cpu, bounds.relief[min(1, self.num_cpus)])
        if whole and len(rows.weight) > MANY:
            first, second = self._with_more(rows, first, second, table)
        stages = fewest_devices(rows, first, second, tau, deadline)
        if stages is None:
            return None
        # Step 3: turn rows into blocks.
        kinds = (on_accelerator, on_cpu)
        largest = max(_charge(kinds[stage.second], stage) for stage in stages)
        flags = flags_of(table.bits.T, size).astype(bool)
        return Division(
            largest,
            tuple(
                BlockStage(
                    p.second,
                    tuple(np.flatnonzero(flags[:, p.target] & ~flags[:, p.source]).tolist()),
                )
                for p in stages
            ),
        )

    def _with_more(
        self, rows: DownsetRows, first: DeviceKind, second: DeviceKind, table: DownsetTable
    ) -> tuple[DeviceKind, DeviceKind]:
        """Both kinds with the least charge for one more heavy block after each row."""
        charges = self.charges
        cpu = least_more(rows, charges.heavy, charges.cpu_work)
        if charges.binding:
            return first, second._replace(more=cpu)
        accelerator = least_more(rows, charges.heavy & (charges.barred == 0), charges.alone)
        return first._replace(more=accelerator, excess=table.split), second._replace(more=cpu)

    def _needs(self, tau: int) -> DeviceNeeds:
        """The least devices for downsets below `tau`."""
        return device_needs(self.charges, self.num_accelerators, self.num_cpus, tau)


def _inside(charges: BlockCharges, rows: Bits, bounds: DeviceNeeds) -> DownsetTable:
    """The rows of bits that may end a stage."""
    flags = flags_of(rows, len(charges.work))
    totals = sums(charges, flags)
    # The cheap test first: counts and split links are only computed for rows that pass it.
    near = np.flatnonzero(bounds.inside(totals, 0.0))
    in_links = counts(charges, flags[:, near])
    table = DownsetTable(
        bits=rows[near].T,
        sums=BlockSums(*(column[near] for column in totals)),
        counts=in_links,
        split=split_costs(charges, in_links),
    )
    return chosen(table, bounds.inside(table.sums, table.split))


def _charge(charges: AcceleratorCharges | CpuCharges, stage: RowStage) -> int:
    """The charge for one stage."""
    target, source = np.array([stage.target]), np.array([stage.source])
    return int(charges.towards(target)(source, np.zeros(1, dtype=np.int64))[0, 0])
