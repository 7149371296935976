"""A plan's replicas as torch runs them: each has its own ranks and one schedule."""

from collections.abc import Sequence

from autopart.errors import ExportRefused
from autopart.records.plan import Plan, follows_its_name, schedule_of, stage_ranks
from autopart.records.problem import LENDING
from autopart.schedules.actions import Schedule, dealt
from autopart.schedules.torch_names import TORCH_NAMES, takes
from autopart.text import counted

_SINGLE = ("GPipe", "1F1B")
"""Torch's schedules with one stage per rank. Their ranks may have any order."""


def replicas_of(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """For each replica the rank of each stage; raises ExportRefused unless replicas are alike."""
    if plan.schedule in LENDING:
        raise ExportRefused(
            f"ranks lend stash to each other under {plan.schedule}, and torch's schedules keep all stash on "
            "its rank; the nearest plan has --schedule 1f1b"
        )
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
            f"{counted(len(plan.orders) - len(idle), 'GPU')}"
        )
    replicas = tuple(zip(*ranks, strict=True))
    for rank in range(len(plan.orders)):
        among = [index for index, on in enumerate(replicas) if rank in on]
        if len(among) > 1:
            raise ExportRefused(
                f"rank {rank} runs stages of replicas {among[0]} and {among[1]}, and torch has one "
                "schedule for each rank; the nearest plan gives each replica ranks of its own"
            )
    return replicas


def torch_name(plan: Plan, replicas: Sequence[Sequence[int]]) -> str | None:
    """Torch's name for the plan's schedule; None where torch's class would make other orders."""
    name = TORCH_NAMES.get(plan.schedule)
    if name is None or not follows_its_name(plan):
        return None
    for replica, on in enumerate(replicas):
        ranks = list(dict.fromkeys(on))
        microbatches = len(dealt(range(len(replicas)), replica, plan.num_microbatches))
        # Torch places stages by the rank's number within its group.
        if name not in _SINGLE and ranks != sorted(ranks):
            return None
        if not takes(name, len(ranks), len(on) // len(ranks), microbatches):
            return None
    return name


def orders_of_replica(plan: Plan, replica: int, replicas: Sequence[Sequence[int]]) -> Schedule:
    """One replica's orders, by ascending rank as in torch's group, with microbatches from 0."""
    schedule, count = schedule_of(plan), len(replicas)
    return tuple(
        tuple(action._replace(microbatch=action.microbatch // count) for action in schedule[rank])
        for rank in sorted(set(replicas[replica]))
    )
