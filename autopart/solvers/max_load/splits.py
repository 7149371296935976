"""Splits of a dnn-partitioning instance: contiguous ones to optimality, others by search, with bounds.

Contiguous. Blocks without latency are absorbed first (solvers/max_load/absorb.py), which is exact unless memory
binds. Where it does, the relaxed problem gives a lower bound and perhaps a split that fits; the
packed one gives a split; only where these differ is the full problem searched, below that split.

Not contiguous. The contiguous optimum is the start of a search without order (solvers/max_load/local_search.py);
three bounds hold for every split (solvers/max_load/bounds.py).
"""

import dataclasses
import math
import time
from typing import NamedTuple

import numpy as np

from autopart.errors import AutopartError, InfeasibleError
from autopart.loads.blocks import CLIPPED, TOO_MUCH, BlockLoads, Blocks, Ints, blocks_of
from autopart.loads.dnn_partitioning import Instance, Stage, check_split, size_of
from autopart.solvers.max_load import contiguous, local_search
from autopart.solvers.max_load.absorb import Absorbed, Mode, absorb
from autopart.solvers.max_load.bounds import counting_bound, cut_bound, packing_bound
from autopart.solvers.max_load.contiguous import Division, Outcome, minimise

TOLERANCE = 1e-9
"""Relative difference below which two loads that were added up in different ways are equal."""

NOTHING = Division(TOO_MUCH - 1, ())
"""No division to start from."""

FIT_SHARE = 0.3
"""Of the time, what finding a split that fits at all may take."""

CONTIGUOUS_SHARE = 0.5
"""Of the time for a split that need not be contiguous, what the contiguous start may take."""


class Answer(NamedTuple):
    """A split, and what is known of all others."""

    stages: tuple[Stage, ...]
    """In pipeline order where the split is contiguous; accelerators first otherwise."""
    objective: float
    """The largest load, in the file's unit."""
    lower_bound: float
    """No split has a smaller largest load."""
    proof: str
    """What the lower bound rests on."""


def solve(instance: Instance, *, contiguous: bool = True, time_limit: float = 60.0) -> Answer:
    """The split with the smallest largest load, or the best that `time_limit` seconds allow.

    Raises InfeasibleError where no split fits, and AutopartError where none was found in time.
    """
    began = time.perf_counter()
    _check_devices(instance)
    if contiguous:
        return _Contiguous(instance, began + time_limit).solve()
    try:
        start = _Contiguous(instance, began + CONTIGUOUS_SHARE * time_limit).solve()
    except AutopartError:
        start = _any_that_fits(instance)
    return _without_order(instance, start, began + time_limit)


def _check_devices(instance: Instance) -> None:
    if not instance.num_accelerators and not instance.num_cpus:
        raise InfeasibleError("there are neither accelerators nor CPUs; allow at least one")
    unable = [node.id for node in instance.nodes if not node.on_accelerator]
    if unable and not instance.num_cpus:
        raise InfeasibleError(
            f"node {unable[0]} cannot run on an accelerator ({len(unable)} nodes cannot), "
            "and there are no CPUs; allow one"
        )


