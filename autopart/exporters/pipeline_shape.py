"""A pipeline as frameworks ask for it: ranks, replicas, orders and memory."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from autopart.errors import ExportRefused
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.problem import LENDING
from autopart.records.rank_group import Group, context_degree, expert_degree, has_ring, shard_degree
from autopart.schedules.actions import Schedule
from autopart.schedules.placements import loop, wave
from autopart.text import counted


class Shape(NamedTuple):
    """The shape when all replicas are equal."""

    num_ranks: int
    """Ranks per replica."""
    num_replicas: int
    stages_per_rank: int
    placement: Literal["loop", "v"]
    """Stage s on rank s mod k (`loop`), or forth and back over the ranks (`v`)."""
    num_microbatches: int
    """Microbatches per step and replica."""
    pipelines: tuple[tuple[int, ...], ...]
    """The plan's ranks for each replica, ordered by their first stages."""
    tensor_degree: int = 1
    """GPUs per rank: each rank is a tensor group of so many."""
    sequence_parallel: bool = False
    """Whether tensor groups split the sequence too."""
    shard_degree: int = 1
    """Processes of a rank that share its samples and state."""
    context_degree: int = 1
    """GPUs of a rank that divide each sequence."""
    has_ring: bool = False
    """Whether those GPUs pass keys and values around a ring."""
    expert_degree: int = 1
    """GPUs of a rank that divide its samples and each layer's experts."""

    @property
    def gpus_per_rank(self) -> int:
        """GPUs of one rank."""
        return math.prod(
            (self.tensor_degree, self.context_degree, self.expert_degree, self.shard_degree)
        )

    @property
    def num_gpus(self) -> int:
        """GPUs on all ranks of all replicas together."""
        return self.num_ranks * self.num_replicas * self.gpus_per_rank

    @property
    def num_stages(self) -> int:
        """Stages on all ranks together."""
        return self.num_ranks * self.stages_per_rank


def shape_of(plan: Plan, framework: str) -> Shape:
    """The plan's shape; raises ExportRefused where replicas or ranks differ."""
    refuse_offload(plan, framework)
    refuse_lending(plan, framework)
    ranks = stage_ranks(plan)
    replicas = _replicas(ranks, framework)
    pipelines = tuple(
        tuple(dict.fromkeys(on[replica] for on in ranks)) for replica in range(replicas)
    )
    _refuse_shared_ranks(plan, pipelines, framework)
    _refuse_idle_ranks(plan, pipelines, framework)
    num_ranks = len(pipelines[0])
    per_rank, rest = divmod(len(ranks), num_ranks)
    places = [
        tuple(pipeline.index(on[replica]) for on in ranks)
        for replica, pipeline in enumerate(pipelines)
    ]
    styles = [
        style
        for style, placement in (("loop", loop), ("v", wave))
        if not rest and set(places) == {placement(num_ranks, per_rank)}
    ]
    if not styles:
        raise ExportRefused(
            f"{framework} places stages in a loop (stage s on rank s mod k) or in a V, equally many "
            f"per rank, and these stages are on ranks {', '.join(str(p) for p in places[0])}; "
            "the nearest plan has one stage per rank"
        )
    style: Literal["loop", "v"] = "loop" if styles[0] == "loop" else "v"
    each = _microbatches(plan, replicas, framework)
    tensor = plan.group
    return Shape(
        num_ranks,
        replicas,
        per_rank,
        style,
        each,
        pipelines,
        tensor.tensor if isinstance(tensor, Group) else 1,
        isinstance(tensor, Group) and tensor.sequence_parallel,
        shard_degree(plan.group),
        context_degree(plan.group),
        has_ring(plan.group),
        expert_degree(plan.group),
    )


