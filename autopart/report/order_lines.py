"""A plan's orders as text, with the state actions that follow from them."""

from collections.abc import Iterator

import msgspec

from autopart.records.plan import Plan, schedule_of
from autopart.records.rank_group import Group
from autopart.report.labels import ranks_label
from autopart.schedules.actions import format_order
from autopart.schedules.state_actions import TORCHS_ACTIVE_STAGES, StateRules, state_words
from autopart.text import counted


class RankOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What one rank runs in a step."""

    rank: int
    """The rank, counted from 0."""
    stages: tuple[int, ...]
    """Stages on this rank, counted from 0."""
    order: str
    """Its actions in torch's words, with gathers, releases and reductions of sharded state."""


class OrdersSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The document that `autopart show --orders --json` prints."""

    plan: str
    """Plan file."""
    ranks: tuple[RankOrder, ...]
    """Every rank in use."""


def orders_summary(plan: Plan, path: str) -> OrdersSummary:
    """Every rank's order."""
    rules = _rules(plan)
    return OrdersSummary(
        plan=path,
        ranks=tuple(
            RankOrder(
                rank=rank,
                stages=tuple(at for at, stage in enumerate(plan.stages) if rank in stage.ranks),
                order=format_order(order) if rules is None else state_words(order, rules),
            )
            for rank, order in enumerate(schedule_of(plan))
            if order
        ),
    )


def order_lines(plan: Plan, orders: OrdersSummary) -> Iterator[str]:
    """A line for each rank, and what the words for state actions mean."""
    for one in orders.ranks:
        stages = f"stage{'s' * (len(one.stages) > 1)} {ranks_label(one.stages)}"
        yield f"rank {one.rank}, {stages}: {one.order}"
    rules = _rules(plan)
    if rules is None:
        return
    yield "UNSHARD gathers the weights of a stage, RESHARD releases them, REDUCE_GRAD reduces its gradients"
    if rules.active_stages is not None:
        yield f"as torch's schedules have it, which keep {counted(rules.active_stages, 'stage')} of a rank gathered"
    elif not rules.shares_weights:
        yield "weights are gathered behind the update of the step before, and stay"


def _rules(plan: Plan) -> StateRules | None:
    """When the ranks of a plan gather and reduce; None without sharded state."""
    if not isinstance(plan.group, Group) or plan.group.data == 1:
        return None
    shares = plan.group.shard == "zero3"
    torchs = plan.training.sync == "fsdp2" and not shares
    return StateRules(
        shares_weights=shares,
        sums_each_microbatch=plan.group.reduce == "microbatch",
        active_stages=TORCHS_ACTIVE_STAGES if torchs else None,
    )
