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
from autopart.plan import LASTING, ON_DEVICE, MemoryUse, StagePrediction
from autopart.problem import CUSTOM, Problem
from autopart.schedule import Schedule, StageRanks, warmup
from autopart.schedules import make_schedule
from autopart.simulator.actions import OPS, B, F
from autopart.simulator.holding import (
    HALF,
    WHOLE,
    Holding,
    Sizes,
    alone,
    at_peak,
    holdings,
    joined,
    one_row,
    sizes_of,
    workspace_of,
)
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
    return most_in_flight(holding_of(layout, stage))


def most_in_flight(held: int | Holding) -> int:
    """Most microbatches past F and before B (or W)."""
    return held if isinstance(held, int) else int(held.counts[:, [WHOLE, HALF]].sum(axis=1).max())


def holding_of(layout: Layout, stage: int) -> int | Holding:
    """What a rank of stage `stage` holds of it under the layout's schedule: under GPipe and 1F1B the microbatches
    in flight say all, and of orders of a plan's own no more is known than that it is one at least."""
    own = own_microbatches(layout, stage)
    if layout.schedule == "gpipe":
        return own
    if layout.schedule == "1f1b":
        return min(warmup(layout.stage_ranks, stage), own)
    if layout.schedule == CUSTOM:
        return 1
    return alone(_holdings_of(layout)[layout.stage_ranks[stage][0]], stage)


@functools.lru_cache(maxsize=64)
def _holdings_of(layout: Layout) -> Mapping[int, Holding]:
    """By rank of the first replica what its orders hold."""
    one = one_replica(layout)
    orders = make_schedule(one.schedule, one.stage_ranks, one.num_microbatches)
    ranks = dict.fromkeys(ranks[0] for ranks in layout.stage_ranks)
    return dict(zip(ranks, holdings(orders, one.stage_ranks), strict=True))


def holding_of_one() -> Holding:
    """What every order holds of a stage at some time: one microbatch in its F."""
    return Holding((0,), np.array([0]), np.array([F]), np.array([[[1], [0], [0], [0], [0]]]))


def held_by(schedule: Schedule, stage_ranks: StageRanks) -> tuple[Holding, ...]:
    """For each stage what any of its ranks may hold most of it."""
    held = holdings(schedule, stage_ranks)
    return tuple(
        joined([alone(held[rank], stage) for rank in ranks if schedule[rank]])
        for stage, ranks in enumerate(stage_ranks)
    )