class _Contiguous:
    def __init__(self, instance: Instance, deadline: float) -> None:
        self.instance, self.deadline = instance, deadline
        self.whole = blocks_of(instance)
        self.binding = math.fsum(self.whole.sizes) > instance.size_limit
        self.best: Answer | None = None
        self.lower = 0.0
        self.proof = ""

    def solve(self) -> Answer:
        exact = absorb(self.whole, self.instance.size_limit, "exact")
        if self.binding and not self.instance.num_cpus:
            self._fit(exact)
        if self.binding:
            relaxed = absorb(self.whole, self.instance.size_limit, "relaxed")
            if len(relaxed.left) < len(exact.left):
                self._search(relaxed, "relaxed", 0.4)
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
        """Find some split that fits, by the same search over sizes instead of loads."""
        instance, blocks = self.instance, absorbed.blocks
        by_size = dataclasses.replace(
            blocks, work=blocks.sizes, sizes=(0.0,) * len(blocks.sizes), links=()
        )
        loads = BlockLoads(by_size, 1.0)
        enough = math.floor(instance.size_limit * loads.scale)
        deadline = time.perf_counter() + FIT_SHARE * (self.deadline - time.perf_counter())
        found = minimise(loads, instance.num_accelerators, 0, NOTHING, deadline, enough)
        assert found.best is not None, "without a limit every cut of an order fits"
        self._offer(self._stages(absorbed, found.best.stages))
        if self.best is None and found.closed:
            least = math.ceil(loads.time(found.best.largest))
            raise InfeasibleError(
                f"no contiguous split fits: {instance.num_accelerators} accelerators hold "
                f"{instance.size_limit:.0f} bytes each, the least that would do is {least} bytes; "
                "take that, more accelerators, or a CPU"
            )

    def _closed(self) -> bool:
        return self.best is not None and self.lower >= self.best.objective * (1 - TOLERANCE)

    def _search(self, absorbed: Absorbed, mode: Mode, share: float) -> None:
        now = time.perf_counter()
        deadline = now + share * (self.deadline - now)
        blocks = absorbed.blocks
        most = math.fsum((*blocks.work, *blocks.cpu_work, *(link.cost for link in blocks.links)))
        start = self._stages_of_blocks(absorbed) if mode == "exact" else ()
        for span in (None, most):
            loads = BlockLoads(blocks, self.instance.size_limit, span)
            outcome = self._minimise(loads, start, deadline)
            if not outcome.closed or (outcome.best and outcome.best.largest < CLIPPED):
                break
        if outcome.best and not loads.is_fine_for(loads.time(outcome.best.largest)):
            span = loads.time(2 * outcome.best.largest)
            loads = BlockLoads(blocks, self.instance.size_limit, span)
            outcome = self._minimise(loads, outcome.best.stages, deadline)
        if outcome.best:
            self._offer(self._stages(absorbed, outcome.best.stages))
        if mode != "packed":
            self._raise_bound(loads, outcome)

    def _minimise(
        self, loads: BlockLoads, stages: tuple[contiguous.Stage, ...], deadline: float
    ) -> Outcome:
        instance = self.instance
        start = NOTHING
        if stages:
            order = [block for stage in stages for block in stage.blocks]
            ends = np.cumsum([0, *(len(stage.blocks) for stage in stages)])
            on_each = loads.intervals(order, ends)
            largest = max(int(on_each[s.on_cpu][i, i + 1]) for i, s in enumerate(stages))
            start = Division(min(largest, NOTHING.largest), stages)
        return minimise(loads, instance.num_accelerators, instance.num_cpus, start, deadline)

    def _stages_of_blocks(self, absorbed: Absorbed) -> tuple[contiguous.Stage, ...]:
        """The best split in blocks of the search."""
        if self.best is None:
            return ()
        home = {node: at for at, stage in enumerate(self.best.stages) for node in stage.nodes}
        blocks: list[list[int]] = [[] for _ in self.best.stages]
        for block, members in enumerate(absorbed.blocks.members):
            blocks[home[members[0]]].append(block)
        return tuple(
            contiguous.Stage(stage.kind == "cpu", tuple(row))
            for stage, row in zip(self.best.stages, blocks, strict=True)
            if row
        )

    def _stages(self, absorbed: Absorbed, found: tuple[contiguous.Stage, ...]) -> tuple[Stage, ...]:
        """A division's stages in the file's nodes."""
        anywhere = contiguous.Stage(on_cpu=self.instance.num_cpus > 0, blocks=())
        stages = found or (anywhere,)  # none where all blocks were absorbed
        home = [0] * len(absorbed.left)
        for index, stage in enumerate(stages):
            for block in stage.blocks:
                home[block] = index
        nodes: list[list[int]] = [[] for _ in stages]
        for block, index in enumerate(absorbed.stages_of_all(home)):
            nodes[index] += self.whole.members[block]
        return tuple(
            Stage("cpu" if stage.on_cpu else "accelerator", tuple(sorted(row)))
            for stage, row in zip(stages, nodes, strict=True)
        )

    def _offer(self, stages: tuple[Stage, ...]) -> None:
        """Keep a split if it fits and is better; a relaxed one may be too large."""
        limit = self.instance.size_limit
        if any(s.kind == "accelerator" and size_of(self.instance, s) > limit for s in stages):
            return
        objective = check_split(self.instance, stages, contiguous=True)
        if self.best is None or objective < self.best.objective:
            self.best = Answer(stages, objective, 0.0, "")

    def _raise_bound(self, loads: BlockLoads, outcome: Outcome) -> None:
        lower, proof = loads.time(outcome.lower), _proof(outcome)
        if outcome.closed and outcome.best is None:
            raise InfeasibleError(
                f"no contiguous split fits: {self.instance.num_accelerators} accelerators hold "
                f"{self.instance.size_limit:.0f} bytes each; take more of them, or a CPU"
            )
        if not outcome.closed:
            upper = TOO_MUCH if outcome.best is None else outcome.best.largest
            accelerators, cpus = self.instance.num_accelerators, self.instance.num_cpus
            simple, why = _bound(loads, accelerators, cpus, upper)
            if loads.time(simple) > lower:
                lower, proof = loads.time(simple), why
        if lower > self.lower or not self.proof:
            self.lower, self.proof = lower, proof


