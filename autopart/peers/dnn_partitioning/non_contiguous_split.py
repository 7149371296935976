"""Splits that need not be contiguous: tabu search from a start, with a bound that holds for every
split."""

import math

import numpy as np

from autopart.errors import AutopartError, InfeasibleError
from autopart.peers.dnn_partitioning import tabu_search
from autopart.peers.dnn_partitioning.answer import SplitAnswer
from autopart.peers.dnn_partitioning.block_charges import BlockCharges, Ints
from autopart.peers.dnn_partitioning.blocks import Blocks, blocks_of
from autopart.peers.dnn_partitioning.bounds import best_bound
from autopart.peers.dnn_partitioning.charges import DeviceStage, DnnInstance, check_split
from autopart.peers.dnn_partitioning.zero_work_blocks import Absorbed, absorb
from autopart.text import counted


def non_contiguous_split(instance: DnnInstance, start: SplitAnswer, deadline: float) -> SplitAnswer:
    """The best split that tabu search finds from `start` (tabu_search.py), and the best bound
    (bounds.py)."""
    whole = blocks_of(instance, contiguous=False)
    blocks = absorb(whole, instance.size_limit, "exact")
    charges = BlockCharges(blocks.blocks, instance.size_limit)
    accelerators, cpus = instance.num_accelerators, instance.num_cpus
    if not blocks.left:
        return start
    home = _devices(blocks.blocks, start.stages, accelerators)
    upper = charges.quanta(start.objective)
    lower, proof = best_bound(charges, accelerators, cpus, upper)
    best = tabu_search.improve(charges, accelerators, cpus, home, lower, deadline)
    stages = _stages_by_device(whole, blocks, best.home, accelerators)
    objective = check_split(instance, stages, contiguous=False)
    if objective >= start.objective:
        stages, objective = start.stages, start.objective
    return SplitAnswer(stages, objective, min(objective, charges.time(lower)), proof)


def any_that_fits(instance: DnnInstance) -> SplitAnswer:
    """Some split without CPUs: largest groups first, each to the fullest accelerator that still
    takes it.

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
                    f"no split fits: {counted(len(room), 'accelerator')} with {instance.size_limit:.0f} bytes "
                    f"each, at least {math.ceil(least)} are needed; take more, or a CPU"
                )
            raise AutopartError(
                "no split was found that fits into memory, and none was ruled out; allow more "
                "memory or a CPU"
            )
        device = min(fitting, key=room.__getitem__)
        room[device] -= size
        nodes[device] += whole.members[block]
    stages = tuple(DeviceStage("accelerator", tuple(sorted(row))) for row in nodes if row)
    return SplitAnswer(stages, check_split(instance, stages, contiguous=False), 0.0, "")


def _devices(blocks: Blocks, stages: tuple[DeviceStage, ...], num_accelerators: int) -> Ints:
    """The device for each block in a split: accelerators first, then CPUs."""
    counts = {"accelerator": 0, "cpu": num_accelerators}
    device: dict[int, int] = {}
    for stage in stages:
        device |= dict.fromkeys(stage.nodes, counts[stage.kind])
        counts[stage.kind] += 1
    return np.array([device[members[0]] for members in blocks.members], dtype=np.int64)


def _stages_by_device(
    whole: Blocks, absorbed: Absorbed, home: Ints, num_accelerators: int
) -> tuple[DeviceStage, ...]:
    """The split as stages, one per device that holds something."""
    nodes: dict[int, list[int]] = {}
    for block, device in enumerate(absorbed.stages_of_all(home.tolist())):
        nodes.setdefault(device, []).extend(whole.members[block])
    return tuple(
        DeviceStage(
            "accelerator" if device < num_accelerators else "cpu", tuple(sorted(nodes[device]))
        )
        for device in sorted(nodes)
    )
