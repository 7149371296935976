"""Tabu search over divisions that need not be contiguous: one block moves at a time.

Symbols   charge(d), size(d)   on device d;  L  bytes per accelerator
          T                    a target below the best largest charge so far

Each step makes the best move of a block to another device, even a bad one. Blocks that have just
moved stay. The best move lowers

    sum over devices of max(0, charge(d) - T)²

most. A move changes the charges on its two devices only. A link with blocks on a third device is
split there before and after. All moves are priced at once: each price is a sum over the block's
links. A move to an accelerator that is full, or that cannot run the block, is left out.

With T = 0 charges become even. With T just below the best largest charge the last bit is gained. A
round does one after the other. It starts with some blocks in the best division moved at random.
Every other round joins blocks that share expensive links instead (coarsen.py), which moves whole
regions at a time. This proves nothing; lower bounds come from bounds.py.
"""

import itertools
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Ints
from autopart.peers.dnn_partitioning.coarsen import coarsen

TARGETS = (0.0, 0.999)
"""T as shares of the best largest charge, in turn; except for 0, at least the lower bound."""

PATIENCE = 300
"""Steps without success before T changes."""

KICK = (0.05, 0.3)
"""Smallest and largest share of blocks that a new start moves at random."""

FRUITLESS = 100
"""Rounds without success after which the search ends."""

TENURE = (3, 0.15)
"""Steps for which a moved block stays, and a share of the blocks as further steps at random."""

LOOKS = 32
"""Steps between two looks at the clock."""

Amounts = npt.NDArray[np.float64]
"""Charges, in quanta."""


class Devices(NamedTuple):
    """A division by device: accelerators 0 … K - 1, then the CPUs."""

    home: Ints
    """The device for each block."""
    largest: int
    """The largest charge, in quanta."""


def improve(
    charges: BlockCharges,
    num_accelerators: int,
    num_cpus: int,
    start: Ints,
    lower: int,
    deadline: float,
) -> Devices:
    """The best division found from `start` on, until `deadline`; `start` must be allowed."""
    rng = np.random.default_rng(0)
    search = _Tabu(charges, num_accelerators, num_cpus, start, rng)
    rounds, since = 0, 0
    while True:
        largest = search.best.largest
        # Step 1: descend with each target.
        for share in TARGETS:
            search.descend(max(lower, int(search.best.largest * share)) if share else 0, deadline)
        since = 0 if search.best.largest < largest else since + 1
        if search.best.largest <= lower or time.perf_counter() >= deadline or since > FRUITLESS:
            return search.best
        # Step 2: a new start, by random moves or by joined blocks.
        if rounds % 2:
            search.kick()
        else:
            search.start_from(_coarse_start(search, deadline))
        rounds += 1


