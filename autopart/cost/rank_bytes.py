"""What a rank holds at its peak, by what it is.

    weights + gradients + master + optimizer + versions + stash + workspace + receives + sends + batch + reserve

The formulas work on plain numbers, on numpy matrices and on the affine expressions of an integer program.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from autopart.cluster import host_share, smallest_memory
from autopart.cost.syncs import gradient_bytes, update_share
from autopart.frontier import Limits
from autopart.layouts import Layout, one_replica, own_microbatches
from autopart.plan import HELD_ONCE, LASTING, ON_DEVICE, MemoryUse, StagePrediction
from autopart.problem import CUSTOM, Problem
from autopart.schedule import Schedule, StageRanks, warmup
from autopart.schedules import make_schedule
from autopart.simulator.memory import Held, held_counts, most_held, peak_stash
from autopart.stage_load import Number, StageLoad
from autopart.training import master_bytes, optimizer_bytes, state_bytes


class Memory(NamedTuple):
    """The bytes of one rank at its peak, by what they are; the fields are those of `MemoryUse`."""

    weights: Number
    gradients: Number
    master: Number
    optimizer: Number
    versions: Number
    stash: Number
    workspace: Number
    receives: Number
    sends: Number
    batch: Number
    reserve: Number
    host: Number


def in_flight(layout: Layout, stage: int) -> int:
    """Most microbatches past F and before B on a rank of stage `stage` (from 0): GPipe holds all that
    it runs, 1F1B those of its warmup, orders of a plan's own at least one."""
    own = own_microbatches(layout, stage)
    if layout.schedule == "gpipe":
        return own
    if layout.schedule == "1f1b":
        return min(warmup(layout.stage_ranks, stage), own)
    return 1 if layout.schedule == CUSTOM else _held_of(layout)[stage]


@functools.lru_cache(maxsize=64)
def _held_of(layout: Layout) -> tuple[int, ...]:
    one = one_replica(layout)
    orders = make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)
    return held_by(orders, one.stage_ranks)


def held_by(schedule: Schedule, stage_ranks: StageRanks) -> tuple[int, ...]:
    """For each stage the most microbatches past F and before B (or W) on any of its ranks."""
    used = {rank for ranks in stage_ranks for rank in ranks}
    held = {rank: most_held(schedule[rank]) for rank in used}
    return tuple(max(held[r][stage] for r in ranks) for stage, ranks in enumerate(stage_ranks))


