"""Memory on a rank at its peak, kind by kind.

    weights + gradients + master + optimizer + versions + stash + workspace + receives + sends + batch + borrowed + reserve

autopart/cost/memory_limits.py compares it with the rank's limits.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET

from autopart.cost.made_gradients import (
    first_backward,
    has_all_in_flight,
    lasting_gradients,
    made_gradients,
    rows_of,
)
from autopart.cost.stage_totals import StageTotals
from autopart.cost.syncs import update_share
from autopart.records.peak_bytes import (
    MicrobatchBytes,
    at_peak,
    lasting_bytes,
    place_of_peak,
    sizes_of,
    workspace_of,
)
from autopart.records.prediction import (
    ON_DEVICE,
    REPEATED,
    MemoryUse,
    RepeatedBytes,
    StagePrediction,
)
from autopart.records.problem import Problem
from autopart.records.training import (
    Training,
    master_bytes,
    optimizer_bytes,
    state_bytes,
)
from autopart.schedules.actions import Schedule, StageRanks, microbatches_per_replica
from autopart.schedules.classic_rows import classic_rows
from autopart.schedules.encoding import OPS, B, F
from autopart.schedules.in_flight import STASH, InFlight, in_flight_by_rank, row_at
from autopart.units import Q


class Memory(NamedTuple, Generic[Q]):
    """One rank's bytes at its peak, kind by kind, as in `MemoryUse`."""

    weights: Q
    gradients: Q
    master: Q
    optimizer: Q
    versions: Q
    stash: Q
    workspace: Q
    receives: Q
    sends: Q
    batch: Q
    reserve: int
    host: Q
    borrowed: int = 0
    """Stash that other ranks lend is not known to a stage alone (autopart/cost/lending.py)."""


def memory(
    totals: StageTotals[Q], problem: Problem, replicas: int, in_flight: int | InFlight
) -> Memory[Q]:
    """Bytes at the peak on each rank with a stage that has so many replicas.

    `in_flight` is a number under GPipe and 1F1B (`stage_in_flight`). A rank reads the batch for all microbatches that
    it runs. Where optimizer state lies on the host, the device has room for one layer's state at a time.
    """
    sharing = update_share(problem.training, replicas)
    own = largest_part(totals.num_trainable, sharing)
    off_device = totals.optimizer_on_host * (own - largest_part(totals.widest_trainable, sharing))
    on_host = totals.optimizer_on_host * own
    return memory_with_state(totals, problem, replicas, in_flight, own - off_device, on_host)


def memory_with_state(
    totals: StageTotals[Q],
    problem: Problem,
    replicas: int,
    in_flight: int | InFlight,
    on_device: Q,
    on_host: Q,
    at: InFlight | None = None,
) -> Memory[Q]:
    """`memory` with optimizer state for `on_device` trained elements on the device and `on_host` on the host.

    With `at` the bytes are those at some places in the rank's order, in place of the largest.
    """
    training = problem.training
    own = microbatches_per_replica(problem.num_microbatches, replicas)
    rows = rows_of(problem, replicas, in_flight) if isinstance(in_flight, int) else in_flight
    peak = at_peak(at or rows, [moving_bytes(totals, problem, replicas, in_flight)])
    offloaded = in_flight
    if not isinstance(in_flight, int):
        offloaded = int(in_flight.counts[:, STASH].sum(axis=1).max())
    return Memory(
        weights=totals.weight_bytes,
        gradients=lasting_gradients(totals, training) + peak.gradients,
        master=on_device * master_bytes(training),
        optimizer=on_device * optimizer_bytes(training),
        versions=0 * totals.weight_bytes,
        stash=peak.stash,
        workspace=peak.workspace,
        receives=peak.receives,
        sends=peak.sends,
        batch=own * totals.input_bytes,
        reserve=problem.cluster.reserve_bytes,
        host=offloaded * totals.host_bytes + on_host * state_bytes(training),
    )


def moving_bytes(
    totals: StageTotals[Q], problem: Problem, replicas: int, in_flight: int | InFlight
) -> MicrobatchBytes[Q]:
    """`microbatch_bytes` of a stage alone on its ranks, whose first backward is known layer by layer."""
    sizes = microbatch_bytes(totals, problem.training)
    if isinstance(in_flight, int) and has_all_in_flight(problem, replicas, in_flight):
        first = first_backward(totals, problem.training) + totals.relayed_grad_bytes
        sizes = sizes._replace(first_backward=first)
    return sizes


def microbatch_bytes(totals: StageTotals[Q], training: Training) -> MicrobatchBytes[Q]:
    """A stage's bytes that change within a step, for one microbatch.

    On ranks with several stages, and where orders count, all gradients are taken to be there when the first backward
    begins.
    """
    made = made_gradients(totals, training)
    # Autograd copies gradients that only pass through, while the backward runs.
    workspace = totals.workspace_bytes + totals.relayed_grad_bytes
    return MicrobatchBytes(
        stash=totals.stash_bytes,
        waiting=totals.waiting_bytes,
        activations=totals.received.bytes,
        gradients=totals.sent.grad_bytes,
        sent=totals.received.grad_bytes,
        workspace=workspace,
        input_grad_workspace=totals.input_grad_workspace_bytes + totals.relayed_grad_bytes,
        weight_grad_workspace=totals.weight_grad_workspace_bytes,
        outputs=totals.output_bytes,
        made=made,
        first_backward=workspace + made,
    )


