"""Tabu search over divisions that need not be contiguous: one block moves at a time.

Symbols   load(d), size(d)   of device d;  L  the size that an accelerator holds
          T                  a target below the best largest load so far

Each step makes the best move of a block to another device, also a bad one, but moves no block that has
just moved; best is what lowers

    sum over devices of max(0, load(d) - T)²

most. A move changes the loads of its two devices only: a link that some third device holds a part of
is split there before and after. All moves are priced at once: what a block takes from its device and
gives to another is a sum over its links. Moves to an accelerator that is full, or that cannot run the
block, are left out.

With T = 0 loads become even, with T just below the best largest load the last bit is gained; a round
does one after the other. It starts with some blocks of the best division moved at random or, every
other time, with blocks that share expensive links joined (solvers/max_load/coarsen.py), which moves whole
regions at a time. It proves nothing; lower bounds come from solvers/max_load/bounds.py.
"""

import itertools
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.loads.blocks import BlockLoads, Ints
from autopart.solvers.max_load.coarsen import coarsen

TARGETS = (0.0, 0.999)
"""T as shares of the best largest load, taken in turn, no lower than the lower bound but for 0."""

PATIENCE = 300
"""Steps without success before T changes."""

KICK = (0.05, 0.3)
"""Between these shares of the blocks are moved at random for a new start."""

FRUITLESS = 100
"""Rounds without success after which the search ends."""

TENURE = (3, 0.15)
"""A moved block stays for this many steps, and at random for up to this share of the blocks more."""

LOOKS = 32
"""Steps between two looks at the clock."""

Amounts = npt.NDArray[np.float64]


class Devices(NamedTuple):
    """A division by device: accelerators 0 … K - 1, then the CPUs."""

    home: Ints
    """The device of each block."""
    largest: int


def improve(
    loads: BlockLoads,
    num_accelerators: int,
    num_cpus: int,
    start: Ints,
    lower: int,
    deadline: float,
    seed: int = 0,
) -> Devices:
    """The best division that was found from `start` on, which must be allowed, until `deadline`."""
    rng = np.random.default_rng(seed)
    search = _Tabu(loads, num_accelerators, num_cpus, start, rng)
    rounds, since = 0, 0
    while True:
        largest = search.best.largest
        for share in TARGETS:
            search.descend(max(lower, int(search.best.largest * share)) if share else 0, deadline)
        since = 0 if search.best.largest < largest else since + 1
        if search.best.largest <= lower or time.perf_counter() >= deadline or since > FRUITLESS:
            return search.best
        if rounds % 2:
            search.kick()
        else:
            search.start_from(_coarse_start(search, deadline))
        rounds += 1


