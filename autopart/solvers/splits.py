"""Splits of a dnn-partitioning instance: contiguous ones to optimality, others by search, with bounds.

Contiguous. Blocks without latency are absorbed first (solvers/absorb.py), which is exact unless memory
binds. Where it does, the relaxed problem gives a lower bound and perhaps a split that fits; the
packed one gives a split; only where these differ is the full problem searched, below that split.

Not contiguous. The contiguous optimum is the start of a search without order (solvers/local_search.py);
three bounds hold for every split (solvers/load_bounds.py).
"""

import math
import time
from typing import NamedTuple

import numpy as np

from autopart.errors import AutopartError, InfeasibleError
from autopart.loads.blocks import CLIPPED, TOO_MUCH, BlockLoads, Blocks, Ints, blocks_of
from autopart.loads.dnn_partitioning import Instance, Stage, check_split, size_of
from autopart.solvers import local_search, max_load
from autopart.solvers.absorb import Absorbed, Mode, absorb
from autopart.solvers.load_bounds import counting_bound, cut_bound, packing_bound
from autopart.solvers.max_load import Outcome, minimise

TOLERANCE = 1e-9
"""Relative difference below which two loads that were added up in different ways are equal."""

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
    start = _Contiguous(instance, began + CONTIGUOUS_SHARE * time_limit).solve()
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
        self.best: Answer | None = None
        self.lower = 0.0
        self.proof = ""

    def solve(self) -> Answer:
        exact = absorb(self.whole, self.instance.size_limit, "exact")
        relaxed = absorb(self.whole, self.instance.size_limit, "relaxed")
        if len(relaxed.left) < len(exact.left):
            self._search(relaxed, "relaxed", 0.4)
            if not self._closed():
                packed = absorb(self.whole, self.instance.size_limit, "packed")
                self._search(packed, "packed", 0.4)
        if not self._closed():
            self._search(exact, "exact", 1.0)
        if self.best is None:
            raise self._failure()
        lower = self.best.objective if self._closed() else self.lower
        return self.best._replace(lower_bound=lower, proof=self.proof)

    def _closed(self) -> bool:
        return self.best is not None and self.lower >= self.best.objective * (1 - TOLERANCE)

    def _search(self, absorbed: Absorbed, mode: Mode, share: float) -> None:
        now = time.perf_counter()
        deadline = now + share * (self.deadline - now)
        blocks = absorbed.blocks
        most = math.fsum((*blocks.work, *blocks.cpu_work, *(link.cost for link in blocks.links)))
        for span in (None, most):
            loads = BlockLoads(blocks, self.instance.size_limit, span)
            outcome = self._minimise(loads, mode, deadline)
            if outcome.best is not None and outcome.best.largest < CLIPPED:
                break
            if not outcome.closed or (mode == "exact" and self.best is not None):
                break
        if outcome.best is not None and not loads.is_fine_for(loads.time(outcome.best.largest)):
            closer = BlockLoads(
                blocks, self.instance.size_limit, loads.time(2 * outcome.best.largest)
            )
            again = self._minimise(closer, mode, deadline)
            if again.best is not None:
                loads, outcome = closer, again
        if outcome.best is not None:
            self._offer(self._stages(absorbed, outcome))
        if mode != "packed":
            self._raise_bound(loads, outcome)

    def _minimise(self, loads: BlockLoads, mode: Mode, deadline: float) -> Outcome:
        upper = TOO_MUCH - 1
        if self.best is not None and mode == "exact":
            upper = min(upper, loads.quanta(self.best.objective))
        accelerators, cpus = self.instance.num_accelerators, self.instance.num_cpus
        return minimise(loads, accelerators, cpus, upper, deadline)

    def _stages(self, absorbed: Absorbed, outcome: Outcome) -> tuple[Stage, ...]:
        assert outcome.best is not None
        anywhere = max_load.Stage(on_cpu=self.instance.num_cpus > 0, blocks=())
        stages = outcome.best.stages or (anywhere,)  # none where all blocks were absorbed
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
        if outcome.closed and outcome.best is None:
            if self.best is None:
                raise self._infeasible()
            lower = self.best.objective
        else:
            lower = loads.time(outcome.lower)
        proof = _proof(outcome)
        if not outcome.closed:
            upper = TOO_MUCH if outcome.best is None else outcome.best.largest
            accelerators, cpus = self.instance.num_accelerators, self.instance.num_cpus
            simple, why = _bound(loads, accelerators, cpus, upper)
            if loads.time(simple) > lower:
                lower, proof = loads.time(simple), why
        if lower > self.lower or not self.proof:
            self.lower, self.proof = lower, proof

    def _infeasible(self) -> InfeasibleError:
        instance = self.instance
        whole = self.whole
        by_size = Blocks(
            members=whole.members,
            work=whole.sizes,
            cpu_work=whole.cpu_work,
            sizes=(0.0,) * len(whole.sizes),
            on_accelerator=whole.on_accelerator,
            before=whole.before,
            links=(),
        )
        loads = BlockLoads(by_size, 1.0)
        found = minimise(loads, instance.num_accelerators, 0, TOO_MUCH - 1, self.deadline)
        assert found.best is not None, "without a limit every cut of an order fits"
        least = math.ceil(loads.time(found.best.largest))
        return InfeasibleError(
            f"no contiguous split fits: {instance.num_accelerators} accelerators hold "
            f"{instance.size_limit:.0f} bytes each, {'the least that would do is' if found.closed else 'enough would be'} "
            f"{least} bytes; take that, more accelerators, or a CPU"
        )

    def _failure(self) -> AutopartError:
        return AutopartError(
            "no split was found that fits into memory, and none was ruled out, within the time "
            "limit; allow more time, more memory or a CPU"
        )


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
