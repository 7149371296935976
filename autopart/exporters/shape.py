"""What frameworks ask of a pipeline besides its layers: stages to ranks, replicas, orders, memory."""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

from autopart.errors import ExportRefused, ScheduleError
from autopart.plan import Plan, orders_of, schedule_of, stage_ranks
from autopart.schedule import Schedule
from autopart.schedules import make_schedule
from autopart.schedules.placements import loop, wave


class Shape(NamedTuple):
    """A pipeline whose replicas are all alike."""

    num_ranks: int
    """Of one replica."""
    num_replicas: int
    stages_per_rank: int
    placement: Literal["loop", "v"]
    """Stage s on rank s mod k, or there and back."""
    num_microbatches: int
    """Of one replica."""
    pipelines: tuple[tuple[int, ...], ...]
    """For each replica the plan's ranks in the order of their first stages."""

    @property
    def num_stages(self) -> int:
        """Stages of all ranks."""
        return self.num_ranks * self.stages_per_rank


def shape_of(plan: Plan, framework: str) -> Shape:
    """The plan's pipeline; raises ExportRefused where its replicas or its ranks differ."""
    refuse_offload(plan, framework)
    _refuse_selective(plan, framework)
    ranks = stage_ranks(plan)
    replicas = _replicas(ranks, framework)
    pipelines = tuple(
        tuple(dict.fromkeys(on[replica] for on in ranks)) for replica in range(replicas)
    )
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
            f"{framework} puts stage s on rank s mod k, or goes there and back, with as many stages "
            f"on every rank, and these stages lie on ranks {', '.join(str(p) for p in places[0])}; "
            "the nearest plan has one stage a rank"
        )
    style: Literal["loop", "v"] = "loop" if styles[0] == "loop" else "v"
    each = _microbatches(plan, replicas, framework)
    return Shape(num_ranks, replicas, per_rank, style, each, pipelines)


def follows_its_name(plan: Plan) -> bool:
    """Whether the plan's orders are those of the schedule that it names."""
    try:
        made = make_schedule(plan.schedule, stage_ranks(plan), plan.num_microbatches)
    except ScheduleError:
        return False
    return plan.orders == orders_of(made)


def orders_of_one_replica(plan: Plan, shape: Shape, framework: str) -> Schedule:
    """The orders of replica 0's ranks, its microbatches counted from 0; raises ExportRefused where
    another replica's differ."""
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
                f"replica {replica} runs other orders than replica 0, and {framework} has one "
                f"schedule for all; solve with a schedule by name, such as --schedule 1f1b"
            )
    return alike[0]


def csv_of(orders: Schedule) -> str:
    """Orders as torch's schedule file reads them ("compute_only"): a line a rank, a cell an action."""
    return "".join(",".join(map(str, order)) + "\n" for order in orders)


def refuse_split_tied(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where a tied parameter is on several stages."""
    plain = {f"stage {index}" for index in range(len(plan.stages))}
    for sync in plan.prediction.syncs:
        if sync.what not in plain:
            raise ExportRefused(
                f"parameter '{sync.what}' is tied over several stages, and {framework} cannot sum its "
                "gradients; untie it in the model, or solve with --same-stage for its layers"
            )


def refuse_offload(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where a layer, or the optimizer of a stage, is kept on the host."""
    for index, stage in enumerate(plan.stages):
        if stage.offload:
            raise ExportRefused(
                f"stage {index} offloads layer '{stage.offload[0]}', and {framework} cannot be told "
                "which layers to offload; the nearest plan has --offload never"
            )
        if stage.optimizer_on_host:
            raise ExportRefused(
                f"stage {index} keeps its optimizer's state on the host, and {framework} cannot be told "
                "so of one stage; the nearest plan keeps it on the device"
            )


def refuse_shared_optimizer(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where replicas share out the optimizer's state (ZeRO-1)."""
    if plan.training.zero1 and any(len(stage.ranks) > 1 for stage in plan.stages):
        raise ExportRefused(
            f"the plan's replicas share out the optimizer's state (ZeRO-1), and {framework} keeps all of "
            "it on every replica; the nearest plan is solved without --zero1; --to megatron and --to "
            "deepspeed take it"
        )


def rank_notes(shape: Shape) -> tuple[str, ...]:
    """A note where the framework's ranks are other GPUs than the plan's: it numbers the replicas of
    the first rank first, then those of the second."""
    order = [pipeline[place] for place in range(shape.num_ranks) for pipeline in shape.pipelines]
    if order == list(range(len(order))):
        return ()
    listed = ", ".join(map(str, order))
    return (
        f"process r must run where the plan's rank is the r-th of {listed}: order the hosts, or "
        "CUDA_VISIBLE_DEVICES, accordingly",
    )


def _replicas(ranks: Sequence[Sequence[int]], framework: str) -> int:
    counts = [len(on) for on in ranks]
    if len(set(counts)) > 1:
        raise ExportRefused(
            f"{framework} has the same number of replicas for every stage, and these have "
            f"{', '.join(map(str, counts))}; the nearest plan has {min(counts)} on every stage"
        )
    return counts[0]


def _refuse_idle_ranks(plan: Plan, pipelines: Sequence[Sequence[int]], framework: str) -> None:
    used = set(itertools.chain.from_iterable(pipelines))
    idle = [rank for rank, order in enumerate(plan.orders) if rank not in used or not order]
    if idle:
        raise ExportRefused(
            f"rank {idle[0]} has nothing to run, and {framework} gives each rank a stage; solve for "
            f"{len(plan.orders) - len(idle)} GPUs"
        )


def _refuse_selective(plan: Plan, framework: str) -> None:
    for index, stage in enumerate(plan.stages):
        if stage.selective:
            raise ExportRefused(
                f"stage {index} recomputes layer '{stage.selective[0]}' but for its products with "
                f"weights, and {framework} has no such choice for a single layer; the nearest plans "
                "recompute the layer whole, or keep all that it stashes; --to torch takes it"
            )


def _microbatches(plan: Plan, replicas: int, framework: str) -> int:
    each, rest = divmod(plan.num_microbatches, replicas)
    if rest:
        raise ExportRefused(
            f"{framework} gives every replica as many microbatches, and {plan.num_microbatches} for "
            f"{replicas} replicas leave {rest}; the nearest plans have {each * replicas} or "
            f"{(each + 1) * replicas} microbatches"
        )
    return each


def refuse_single_rank(shape: Shape, framework: str) -> None:
    """Raise ExportRefused where there is no pipeline, whose settings would then be ignored."""
    if shape.num_ranks == 1:
        raise ExportRefused(
            f"the plan has one rank for a replica, and {framework} then ignores every setting of its "
            f"pipeline; train without one on {shape.num_replicas} replicas, or solve with --stages 2"
        )
