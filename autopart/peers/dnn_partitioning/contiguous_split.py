"""Contiguous splits for an instance, where memory may bind.

Blocks without latency are absorbed first (zero_work_blocks.py), which is exact unless memory binds.
Where it does, the relaxed problem gives a lower bound, and perhaps a split that fits. The packed
problem gives a split. The full problem is searched only where these differ, below that split.
"""

import dataclasses
import math
import time

import numpy as np

from autopart.errors import AutopartError, InfeasibleError
from autopart.peers.dnn_partitioning.answer import SplitAnswer
from autopart.peers.dnn_partitioning.block_charges import CLIPPED, TOO_MUCH, BlockCharges
from autopart.peers.dnn_partitioning.blocks import BlockStage, Division, blocks_of
from autopart.peers.dnn_partitioning.bounds import best_bound
from autopart.peers.dnn_partitioning.charges import DeviceStage, DnnInstance, check_split, size_of
from autopart.peers.dnn_partitioning.contiguous_division import ContiguousOutcome, minimise
from autopart.peers.dnn_partitioning.zero_work_blocks import Absorbed, Mode, absorb
from autopart.text import counted

TOLERANCE = 1e-9
"""Relative difference below which two charges, added up differently, count as equal."""

NOTHING = Division(TOO_MUCH - 1, ())
"""No division to start from."""

FIT_SHARE = 0.3
"""Share of the time for finding any split that fits."""


