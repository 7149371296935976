"""The tensor degrees of a plan: one for all stages, or each stage's own; and the GPUs of its ranks."""

import itertools
from collections.abc import Sequence
from typing import Protocol

from autopart.errors import AutopartError, PlanError
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.tensor_degree import (
    MaybeTensor,
    Tensor,
    check_fits_node,
    degree_of,
    tensor_name,
)
from autopart.text import counted


class OwnStage(Protocol):
    """What these functions read of a stage."""

    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def tensor(self) -> MaybeTensor: ...


class OwnPlan(Protocol):
    """What these functions read of a plan (`autopart.records.plan.Plan`)."""

    @property
    def tensor(self) -> MaybeTensor: ...
    @property
    def stages(self) -> Sequence[OwnStage]: ...
    @property
    def orders(self) -> tuple[str, ...]: ...
    @property
    def cluster(self) -> Cluster: ...
    @property
    def num_microbatches(self) -> int: ...


def gpus_of_ranks(degrees: Sequence[int]) -> list[range]:
    """For each rank its GPUs, from the tensor degree of each: they stand side by side in rank order.

    With one degree t, rank q is the GPUs q t to q t + t - 1.
    """
    ends = list(itertools.accumulate(degrees))
    return [range(end - t, end) for end, t in zip(ends, degrees, strict=True)]


def has_several_degrees(plan: OwnPlan) -> bool:
    """Whether stages have tensor degrees of their own, and not all the same."""
    return any(isinstance(stage.tensor, Tensor) for stage in plan.stages)


def stage_tensors(plan: OwnPlan) -> tuple[MaybeTensor, ...]:
    """For each stage its tensor degree; unset for 1."""
    if has_several_degrees(plan):
        return tuple(stage.tensor for stage in plan.stages)
    return (plan.tensor,) * len(plan.stages)


def rank_degrees(plan: OwnPlan) -> tuple[int, ...]:
    """For each rank its tensor degree; a rank without a stage is one GPU where stages have their own.

    `gpus_of_ranks` gives the GPUs of these ranks.
    """
    found = [degree_of(plan.tensor)] * len(plan.orders)
    for stage, tensor in zip(plan.stages, stage_tensors(plan), strict=True):
        for rank in stage.ranks:
            found[rank] = degree_of(tensor)
    return tuple(found)


def num_processes(plan: OwnPlan) -> int:
    """How many processes run the plan: one per GPU. With tensor degree t a rank is t of them."""
    return sum(rank_degrees(plan))


def rank_of_process(plan: OwnPlan, process: int) -> int:
    """The rank to which a process belongs. Raises PlanError where the plan has no such process."""
    for rank, processes in enumerate(gpus_of_ranks(rank_degrees(plan))):
        if process in processes:
            return rank
    raise PlanError(f"the plan has no rank for process {process}")


def degrees_name(plan: OwnPlan) -> str:
    """The plan's tensor degree in words, or the degree of each stage where they differ."""
    if not has_several_degrees(plan):
        return tensor_name(plan.tensor)
    tensors = stage_tensors(plan)
    split = any(isinstance(one, Tensor) and one.sequence_parallel for one in tensors)
    listed = "/".join(str(degree_of(one)) for one in tensors)
    return f"tensor degrees {listed}" + " with sequence parallelism" * split


def check_one_degree(plan: OwnPlan, what: str) -> None:
    """Raise PlanError where stages have tensor degrees of their own, and `what` cannot have these."""
    if has_several_degrees(plan):
        raise PlanError(
            f"the plan has {degrees_name(plan)}, and {what} has one degree for all stages; solve with "
            "--tensor auto for a plan that it takes"
        )


def check_one_gpu_per_rank(plan: OwnPlan, what: str) -> None:
    """Raise PlanError where the plan's ranks are tensor groups, and `what` cannot have these."""
    if max(rank_degrees(plan)) > 1:
        raise PlanError(
            f"the plan has {degrees_name(plan)}, and {what} has no tensor groups yet; "
            "solve with --tensor 1 for a plan that it takes"
        )


def check_room(plan: OwnPlan, where: str) -> None:
    """Raise PlanError where a node cannot be filled with tensor groups of the plan's degrees, or ranks are too many."""
    for degree in sorted({degree_of(tensor) for tensor in stage_tensors(plan)}):
        if degree > 1 and plan.cluster.gpus:
            raise PlanError(f"{where}: tensor degree {degree} needs equal GPUs")
        try:
            check_fits_node(degree, plan.cluster)
        except AutopartError as error:
            raise PlanError(f"{where}: {error}") from None
    room = num_gpus(plan.cluster) // degree_of(plan.tensor)
    if len(plan.orders) > room:
        of_groups = (
            f"{counted(room, 'GPU')}"
            if room == num_gpus(plan.cluster)
            else f"{counted(room, 'tensor group')}"
        )
        raise PlanError(f"{where}: it has {counted(len(plan.orders), 'order')} for {of_groups}")


def check_own_degrees(plan: OwnPlan, where: str) -> None:
    """Raise PlanError where the stages' own tensor degrees contradict each other, or have too few GPUs."""
    if not has_several_degrees(plan):
        return
    tensors = stage_tensors(plan)
    if isinstance(plan.tensor, Tensor):
        raise PlanError(
            f"{where}: the plan has a tensor degree, and so have stages; one of them may"
        )
    if len(set(tensors)) == 1:
        raise PlanError(
            f"{where}: all stages have {tensor_name(tensors[0])}; the plan says a degree that all have"
        )
    if len({one.sequence_parallel for one in tensors if isinstance(one, Tensor)}) > 1:
        raise PlanError(f"{where}: some stages have sequence parallelism, and others do not")
    _check_own_ranks(plan, where)
    degrees = rank_degrees(plan)
    if sum(degrees) > num_gpus(plan.cluster):
        raise PlanError(
            f"{where}: its ranks are {counted(sum(degrees), 'GPU')}, and the cluster has {num_gpus(plan.cluster)}"
        )
    _check_starts(degrees, where)


def _check_own_ranks(plan: OwnPlan, where: str) -> None:
    """Raise PlanError unless stages with tensor degrees of their own have equal replicas on ranks of their own."""
    ranks = [rank for stage in plan.stages for rank in stage.ranks]
    if len(set(ranks)) < len(ranks):
        raise PlanError(f"{where}: stages with tensor degrees of their own share a rank")
    replicas = sorted({len(stage.ranks) for stage in plan.stages})
    if len(replicas) > 1 or plan.num_microbatches % replicas[0]:
        raise PlanError(
            f"{where}: stages with tensor degrees of their own need equally many replicas, a divisor of the "
            f"{counted(plan.num_microbatches, 'microbatch')}; they have {', '.join(map(str, replicas))}"
        )


def _check_starts(degrees: Sequence[int], where: str) -> None:
    """Raise PlanError unless each tensor group starts at a multiple of its own size.

    Groups whose size divides a node then stay inside one.
    """
    for rank, gpus in enumerate(gpus_of_ranks(degrees)):
        if gpus.start % len(gpus):
            raise PlanError(
                f"{where}: rank {rank} is the GPUs {gpus.start} to {gpus.stop - 1}, but a tensor group of "
                f"{len(gpus)} starts at a multiple of {len(gpus)}"
            )