def largest_part(count: Number, parts: int) -> Number:
    """Of a whole number, or an array of them, shared out evenly, the largest part."""
    return count if parts == 1 else -(-count // parts)


def sizes(load: StageLoad) -> Sizes:
    """What of a stage comes and goes within a step."""
    return Sizes(
        stash=load.stash_bytes,
        waiting=load.waiting_bytes,
        activations=load.received.bytes,
        gradients=load.sent.grad_bytes + load.relayed_grad_bytes,
        sent=load.received.grad_bytes,
        workspace=load.workspace_bytes,
        input_grad_workspace=load.input_grad_workspace_bytes,
        weight_grad_workspace=load.weight_grad_workspace_bytes,
    )


def memory(
    load: StageLoad,
    problem: Problem,
    replicas: int,
    held: int | Holding,
    share_out: Callable[[Number, int], Number] = largest_part,
) -> Memory:
    """Bytes of a rank at its peak, of a stage with so many replicas; `held` are the microbatches in flight
    under GPipe or 1F1B, or what other orders hold of the stage (`holding_of`). A rank reads the batch of all
    microbatches that it runs. Where state lies on the host, the device has room for that of one layer at a
    time, whichever it is. `share_out` is `largest_part`, or what stands for it in an integer program."""
    training = problem.training
    sharing = update_share(training, replicas)
    stepped = share_out(load.num_trainable, sharing)
    away = load.optimizer_on_host * (stepped - share_out(load.widest_trainable, sharing))
    own = -(-problem.num_microbatches // replicas)
    peak = at_peak(one_row(held) if isinstance(held, int) else held, [sizes(load)])
    return Memory(
        weights=load.weight_bytes,
        gradients=gradient_bytes(load, training),
        master=(stepped - away) * master_bytes(training),
        optimizer=(stepped - away) * optimizer_bytes(training),
        versions=0 * load.weight_bytes,
        stash=peak.stash,
        workspace=peak.workspace,
        receives=peak.receives,
        sends=peak.sends,
        batch=own * load.input_bytes,
        reserve=problem.cluster.reserve_bytes,
        host=(held if isinstance(held, int) else 0) * load.host_bytes
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


def within(
    load: StageLoad, problem: Problem, replicas: int, limits: Limits, held: int | Holding
) -> Number:
    """Whether each of so many replicas of a stage holds no more than its limits, with what is `held`."""
    use = memory(load, problem, replicas, held)
    fits = total(use) <= limits.device_bytes
    return fits if limits.host_bytes is None else fits & (use.host <= limits.host_bytes)


def fits_on_ranks(load: StageLoad, problem: Problem, layout: Layout, stage: int) -> Number:
    """Whether the load fits as stage `stage` of a layout."""
    replicas, limits = len(layout.stage_ranks[stage]), limits_of(problem, layout, stage)
    return within(load, problem, replicas, limits, holding_of(layout, stage))


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
    ever holds of all of them together, and one reserve."""
    on_rank: dict[int, list[int]] = {}
    for stage, ranks in enumerate(stage_ranks):
        for rank in ranks:
            on_rank.setdefault(rank, []).append(stage)
    several = any(len(own) > 1 for own in on_rank.values())
    held = holdings(schedule, stage_ranks) if several else ()
    return {
        rank: stages[own[0]].memory
        if len(own) == 1
        else _together([stages[s] for s in own], held[rank])
        for rank, own in on_rank.items()
    }


def _together(own: Sequence[StagePrediction], held: Holding) -> MemoryUse:
    """What a rank with several stages, its `own`, holds at its peak."""
    uses, of = [stage.memory for stage in own], [sizes_of(stage) for stage in own]
    peak = at_peak(held, of)
    widest = max(uses, key=lambda use: use.workspace)
    whole = next(
        counts[WHOLE]
        for row, counts in enumerate(held.counts.tolist())
        if at_peak(_row(held, row), of) == peak
    )
    return MemoryUse(
        **{kind: sum(getattr(use, kind) for use in uses) for kind in (*LASTING, "host")},
        **peak._asdict(),
        reserve=max(use.reserve for use in uses),
        recomputed=min(widest.recomputed, peak.workspace),
        loss_stash=sum(
            n * (stage.memory.loss_stash // stage.in_flight)
            for n, stage in zip(whole, own, strict=True)
        ),
        loss_workspace=min(widest.loss_workspace, peak.workspace),
    )


def _row(held: Holding, row: int) -> Holding:
    at = slice(row, row + 1)
    return Holding(held.stages, held.column[at], held.op[at], held.counts[at])


def bytes_beside_stash(stages: Sequence[StagePrediction], *, split: bool) -> int:
    """What a rank with these stages holds at its peak, but for the stash; whatever its orders, as far as
    that is known: the largest workspace of any action, and of each stage the messages of 1F1B. `split`
    says whether backwards may be split."""
    uses = [stage.memory for stage in stages]
    lasting = sum(getattr(use, kind) for use in uses for kind in LASTING)
    moving = [sizes_of(stage) for stage in stages]
    messages = [at_peak(one_row(1), [of]) for of in moving]
    ops = range(len(OPS)) if split else (F, B)
    work = max(workspace_of(of, op) for of in moving for op in ops)
    reserve = max(use.reserve for use in uses)
    return lasting + work + reserve + sum(one.receives + one.sends for one in messages)


def peaks_fit(problem: Problem, layout: Layout, loads: Sequence[StageLoad]) -> Number:
    """Whether every rank stays within its memory, for loads of the stages that may be arrays; the
    layout's replicas are alike."""
    uses = [
        memory(load, problem, len(ranks), 0)
        for load, ranks in zip(loads, layout.stage_ranks, strict=True)
    ]
    fit: Number = True
    for rank, held in _holdings_of(layout).items():
        on = [s for s, ranks in enumerate(layout.stage_ranks) if ranks[0] == rank]
        limit = smallest_memory(problem.cluster, layout.stage_ranks[on[0]])
        lasting = sum(getattr(uses[s], kind) for s in on for kind in LASTING)
        peak = lasting + sum(at_peak(held, [sizes(loads[s]) for s in on]))
        fit = fit & (peak + problem.cluster.reserve_bytes <= limit)
    return fit