def largest_part(count: Number, parts: int) -> Number:
    """Of a whole number, or an array of them, shared out evenly, the largest part."""
    return count if parts == 1 else -(-count // parts)


def memory(
    load: StageLoad,
    problem: Problem,
    replicas: int,
    microbatches_in_flight: int,
    share_out: Callable[[Number, int], Number] = largest_part,
) -> Memory:
    """Bytes of a rank at its peak, of a stage with so many replicas. Received are the next activations
    and two gradients, sent two gradients; a rank reads the batch of all microbatches that it runs. Where
    state lies on the host, the device has room for that of one layer at a time, whichever it is.
    `share_out` is `largest_part`, or what stands for it in an integer program."""
    training = problem.training
    sharing = update_share(training, replicas)
    stepped = share_out(load.num_trainable, sharing)
    away = load.optimizer_on_host * (stepped - share_out(load.widest_trainable, sharing))
    own = -(-problem.num_microbatches // replicas)
    return Memory(
        weights=load.weight_bytes,
        gradients=gradient_bytes(load, training),
        master=(stepped - away) * master_bytes(training),
        optimizer=(stepped - away) * optimizer_bytes(training),
        versions=0 * load.weight_bytes,
        stash=microbatches_in_flight * load.stash_bytes,
        workspace=load.workspace_bytes,
        receives=load.received.bytes + 2 * load.sent.grad_bytes,
        sends=2 * load.received.grad_bytes,
        batch=own * load.input_bytes,
        reserve=problem.cluster.reserve_bytes,
        host=microbatches_in_flight * load.host_bytes
        + load.optimizer_on_host * stepped * state_bytes(training),
    )


def total(use: MemoryUse | Memory) -> Number:
    """All bytes of a rank together."""
    return sum(getattr(use, kind) for kind in ON_DEVICE)


def limits_of(problem: Problem, layout: Layout, stage: int) -> Limits:
    """What a rank of stage `stage` may hold on its device and on the host."""
    return Limits(
        held=in_flight(layout, stage),
        device_bytes=smallest_memory(problem.cluster, layout.stage_ranks[stage]),
        host_bytes=host_share(problem.cluster),
    )


def within(load: StageLoad, problem: Problem, replicas: int, limits: Limits) -> Number:
    """Whether each of so many replicas of a stage holds no more than its limits."""
    use = memory(load, problem, replicas, limits.held)
    fits = total(use) <= limits.device_bytes
    return fits if limits.host_bytes is None else fits & (use.host <= limits.host_bytes)


def fits_on_ranks(load: StageLoad, problem: Problem, layout: Layout, stage: int) -> Number:
    """Whether the load fits as stage `stage` of a layout."""
    replicas = len(layout.stage_ranks[stage])
    return within(load, problem, replicas, limits_of(problem, layout, stage))


def with_versions(stage: StagePrediction, in_flight: int, copies: int) -> MemoryUse:
    """What a stage's rank holds with other microbatches in flight and further copies of its weights."""
    return msgspec.structs.replace(
        stage.memory,
        stash=in_flight * stage.stash_bytes,
        loss_stash=stage.memory.loss_stash // stage.in_flight * in_flight,
        versions=copies * stage.memory.weights,
    )


def rank_peaks(
    stage_ranks: StageRanks, schedule: Schedule, stages: Sequence[StagePrediction]
) -> tuple[int, ...]:
    """The peak bytes of each rank; 0 for an idle one."""
    uses = rank_memory(stage_ranks, schedule, stages)
    return tuple(int(total(uses[rank])) if rank in uses else 0 for rank in range(len(schedule)))


def rank_memory(
    stage_ranks: StageRanks, schedule: Schedule, stages: Sequence[StagePrediction]
) -> Mapping[int, MemoryUse]:
    """What each rank with a stage holds at its peak. Where a rank has several, the most that its order
    ever holds of their stash, the largest workspace and one reserve."""
    on_rank: dict[int, list[int]] = {}
    for stage, ranks in enumerate(stage_ranks):
        for rank in ranks:
            on_rank.setdefault(rank, []).append(stage)
    return {
        rank: stages[own[0]].memory
        if len(own) == 1
        else _together([stages[s] for s in own], stages, held_counts(schedule[rank]))
        for rank, own in on_rank.items()
    }


def _together(
    own: Sequence[StagePrediction], stages: Sequence[StagePrediction], held: Held
) -> MemoryUse:
    """What a rank with several of the `stages`, its `own`, holds at its peak."""
    columns = [stages[s] for s in held.stages]
    counts = held.whole + held.half
    at_peak = counts[(counts @ [stage.stash_bytes for stage in columns]).argmax()].tolist()
    uses = [stage.memory for stage in own]
    widest = max(uses, key=lambda use: use.workspace)
    return MemoryUse(
        **{kind: sum(getattr(use, kind) for use in uses) for kind in (*LASTING, "host")},
        stash=sum(n * stage.stash_bytes for n, stage in zip(at_peak, columns, strict=True)),
        workspace=widest.workspace,
        reserve=max(use.reserve for use in uses),
        recomputed=widest.recomputed,
        loss_stash=sum(
            n * (stage.memory.loss_stash // stage.in_flight)
            for n, stage in zip(at_peak, columns, strict=True)
        ),
        loss_workspace=widest.loss_workspace,
    )


def bytes_beside_stash(uses: Sequence[MemoryUse] | Sequence[Memory]) -> Number:
    """What a rank with stages of these uses holds at its peak, but for the stash."""
    lasting = sum(getattr(use, kind) for use in uses for kind in LASTING)
    once = [np.broadcast_arrays(0, *(getattr(use, kind) for use in uses)) for kind in HELD_ONCE]
    return lasting + sum(np.maximum.reduce(sizes) for sizes in once)


def peaks_fit(problem: Problem, layout: Layout, loads: Sequence[StageLoad]) -> Number:
    """Whether every rank stays within its memory, for loads of the stages that may be arrays; the
    layout's replicas are alike."""
    uses = [
        memory(load, problem, len(ranks), 0)
        for load, ranks in zip(loads, layout.stage_ranks, strict=True)
    ]
    stash = [load.stash_bytes for load in loads]
    fit: Number = True
    for rank, held in _holds_of(layout):
        on = [s for s, ranks in enumerate(layout.stage_ranks) if ranks[0] == rank]
        limit = smallest_memory(problem.cluster, layout.stage_ranks[on[0]])
        peak = bytes_beside_stash([uses[s] for s in on]) + peak_stash(held, stash)
        fit = fit & (peak <= limit)
    return fit


@functools.lru_cache(maxsize=64)
def _holds_of(layout: Layout) -> tuple[tuple[int, Held], ...]:
    """The ranks of the first replica, with what their orders hold."""
    one = one_replica(layout)
    orders = make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)
    ranks = dict.fromkeys(ranks[0] for ranks in layout.stage_ranks)
    return tuple((rank, held_counts(order)) for rank, order in zip(ranks, orders, strict=True))
