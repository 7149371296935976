"""Plans of one model side by side: what differs, and which is faster."""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.cost.stage_times import plan_minimised
from autopart.errors import PlanError
from autopart.records.plan import POLICY_LISTS, Plan
from autopart.simulator.idle import Cause, idle_times, shown_causes
from autopart.simulator.timeline import simulate_plan


class ComparedPlan(NamedTuple):
    """A plan, and how it differs from the first one."""

    plan: Plan
    slower: float
    """Its seconds per sample over the first plan's, minus 1; negative where it is faster."""
    moved: tuple[str, ...] | None
    """Layers on another stage than in the first plan; None where the numbers of stages differ."""
    changed_policies: tuple[str, ...]
    """Layers with another activation policy than in the first plan."""
    idle: dict[Cause, float]
    """Idle rank-seconds of its step by cause, over all ranks."""


def compare_plans(plans: Sequence[Plan]) -> tuple[ComparedPlan, ...]:
    """Each plan beside the first one; raises PlanError where one is for another model.

    Plans may have other clusters, batches and microbatch sizes. Seconds are compared per sample.
    """
    first = plans[0]
    for place, plan in enumerate(plans):
        if plan.origin.graph_hash != first.origin.graph_hash:
            raise PlanError(
                f"plan {place + 1} is for {plan.origin.model} (graph {plan.origin.graph_hash}), the first one for "
                f"{first.origin.model} (graph {first.origin.graph_hash}); compare plans of one model"
            )
    return tuple(
        ComparedPlan(
            plan=plan,
            slower=sample_seconds(plan) / sample_seconds(first) - 1
            if sample_seconds(first)
            else 0.0,
            moved=moved_layers(first, plan),
            changed_policies=_changed_policies(first, plan),
            idle=_idle(plan),
        )
        for plan in plans
    )


def training_seconds(plan: Plan) -> float:
    """Seconds from step to step: the period where the plan minimises it, else the step."""
    return plan_minimised(plan) if plan.objective == "period" else plan.prediction.step_time


def sample_seconds(plan: Plan) -> float:
    """Seconds from step to step for each sample of a step."""
    return training_seconds(plan) / (plan.num_microbatches * plan.microbatch_size)


def moved_layers(plan: Plan, other: Plan) -> tuple[str, ...] | None:
    """The layers whose stages differ between two plans; None where the numbers of stages differ."""
    if len(plan.stages) != len(other.stages):
        return None
    home = {name: at for at, stage in enumerate(other.stages) for name in stage.layers}
    return tuple(
        name
        for at, stage in enumerate(plan.stages)
        for name in stage.layers
        if home.get(name) != at
    )


def _changed_policies(plan: Plan, other: Plan) -> tuple[str, ...]:
    ours, theirs = _policies(plan), _policies(other)
    return tuple(
        name for stage in plan.stages for name in stage.layers if ours.get(name) != theirs.get(name)
    )


def _policies(plan: Plan) -> dict[str, str]:
    """The policy of each layer that does not keep its stash."""
    return {
        name: policy
        for stage in plan.stages
        for policy in POLICY_LISTS
        for name in getattr(stage, policy)
    }


def _idle(plan: Plan) -> dict[Cause, float]:
    timeline = simulate_plan(plan)
    ranks = idle_times(timeline)
    return {cause: sum(one[cause] for one in ranks) for cause in shown_causes(timeline)}