def _proof(outcome: Outcome) -> str:
    if outcome.closed and outcome.downsets:
        return f"no split below it: all {outcome.downsets} downsets of the blocks were searched"
    if outcome.downsets and outcome.searched:
        return (
            "no split below it: a search over the downsets that may end a stage below it was empty"
        )
    return "counting: all work, shared out evenly over the devices, and the heaviest node"


def _without_order(instance: Instance, start: Answer, deadline: float) -> Answer:
    whole = blocks_of(instance, contiguous=False)
    blocks = absorb(whole, instance.size_limit, "exact")
    loads = BlockLoads(blocks.blocks, instance.size_limit)
    accelerators, cpus = instance.num_accelerators, instance.num_cpus
    if not blocks.left:
        return start
    home = _devices(blocks.blocks, start.stages, accelerators)
    upper = loads.quanta(start.objective)
    lower, proof = _bound(loads, accelerators, cpus, upper)
    best = local_search.improve(loads, accelerators, cpus, home, lower, deadline)
    stages = _stages_by_device(whole, blocks, best.home, accelerators)
    objective = check_split(instance, stages, contiguous=False)
    if objective >= start.objective:
        stages, objective = start.stages, start.objective
    return Answer(stages, objective, min(objective, loads.time(lower)), proof)


def _any_that_fits(instance: Instance) -> Answer:
    """Some split without CPUs: the largest groups first, each to the accelerator it fills best.

    Raises InfeasibleError where none can fit, AutopartError where this one does not.
    """
    whole = blocks_of(instance, contiguous=False)
    room = [instance.size_limit] * instance.num_accelerators
    nodes: list[list[int]] = [[] for _ in room]
    for block in sorted(range(len(whole.sizes)), key=lambda b: -whole.sizes[b]):
        size = whole.sizes[block]
        fitting = [device for device, left in enumerate(room) if size <= left]
        if not fitting:
            total, largest = math.fsum(whole.sizes), max(whole.sizes)
            least = max(largest, total / max(1, len(room)))
            if least > instance.size_limit:
                raise InfeasibleError(
                    f"no split fits: {len(room)} accelerators hold {instance.size_limit:.0f} bytes "
                    f"each, at least {math.ceil(least)} are needed; take more, or a CPU"
                )
            raise AutopartError(
                "no split was found that fits into memory, and none was ruled out; allow more "
                "memory or a CPU"
            )
        device = min(fitting, key=room.__getitem__)
        room[device] -= size
        nodes[device] += whole.members[block]
    stages = tuple(Stage("accelerator", tuple(sorted(row))) for row in nodes if row)
    return Answer(stages, check_split(instance, stages, contiguous=False), 0.0, "")


def _devices(blocks: Blocks, stages: tuple[Stage, ...], num_accelerators: int) -> Ints:
    """The device of each block in a split: accelerators first, then CPUs."""
    counts = {"accelerator": 0, "cpu": num_accelerators}
    device: dict[int, int] = {}
    for stage in stages:
        device |= dict.fromkeys(stage.nodes, counts[stage.kind])
        counts[stage.kind] += 1
    return np.array([device[members[0]] for members in blocks.members], dtype=np.int64)


def _stages_by_device(
    whole: Blocks, absorbed: Absorbed, home: Ints, num_accelerators: int
) -> tuple[Stage, ...]:
    nodes: dict[int, list[int]] = {}
    for block, device in enumerate(absorbed.stages_of_all(home.tolist())):
        nodes.setdefault(device, []).extend(whole.members[block])
    return tuple(
        Stage("accelerator" if device < num_accelerators else "cpu", tuple(sorted(nodes[device])))
        for device in sorted(nodes)
    )


def _bound(loads: BlockLoads, accelerators: int, cpus: int, upper: int) -> tuple[int, str]:
    counted = counting_bound(loads, accelerators, cpus)
    packed = packing_bound(loads, accelerators, cpus, counted, upper)
    cut = cut_bound(loads, cpus, packed)
    if cut > packed:
        return cut, "cut: the lightest accelerator that can hold some heavy node"
    if packed > counted:
        return packed, "packing: the heavy nodes, rounded down, into the devices"
    return counted, "counting: all work, shared out evenly over the devices, and the heaviest node"