def _coarse_start(search: "_Tabu", deadline: float) -> Ints:
    """A division found with joined blocks, from the best one where that is still allowed."""
    blocks, rng = search.loads.blocks, search.rng
    size, devices = len(blocks.work), search.num_devices
    count = int(rng.integers(2 * devices, max(2 * devices + 2, size // 2)))
    coarse, into = coarsen(blocks, count, sum(blocks.work) / max(1, search.accelerators), rng)
    home = np.zeros(len(coarse.work), dtype=np.int64)
    home[into] = search.best.home
    loads = BlockLoads(coarse, search.loads.limit)
    if not allowed(loads, search.accelerators, home):
        return search.best.home
    inner = _Tabu(loads, search.accelerators, devices - search.accelerators, home, rng)
    inner.kick()
    inner.best = Devices(inner.home.copy(), int(inner.load.max()))
    inner.descend(0, deadline)
    return inner.best.home[into]


def allowed(loads: BlockLoads, num_accelerators: int, home: Ints) -> bool:
    """Whether no accelerator holds too much, or a block that it cannot run."""
    on_one = home < num_accelerators
    sizes = np.zeros(int(home.max(initial=0)) + 1, dtype=np.int64)
    np.add.at(sizes, home[on_one], loads.sizes[on_one])
    return bool((sizes <= loads.size_limit).all() and not (loads.barred[on_one] > 0).any())


class _Tabu:
    def __init__(
        self,
        loads: BlockLoads,
        num_accelerators: int,
        num_cpus: int,
        start: Ints,
        rng: np.random.Generator,
    ) -> None:
        self.loads, self.rng = loads, rng
        self.accelerators = num_accelerators
        self.num_devices = num_accelerators + num_cpus
        links = loads.blocks.links
        self.lengths = np.array([len(link.blocks) for link in links], dtype=np.int64)[:, None]
        pairs = sorted(
            (block, number) for number, link in enumerate(links) for block in link.blocks
        )
        self.block_of = np.array([block for block, _ in pairs], dtype=np.int64)
        self.link_of = np.array([number for _, number in pairs], dtype=np.int64)
        self.linked, self.first = np.unique(self.block_of, return_index=True)
        bounds = np.searchsorted(self.block_of, np.arange(len(loads.work) + 1))
        self.links_of = [self.link_of[i:j] for i, j in itertools.pairwise(bounds.tolist())]
        self.costs = loads.costs.astype(float)[:, None]
        self.work = np.where(loads.barred > 0, np.inf, loads.work.astype(float))
        self.cpu_work = loads.cpu_work.astype(float)
        self._settle(start)
        self.best = Devices(start.copy(), int(self.load.max()))

    def _settle(self, home: Ints) -> None:
        """Count everything anew for a division."""
        self.home = home.copy()
        self.held = np.zeros((len(self.lengths), self.num_devices))
        np.add.at(self.held, (self.link_of, home[self.block_of]), 1.0)
        accelerator = np.arange(self.num_devices) < self.accelerators
        split = (self.held > 0) & (self.held < self.lengths)
        own = np.where(accelerator[home], self.work, self.cpu_work)
        self.load = np.bincount(home, own, self.num_devices)
        self.load += (split * self.costs).sum(axis=0) * accelerator
        self.size = np.zeros(self.num_devices, dtype=np.int64)
        np.add.at(self.size, home, self.loads.sizes)

    def descend(self, target: int, deadline: float) -> None:
        """Step until the target is reached and missed again, or patience or time is at an end."""
        until = np.zeros(len(self.home), dtype=np.int64)
        lowest, waited, step = np.inf, 0, 0
        while waited < PATIENCE:
            step, waited = step + 1, waited + 1
            if step % LOOKS == 0 and time.perf_counter() > deadline:
                return
            leaves, enters = self._prices()
            gains = self._gains(leaves, enters, target)
            gains[until > step] = np.inf
            block, device = np.unravel_index(int(gains.argmin()), gains.shape)
            if not np.isfinite(gains[block, device]):
                continue
            self._move(int(block), int(device), leaves[block], enters[block, device])
            until[block] = step + TENURE[0] + self.rng.integers(max(2, int(len(until) * TENURE[1])))
            if self._remember():
                waited = 0
            over = float((np.maximum(self.load - target, 0.0) ** 2).sum())
            if over < lowest:
                lowest, waited = over, 0
            if not over:
                return

    def _prices(self) -> tuple[Amounts, Amounts]:
        """What each block takes from its device, and gives to each device, where it moves."""
        held, lengths = self.held, self.lengths
        if_left = ((held > 1).astype(float) - (held < lengths)) * self.costs
        if_come = ((held + 1 < lengths).astype(float) - (held > 0)) * self.costs
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
        over = np.maximum(self.load - target, 0.0) ** 2
        before = over[self.home][:, None] + over
        left = np.maximum(self.load[self.home] + leaves - target, 0.0) ** 2
        come = np.maximum(self.load + enters - target, 0.0) ** 2
        gains = left[:, None] + come - before
        gains[np.arange(len(self.home)), self.home] = np.inf
        if self.loads.binding:
            room = self.loads.size_limit - self.size[: self.accelerators]
            gains[:, : self.accelerators][self.loads.sizes[:, None] > room] = np.inf
        return gains

    def _move(self, block: int, device: int, leaves: float, enters: float) -> None:
        old = int(self.home[block])
        self.home[block] = device
        self.load[old] += leaves
        self.load[device] += enters
        self.held[self.links_of[block], old] -= 1
        self.held[self.links_of[block], device] += 1
        self.size[old] -= self.loads.sizes[block]
        self.size[device] += self.loads.sizes[block]

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
        largest = int(self.load.max())
        if largest >= self.best.largest:
            return False
        self.best = Devices(self.home.copy(), largest)
        return True