def largest_part(count: Q, parts: int) -> Q:
    """`count` divided by `parts`, rounded up, for an integer or each in an array.

    The integer program's expressions cannot be rounded. For them `parts` must be 1.
    """
    whole: Any = count
    return count if parts == 1 else -(-whole // parts)


def total(use: MemoryUse | Memory[Q]) -> Q:
    """All bytes on a rank's device together."""
    summed: Any = sum(getattr(use, kind) for kind in ON_DEVICE)
    return summed


def with_versions(stage: StagePrediction, in_flight: int, copies: int) -> MemoryUse:
    """A stage's memory with other microbatches in flight and further copies for its weights."""
    moving = sizes_of(stage)
    peak = at_peak(classic_rows(in_flight), [moving])
    return msgspec.structs.replace(
        stage.memory,
        gradients=moving.made or stage.memory.gradients,
        stash=peak.stash,
        workspace=moving.workspace,
        receives=peak.receives,
        sends=peak.sends,
        loss_stash=stage.memory.loss_stash // stage.in_flight * in_flight,
        versions=copies * stage.memory.weights,
    )


def rank_peaks(
    stage_ranks: StageRanks,
    schedule: Schedule,
    stages: Sequence[StagePrediction],
    in_flight: Sequence[InFlight] | None = None,
) -> tuple[list[int], list[int]]:
    """Each rank's peak bytes, and its bytes on the host; 0 for an idle rank. `in_flight` as in `rank_memory`."""
    uses = rank_memory(stage_ranks, schedule, stages, in_flight)
    ranks = range(len(schedule))
    peaks = [int(total(uses[rank])) if rank in uses else 0 for rank in ranks]
    return peaks, [uses[rank].host if rank in uses else 0 for rank in ranks]


def rank_memory(
    stage_ranks: StageRanks,
    schedule: Schedule,
    stages: Sequence[StagePrediction],
    in_flight: Sequence[InFlight] | None = None,
) -> Mapping[int, MemoryUse]:
    """For each rank with a stage, its memory at the peak.

    `in_flight` is what each rank's order keeps, where that is counted already.
    """
    on_rank: dict[int, list[int]] = {}
    for stage, ranks in enumerate(stage_ranks):
        for rank in ranks:
            on_rank.setdefault(rank, []).append(stage)
    # One stage's own prediction covers its rank. Stages that share a rank peak at different moments.
    several = any(len(own) > 1 for own in on_rank.values())
    in_flight = (in_flight or in_flight_by_rank(schedule, stage_ranks)) if several else ()
    return {
        rank: stages[own[0]].memory
        if len(own) == 1
        else _together([stages[s] for s in own], in_flight[rank])
        for rank, own in on_rank.items()
    }


def repeated_bytes(
    use: Memory[float], once: Memory[float], gradients: float, stash: float
) -> RepeatedBytes | msgspec.UnsetType:
    """The difference between a stage's memory, and its memory `once` other stages have what they share.

    `gradients` is the difference in gradients, which may not be there at the peak, and `stash` that of one microbatch.
    """
    less = {kind: int(getattr(use, kind) - getattr(once, kind)) for kind in (*REPEATED, "host")}
    less |= {"gradients": int(gradients), "stash": int(stash)}
    return RepeatedBytes(**less) if any(less.values()) else UNSET


def _together(own: Sequence[StagePrediction], in_flight: InFlight) -> MemoryUse:
    """Memory on a rank with several stages: the most that its order ever keeps for all, and one reserve."""
    uses, moving = [stage.memory for stage in own], [sizes_of(stage) for stage in own]
    # Step 1: the place in the order where most is in flight.
    place = place_of_peak(in_flight, moving)
    peak = at_peak(row_at(in_flight, place), moving)
    kept = in_flight.counts[:, STASH]
    whole = kept[place].tolist()
    # Step 2: bytes on the host where most stash is there, beside optimizer state.
    hosted = np.array([0 if s.host_stash_bytes is UNSET else s.host_stash_bytes for s in own])
    state = sum(use.host for use in uses) - int(kept.max(axis=0) @ hosted)
    state -= sum(stage.repeated.host for stage in own if stage.repeated is not UNSET)
    # Step 3: shares for recomputation and loss, at most the workspace at that place.
    widest = max(uses, key=lambda use: use.workspace)
    lasting = lasting_bytes(own)
    lasting["gradients"] += peak.gradients
    return MemoryUse(
        **lasting,
        host=state + int((kept @ hosted).max()),
        stash=peak.stash,
        workspace=peak.workspace,
        receives=peak.receives,
        sends=peak.sends,
        reserve=max(use.reserve for use in uses),
        recomputed=min(widest.recomputed, peak.workspace),
        loss_stash=sum(
            n * (stage.memory.loss_stash // stage.in_flight)
            for n, stage in zip(whole, own, strict=True)
        ),
        loss_workspace=min(widest.loss_workspace, peak.workspace),
    )


def bytes_beside_stash(stages: Sequence[StagePrediction], *, split: bool) -> int:
    """Bytes at the peak on a rank with these stages, without stash, as far as they are known for any order.

    They are the largest workspace in any action, and for each stage the messages under 1F1B. `split` says
    whether backwards may be split.
    """
    uses = [stage.memory for stage in stages]
    moving = [sizes_of(stage) for stage in stages]
    lasting = sum(lasting_bytes(stages).values()) + sum(own.made for own in moving)
    # No result need be on its way, so it counts as nothing.
    messages = [at_peak(classic_rows(1), [own._replace(outputs=0, made=0)]) for own in moving]
    ops = range(len(OPS)) if split else (F, B)
    work = max(workspace_of(own, op) for own in moving for op in ops)
    reserve = max(use.reserve for use in uses)
    return lasting + work + reserve + sum(one.receives + one.sends for one in messages)
