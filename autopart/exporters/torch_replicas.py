"""A plan's replicas as torch's pipelining runs each: ranks with one schedule, a group of their own."""

from collections.abc import Sequence

from autopart.errors import ExportRefused
from autopart.exporters.shape import follows_its_name
from autopart.exporters.torch_schedules import TORCH_NAMES, takes
from autopart.plan import Plan, schedule_of, stage_ranks
from autopart.schedule import Schedule, dealt

_SINGLE = ("GPipe", "1F1B")
"""Of torch's names those whose ranks have one stage each, in any order of the ranks."""


def replicas_of(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """For each replica the rank of each stage; raises ExportRefused where they are not alike."""
    ranks = stage_ranks(plan)
    counts = [len(on) for on in ranks]
    if len(set(counts)) > 1:
        raise ExportRefused(
            f"torch's pipeline stages have one rank each, so every stage needs the same number of "
            f"replicas, and these have {', '.join(map(str, counts))}; the nearest plan has "
            f"{min(counts)} on every stage"
        )
    idle = [rank for rank, order in enumerate(plan.orders) if not order]
    if idle:
        raise ExportRefused(
            f"rank {idle[0]} has no stage, and torch gives each rank one; solve for "
            f"{len(plan.orders) - len(idle)} GPUs"
        )
    replicas = tuple(zip(*ranks, strict=True))
    for rank in range(len(plan.orders)):
        of = [index for index, on in enumerate(replicas) if rank in on]
        if len(of) > 1:
            raise ExportRefused(
                f"rank {rank} runs stages of replicas {of[0]} and {of[1]}, and torch has one schedule "
                "for each rank; the nearest plan gives each replica ranks of its own"
            )
    return replicas


def torch_name(plan: Plan, replicas: Sequence[Sequence[int]]) -> str | None:
    """Torch's name for the plan's schedule, where its class makes the plan's orders."""
    name = TORCH_NAMES.get(plan.schedule)
    if name is None or not follows_its_name(plan):
        return None
    for replica, on in enumerate(replicas):
        ranks = list(dict.fromkeys(on))
        microbatches = len(dealt(range(len(replicas)), replica, plan.num_microbatches))
        # Torch puts the stages of a rank where its number in the group says.
        if name not in _SINGLE and ranks != sorted(ranks):
            return None
        if not takes(name, len(ranks), len(on) // len(ranks), microbatches):
            return None
    return name


def orders_of_replica(plan: Plan, replica: int, replicas: Sequence[Sequence[int]]) -> Schedule:
    """A replica's orders by rising rank, which is torch's order within a group, and its
    microbatches counted from 0."""
    schedule, count = schedule_of(plan), len(replicas)
    return tuple(
        tuple(action._replace(microbatch=action.microbatch // count) for action in schedule[rank])
        for rank in sorted(set(replicas[replica]))
    )