class ContiguousSplit:
    """The best contiguous split so far, its bound, and the searches that improve both."""

    def __init__(self, instance: DnnInstance, deadline: float) -> None:
        self.instance, self.deadline = instance, deadline
        self.whole = blocks_of(instance)
        self.binding = math.fsum(self.whole.sizes) > instance.size_limit
        self.best: SplitAnswer | None = None
        self.lower = 0.0
        self.proof = ""

    def solve(self) -> SplitAnswer:
        """The best split with its bound; raises InfeasibleError, or AutopartError where time was
        too short."""
        exact = absorb(self.whole, self.instance.size_limit, "exact")
        # Step 1: without CPUs memory may rule out every split, so a split that fits comes first.
        if self.binding and not self.instance.num_cpus:
            self._fit(exact)
        if self.binding:
            # Step 2: the relaxed and the packed problem, where they have fewer blocks.
            relaxed = absorb(self.whole, self.instance.size_limit, "relaxed")
            if len(relaxed.left) < len(exact.left):
                self._search(relaxed, "relaxed", 0.4)
                # Step 3: the full problem.
                if not self._closed():
                    packed = absorb(self.whole, self.instance.size_limit, "packed")
                    self._search(packed, "packed", 0.4)
        if not self._closed():
            self._search(exact, "exact", 1.0)
        if self.best is None:
            raise AutopartError(
                "no split was found that fits into memory, and none was ruled out, within the time "
                "limit; allow more time, more memory or a CPU"
            )
        lower = self.best.objective if self._closed() else self.lower
        return self.best._replace(lower_bound=lower, proof=self.proof)

    def _fit(self, absorbed: Absorbed) -> None:
        """Find some split that fits, by the same search with sizes in place of work."""
        instance, blocks = self.instance, absorbed.blocks
        by_size = dataclasses.replace(
            blocks, work=blocks.sizes, sizes=(0.0,) * len(blocks.sizes), links=()
        )
        charges = BlockCharges(by_size, 1.0)
        enough = math.floor(instance.size_limit * charges.scale)
        deadline = time.perf_counter() + FIT_SHARE * (self.deadline - time.perf_counter())
        found = minimise(charges, instance.num_accelerators, 0, NOTHING, deadline, enough)
        assert found.best is not None, "without a limit every cut of an order fits"
        self._offer(self._stages(absorbed, found.best.stages))
        if self.best is None and found.closed:
            least = math.ceil(charges.time(found.best.largest))
            raise InfeasibleError(
                f"no contiguous split fits: {counted(instance.num_accelerators, 'accelerator')} with "
                f"{instance.size_limit:.0f} bytes each, the least that would do is {counted(least, 'byte')}; "
                "take that, more accelerators, or a CPU"
            )

    def _closed(self) -> bool:
        """Whether the bound meets the best split."""
        return self.best is not None and self.lower >= self.best.objective * (1 - TOLERANCE)

    def _search(self, absorbed: Absorbed, mode: Mode, share: float) -> None:
        """Search one problem, and keep its split and its bound."""
        now = time.perf_counter()
        deadline = now + share * (self.deadline - now)
        blocks = absorbed.blocks
        most = math.fsum((*blocks.work, *blocks.cpu_work, *(link.cost for link in blocks.links)))
        start = self._stages_of_blocks(absorbed) if mode == "exact" else ()
        # Step 1: with the usual span; again with the widest one where some amounts were clipped.
        for span in (None, most):
            charges = BlockCharges(blocks, self.instance.size_limit, span)
            outcome = self._minimise(charges, start, deadline)
            if not outcome.closed or (outcome.best and outcome.best.largest < CLIPPED):
                break
        # Step 2: again with a narrow span, where quanta are too coarse for this optimum.
        if outcome.best and not charges.is_fine_for(charges.time(outcome.best.largest)):
            span = charges.time(2 * outcome.best.largest)
            charges = BlockCharges(blocks, self.instance.size_limit, span)
            outcome = self._minimise(charges, outcome.best.stages, deadline)
        if outcome.best:
            self._offer(self._stages(absorbed, outcome.best.stages))
        if mode != "packed":
            self._raise_bound(charges, outcome)

    def _minimise(
        self, charges: BlockCharges, stages: tuple[BlockStage, ...], deadline: float
    ) -> ContiguousOutcome:
        """Search blocks, from a division with these stages if there are any."""
        instance = self.instance
        start = NOTHING
        if stages:
            order = [block for stage in stages for block in stage.blocks]
            ends = np.cumsum([0, *(len(stage.blocks) for stage in stages)])
            on_each = charges.intervals(order, ends)
            largest = max(int(on_each[s.on_cpu][i, i + 1]) for i, s in enumerate(stages))
            start = Division(min(largest, NOTHING.largest), stages)
        return minimise(charges, instance.num_accelerators, instance.num_cpus, start, deadline)

    def _stages_of_blocks(self, absorbed: Absorbed) -> tuple[BlockStage, ...]:
        """The best split, in the search's blocks."""
        if self.best is None:
            return ()
        home = {node: at for at, stage in enumerate(self.best.stages) for node in stage.nodes}
        blocks: list[list[int]] = [[] for _ in self.best.stages]
        for block, members in enumerate(absorbed.blocks.members):
            blocks[home[members[0]]].append(block)
        return tuple(
            BlockStage(stage.kind == "cpu", tuple(row))
            for stage, row in zip(self.best.stages, blocks, strict=True)
            if row
        )

    def _stages(self, absorbed: Absorbed, found: tuple[BlockStage, ...]) -> tuple[DeviceStage, ...]:
        """A division's stages in the file's nodes."""
        anywhere = BlockStage(on_cpu=self.instance.num_cpus > 0, blocks=())
        stages = found or (anywhere,)  # none where all blocks were absorbed
        home = [0] * len(absorbed.left)
        for index, stage in enumerate(stages):
            for block in stage.blocks:
                home[block] = index
        nodes: list[list[int]] = [[] for _ in stages]
        for block, index in enumerate(absorbed.stages_of_all(home)):
            nodes[index] += self.whole.members[block]
        return tuple(
            DeviceStage("cpu" if stage.on_cpu else "accelerator", tuple(sorted(row)))
            for stage, row in zip(stages, nodes, strict=True)
        )

    def _offer(self, stages: tuple[DeviceStage, ...]) -> None:
        """Keep a split if it fits and is better; a relaxed one may be too large."""
        limit = self.instance.size_limit
        if any(s.kind == "accelerator" and size_of(self.instance, s) > limit for s in stages):
            return
        objective = check_split(self.instance, stages, contiguous=True)
        if self.best is None or objective < self.best.objective:
            self.best = SplitAnswer(stages, objective, 0.0, "")

    def _raise_bound(self, charges: BlockCharges, outcome: ContiguousOutcome) -> None:
        """Keep the larger lower bound; raises InfeasibleError where an empty search shows that
        nothing fits."""
        lower, proof = charges.time(outcome.lower), _proof(outcome)
        if outcome.closed and outcome.best is None:
            raise InfeasibleError(
                f"no contiguous split fits: {counted(self.instance.num_accelerators, 'accelerator')} with "
                f"{self.instance.size_limit:.0f} bytes each; take more of them, or a CPU"
            )
        if not outcome.closed:
            upper = TOO_MUCH if outcome.best is None else outcome.best.largest
            accelerators, cpus = self.instance.num_accelerators, self.instance.num_cpus
            simple, why = best_bound(charges, accelerators, cpus, upper)
            if charges.time(simple) > lower:
                lower, proof = charges.time(simple), why
        if lower > self.lower or not self.proof:
            self.lower, self.proof = lower, proof


def _proof(outcome: ContiguousOutcome) -> str:
    """The basis for an outcome's bound, in words."""
    if outcome.closed and outcome.downsets:
        return f"no split below it: all {outcome.downsets} downsets of the blocks were searched"
    if outcome.downsets and outcome.searched:
        return (
            "no split below it: a search over the downsets that may end a stage below it was empty"
        )
    return "counting: all work, shared out evenly over the devices, and the heaviest node"