def _coarse_start(search: "_Tabu", deadline: float) -> Ints:
    """A division found with joined blocks, from the best division where this is still allowed."""
    blocks, rng = search.charges.blocks, search.rng
    size, devices = len(blocks.work), search.num_devices
    count = int(rng.integers(2 * devices, max(2 * devices + 2, size // 2)))
    coarse, into = coarsen(blocks, count, sum(blocks.work) / max(1, search.accelerators), rng)
    home = np.zeros(len(coarse.work), dtype=np.int64)
    home[into] = search.best.home
    charges = BlockCharges(coarse, search.charges.limit)
    if not allowed(charges, search.accelerators, home):
        return search.best.home
    inner = _Tabu(charges, search.accelerators, devices - search.accelerators, home, rng)
    inner.kick()
    inner.best = Devices(inner.home.copy(), int(inner.charge.max()))
    inner.descend(0, deadline)
    return inner.best.home[into]


def allowed(charges: BlockCharges, num_accelerators: int, home: Ints) -> bool:
    """Whether no accelerator has too many bytes, or a block that it cannot run."""
    on_one = home < num_accelerators
    sizes = np.zeros(int(home.max(initial=0)) + 1, dtype=np.int64)
    np.add.at(sizes, home[on_one], charges.sizes[on_one])
    return bool((sizes <= charges.size_limit).all() and not (charges.barred[on_one] > 0).any())


class _Tabu:
    """A division with its charges, and the best division so far."""

    def __init__(
        self,
        charges: BlockCharges,
        num_accelerators: int,
        num_cpus: int,
        start: Ints,
        rng: np.random.Generator,
    ) -> None:
        self.charges, self.rng = charges, rng
        self.accelerators = num_accelerators
        self.num_devices = num_accelerators + num_cpus
        links = charges.blocks.links
        self.lengths = np.array([len(link.blocks) for link in links], dtype=np.int64)[:, None]
        pairs = sorted(
            (block, number) for number, link in enumerate(links) for block in link.blocks
        )
        self.block_of = np.array([block for block, _ in pairs], dtype=np.int64)
        self.link_of = np.array([number for _, number in pairs], dtype=np.int64)
        self.linked, self.first = np.unique(self.block_of, return_index=True)
        bounds = np.searchsorted(self.block_of, np.arange(len(charges.work) + 1))
        self.links_of = [self.link_of[i:j] for i, j in itertools.pairwise(bounds.tolist())]
        self.costs = charges.costs.astype(float)[:, None]
        self.work = np.where(charges.barred > 0, np.inf, charges.work.astype(float))
        self.cpu_work = charges.cpu_work.astype(float)
        self._settle(start)
        self.best = Devices(start.copy(), int(self.charge.max()))

    def _settle(self, home: Ints) -> None:
        """Count everything anew for a division."""
        self.home = home.copy()
        self.on_device = np.zeros((len(self.lengths), self.num_devices))
        np.add.at(self.on_device, (self.link_of, home[self.block_of]), 1.0)
        accelerator = np.arange(self.num_devices) < self.accelerators
        split = (self.on_device > 0) & (self.on_device < self.lengths)
        own = np.where(accelerator[home], self.work, self.cpu_work)
        self.charge = np.bincount(home, own, self.num_devices)
        self.charge += (split * self.costs).sum(axis=0) * accelerator
        self.size = np.zeros(self.num_devices, dtype=np.int64)
        np.add.at(self.size, home, self.charges.sizes)

    def descend(self, target: int, deadline: float) -> None:
        """Step until the target is met, or patience or time is at an end."""
        until = np.zeros(len(self.home), dtype=np.int64)
        lowest, waited, step = np.inf, 0, 0
        while waited < PATIENCE:
            step, waited = step + 1, waited + 1
            if step % LOOKS == 0 and time.perf_counter() > deadline:
                return
            # Step 1: price all moves, without blocks that must stay.
            leaves, enters = self._prices()
            gains = self._gains(leaves, enters, target)
            gains[until > step] = np.inf
            block, device = np.unravel_index(int(gains.argmin()), gains.shape)
            if not np.isfinite(gains[block, device]):
                continue
            # Step 2: make the best move, and let the block stay for a while.
            self._move(int(block), int(device), leaves[block], enters[block, device])
            until[block] = step + TENURE[0] + self.rng.integers(max(2, int(len(until) * TENURE[1])))
            # Step 3: a new best division, or a new lowest sum, renews patience.
            if self._remember():
                waited = 0
            over = float((np.maximum(self.charge - target, 0.0) ** 2).sum())
            if over < lowest:
                lowest, waited = over, 0
            if not over:
                return

    def _prices(self) -> tuple[Amounts, Amounts]:
        """Each block's change to its own device's charge when it leaves, and to each other's when
        it enters."""
        on_device, lengths = self.on_device, self.lengths
        # A link stops being split, or starts, depending on its blocks on the device.
        if_left = ((on_device > 1).astype(float) - (on_device < lengths)) * self.costs
        if_come = ((on_device + 1 < lengths).astype(float) - (on_device > 0)) * self.costs
        size = len(self.home)
        leaves, enters = np.zeros(size), np.zeros((size, self.num_devices))
        at = self.home[self.block_of]
        if len(self.first):
            leaves[self.linked] = np.add.reduceat(if_left[self.link_of, at], self.first)
            enters[self.linked] = np.add.reduceat(if_come[self.link_of], self.first, axis=0)
        on_cpu = self.home >= self.accelerators
        leaves = np.where(on_cpu, -self.cpu_work, leaves - np.where(on_cpu, 0.0, self.work))
        enters[:, : self.accelerators] += self.work[:, None]
        enters[:, self.accelerators :] = self.cpu_work[:, None]
        return leaves, enters

    def _gains(self, leaves: Amounts, enters: Amounts, target: int) -> Amounts:
        """The change to the sum of squares for each move, at [block, device]; infinite where not
        allowed."""
        over = np.maximum(self.charge - target, 0.0) ** 2
        before = over[self.home][:, None] + over
        left = np.maximum(self.charge[self.home] + leaves - target, 0.0) ** 2
        come = np.maximum(self.charge + enters - target, 0.0) ** 2
        gains = left[:, None] + come - before
        gains[np.arange(len(self.home)), self.home] = np.inf
        if self.charges.binding:
            room = self.charges.size_limit - self.size[: self.accelerators]
            gains[:, : self.accelerators][self.charges.sizes[:, None] > room] = np.inf
        return gains

    def _move(self, block: int, device: int, leaves: float, enters: float) -> None:
        """Move a block, and update charges, links and sizes."""
        old = int(self.home[block])
        self.home[block] = device
        self.charge[old] += leaves
        self.charge[device] += enters
        self.on_device[self.links_of[block], old] -= 1
        self.on_device[self.links_of[block], device] += 1
        self.size[old] -= self.charges.sizes[block]
        self.size[device] += self.charges.sizes[block]

    def start_from(self, home: Ints) -> None:
        """Go on from another division, which may be the best one."""
        self._settle(home)
        self._remember()

    def kick(self) -> None:
        """Go on from the best division with some blocks elsewhere."""
        self._settle(self.best.home)
        share = self.rng.uniform(*KICK)
        count = max(1, int(len(self.home) * share))
        for block in self.rng.permutation(len(self.home))[:count].tolist():
            leaves, enters = self._prices()
            possible = np.flatnonzero(np.isfinite(self._gains(leaves, enters, 0)[block]))
            if len(possible):
                device = int(self.rng.choice(possible))
                self._move(block, device, float(leaves[block]), float(enters[block, device]))

    def _remember(self) -> bool:
        """Keep the division if it is the best one so far."""
        largest = int(self.charge.max())
        if largest >= self.best.largest:
            return False
        self.best = Devices(self.home.copy(), largest)
        return True