def orders_of_one_replica(plan: Plan, shape: Shape, framework: str) -> Schedule:
    """The orders on the ranks in replica 0, with microbatches counted from 0.

    Raises ExportRefused where another replica has other orders.
    """
    schedule, r = schedule_of(plan), shape.num_replicas
    alike = [
        tuple(
            tuple(action._replace(microbatch=action.microbatch // r) for action in schedule[rank])
            for rank in pipeline
        )
        for pipeline in shape.pipelines
    ]
    for replica, orders in enumerate(alike):
        if orders != alike[0]:
            raise ExportRefused(
                f"replica {replica} and replica 0 run different orders, and {framework} has one "
                f"schedule for all replicas; solve with a named schedule, such as --schedule 1f1b"
            )
    return alike[0]


def refuse_split_tied(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where several stages share a tied parameter."""
    plain = {f"stage {index}" for index in range(len(plan.stages))}
    for sync in plan.prediction.syncs:
        if sync.what not in plain:
            raise ExportRefused(
                f"parameter '{sync.what}' is tied over several stages, and {framework} cannot sum its "
                "gradients; untie it in the model, or solve with --same-stage for its layers"
            )


def refuse_offload(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where a layer is offloaded, or a stage keeps optimizer state on the host."""
    for index, stage in enumerate(plan.stages):
        if stage.offload:
            raise ExportRefused(
                f"stage {index} offloads layer '{stage.offload[0]}', and {framework} has no setting "
                "for offloaded layers; the nearest plan has --offload never"
            )
        if stage.optimizer_on_host:
            raise ExportRefused(
                f"stage {index} keeps its optimizer state on the host, and {framework} has no setting "
                "for single stages; the nearest plan keeps it on the device"
            )


def refuse_lending(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where ranks lend stash to each other."""
    if plan.schedule in LENDING:
        raise ExportRefused(
            f"ranks lend stash to each other under {plan.schedule}, and {framework} keeps all stash on its "
            "rank; the nearest plan has --schedule 1f1b"
        )


def refuse_shared_optimizer(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where replicas share optimizer state (ZeRO-1)."""
    if plan.training.zero1 and any(len(stage.ranks) > 1 for stage in plan.stages):
        raise ExportRefused(
            f"the plan's replicas share optimizer state (ZeRO-1), and {framework} keeps it whole on "
            "every replica; the nearest plan is solved without --zero1; --to megatron, "
            "--to torchtitan and --to deepspeed take ZeRO-1"
        )


def rank_notes(shape: Shape) -> tuple[str, ...]:
    """A note where the framework numbers ranks differently from the plan.

    Frameworks number the replicas on the first rank first, then those on the second. They number the
    processes of a rank group one after the other.
    """
    order = [pipeline[place] for place in range(shape.num_ranks) for pipeline in shape.pipelines]
    if order == list(range(len(order))):
        return ()
    t = shape.gpus_per_rank
    listed = ", ".join(str(rank * t + place) for rank in order for place in range(t))
    return (
        f"processes 0, 1, 2, ... must run on the plan's {'GPUs' if t > 1 else 'ranks'} {listed}: order the "
        "hosts, or CUDA_VISIBLE_DEVICES, accordingly",
    )


def _replicas(ranks: Sequence[Sequence[int]], framework: str) -> int:
    counts = [len(on) for on in ranks]
    if len(set(counts)) > 1:
        raise ExportRefused(
            f"{framework} needs the same number of replicas for every stage, and these have "
            f"{', '.join(map(str, counts))}; the nearest plan has {min(counts)} on every stage"
        )
    return counts[0]


def _refuse_shared_ranks(plan: Plan, pipelines: Sequence[Sequence[int]], framework: str) -> None:
    for (first, one), (second, other) in itertools.combinations(enumerate(pipelines), 2):
        shared = set(one).intersection(other)
        if shared:
            raise ExportRefused(
                f"rank {min(shared)} runs stages of replicas {first} and {second} under {plan.schedule}, and "
                f"{framework} gives each replica ranks of its own; the nearest plan has --schedule 1f1b"
            )


def _refuse_idle_ranks(plan: Plan, pipelines: Sequence[Sequence[int]], framework: str) -> None:
    used = set(itertools.chain.from_iterable(pipelines))
    idle = [rank for rank, order in enumerate(plan.orders) if rank not in used or not order]
    if idle:
        raise ExportRefused(
            f"rank {idle[0]} is idle, and {framework} gives each rank a stage; solve for "
            f"{counted(len(plan.orders) - len(idle), 'GPU')}"
        )


def _microbatches(plan: Plan, replicas: int, framework: str) -> int:
    each, rest = divmod(plan.num_microbatches, replicas)
    if rest:
        raise ExportRefused(
            f"{framework} gives every replica the same number of microbatches, and "
            f"{plan.num_microbatches} is no multiple of {counted(replicas, 'replica')}; "
            f"the nearest plans have {each * replicas} or "
            f"{counted((each + 1) * replicas, 'microbatch')}"
        )
    return each


def refuse_single_rank(shape: Shape, framework: str) -> None:
    """Raise ExportRefused where a replica has one rank: frameworks then ignore pipeline settings."""
    if shape.num_ranks == 1:
        raise ExportRefused(
            f"the plan has one rank per replica, and {framework} then ignores all pipeline settings; "
            f"train on {counted(shape.num_replicas, 'replica')} without a pipeline, or solve with --stages 2"
        )
