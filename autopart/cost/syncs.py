"""Seconds behind the last backward of a step: gradient syncs and the optimizer's step.

The replicas of a stage sum their gradients by a ring all-reduce and each steps all parameters. With
ZeRO-1 a ring reduce-scatter leaves each of r replicas the sum of its share, it steps that share, and a
ring all-gather hands the new weights to all (Rajbhandari et al., ZeRO, 2020, section 7): the same
2 (r - 1) turns of the ring, of which the second half carries weights in place of gradients.
"""

from collections.abc import Sequence

from autopart.cluster import Link, slowest_link
from autopart.graph import Layer, TiedParameter
from autopart.layouts import Layout
from autopart.plan import Sync
from autopart.problem import Problem
from autopart.stage_load import Number, StageLoad
from autopart.training import WIDTHS, Training, weight_dtype


def all_reduce_time(link: Link, num_bytes: Number, num_ranks: int) -> Number:
    """Seconds of a ring all-reduce: 2 (r - 1) steps of 1/r of the bytes (Patarasuk and Yuan,
    J. Parallel Distrib. Comput. 2009), times what the link's all-reduces were measured to take more."""
    steps = 2 * (num_ranks - 1)
    ring = steps * (link.latency + num_bytes / num_ranks / link.bandwidth)
    return ring * link.all_reduce_factor


def gradient_bytes(load: StageLoad | Layer | TiedParameter, training: Training) -> Number:
    """Bytes of the gradients, in the precision that they are summed in."""
    if training.gradient_dtype == weight_dtype(training):
        return load.grad_bytes
    return load.num_trainable * WIDTHS[training.gradient_dtype]


def synced_bytes(load: StageLoad, training: Training) -> Number:
    """Bytes of an all-reduce that takes as long as the sync of a stage's replicas."""
    summed = gradient_bytes(load, training)
    return (summed + load.grad_bytes) / 2 if training.zero1 else summed


def update_share(training: Training, replicas: int) -> int:
    """Among how many replicas a stage's optimizer step is shared out."""
    return replicas if training.zero1 else 1


def time_after_backward(load: StageLoad, training: Training, link: Link, num_ranks: int) -> Number:
    """Seconds of a stage's own gradient sync over `num_ranks` replicas and of its optimizer step, in a
    load that is on its ranks already."""
    return load.update_time + all_reduce_time(link, synced_bytes(load, training), num_ranks)


def sync_times(
    problem: Problem,
    layout: Layout,
    loads: Sequence[StageLoad],
    holders: Sequence[tuple[int, ...]],
) -> tuple[Sync, ...]:
    """The gradient syncs of a step: of each stage over its replicas, then of each tied parameter
    over all ranks of the stages that hold it. `holders` says which, for each tied parameter."""
    training = problem.training
    syncs = [
        Sync(
            what=f"stage {stage}",
            ranks=ranks,
            time=_sync_time(problem, ranks, synced_bytes(load, training)),
        )
        for stage, (ranks, load) in enumerate(zip(layout.stage_ranks, loads, strict=True))
        if len(ranks) > 1
    ]
    for tied, stages in zip(problem.graph.tied, holders, strict=True):
        if len(stages) > 1:
            ranks = tuple(sorted({rank for s in stages for rank in layout.stage_ranks[s]}))
            if set(ranks) == set(layout.stage_ranks[stages[0]]):
                continue  # the same ranks hold it once, and sync it with the stage
            time = _sync_time(problem, ranks, gradient_bytes(tied, training))
            syncs.append(Sync(what=tied.name, ranks=ranks, time=time))
    return tuple(syncs)


def _sync_time(problem: Problem, ranks: tuple[int, ...], num_bytes: Number) -> Number:
    return all_reduce_time(slowest_link(problem.cluster, ranks), num_bytes, len(ranks))
