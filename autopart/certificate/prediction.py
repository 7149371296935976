"""A plan's prediction, made again with the cost model and the simulator."""

import msgspec

from autopart.bounds.objectives import TOLERANCE
from autopart.certificate.plan_problem import (
    PlanProblem,
    layout_of,
    own_entry,
    partition_of,
    policies_of,
)
from autopart.certificate.stage_degrees import places_in_space
from autopart.certificate.state_actions import RankState, with_state_actions
from autopart.cost.in_flight import stages_in_flight
from autopart.cost.stage_times import plan_minimised
from autopart.cost.transients import held_results
from autopart.errors import PlanError
from autopart.pricing import predict, simulated
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.plan_degrees import stage_groups
from autopart.records.prediction import Prediction
from autopart.records.problem import CUSTOM
from autopart.records.rank_group import group_size
from autopart.schedules.check import check_schedule
from autopart.simulator.period import period_of_plan
from autopart.simulator.timeline import simulate_plan
from autopart.stage_degrees.pricing import DegreesPricer


def predict_again(given: PlanProblem) -> Prediction:
    """The prediction for the plan's own stages, policies and orders."""
    plan, graph = given.plan, given.graph
    layout = layout_of(plan)
    own = given.own_degrees
    if own is not None:
        degrees = tuple(group_size(tensor) for tensor in stage_groups(plan))
        places = places_in_space(own, degrees, layout.stage_ranks)
        partition, policies = partition_of(plan, graph), policies_of(plan, graph)
        stages, syncs = DegreesPricer(own).predict(places, plan.schedule, partition, policies)
        return simulated(given.problem.cluster, layout, stages, syncs, None)
    # Step 1: predict the stages with the plan's own partition and policies.
    # A named schedule needs no actions: the demands say already that the orders are its own.
    partition, orders = partition_of(plan, graph), None
    if plan.schedule == CUSTOM:
        orders = schedule_of(plan)
    in_flight = stages_in_flight(orders, layout.stage_ranks) if orders else None
    policies = policies_of(plan, graph)
    stages, syncs = predict(given.problem, layout, partition, policies, in_flight)
    # Step 2: simulate the step with them.
    found = simulated(given.problem.cluster, layout, stages, syncs, orders, plan.objective)
    # Step 3: say which parts of it are gathers and sums of shared state.
    state = RankState(given.sized(own_entry(plan)).profile, plan.group, plan.cluster)
    return with_state_actions(found, state, given.problem, layout, partition, policies)


def check_prediction(given: PlanProblem) -> None:
    """Raise PlanError, with the place, where a predicted number is not reproduced."""
    ours, theirs = predict_again(given), given.plan.prediction
    difference = _difference(msgspec.to_builtins(ours), msgspec.to_builtins(theirs), "")
    if difference and _counts_gradients_always(theirs):
        raise PlanError(
            "the prediction is not reproduced: an older autopart counted gradients before a step's first backward too "
            f"({difference}); solve the plan again with autopart solve"
        )
    if difference:
        raise PlanError(
            f"the prediction is not reproduced: {difference}; a plan of an older autopart must be solved again"
        )
    partition = partition_of(given.plan, given.graph)
    for at, (stage, members) in enumerate(zip(given.plan.stages, partition, strict=True)):
        held = held_results(given.graph, members)
        if stage.held != held:
            raise PlanError(
                f"the prediction is not reproduced: stage {at} holds {list(stage.held)}, recomputed {list(held)}"
            )
    _check_without_cap(given.plan)


def _counts_gradients_always(prediction: Prediction) -> bool:
    """Whether no stage says what its first backward needs, as before gradients counted from there on."""
    moving = [stage.moving for stage in prediction.stages]
    return any(own.workspace for own in moving) and not any(own.first_backward for own in moving)


def _check_without_cap(plan: Plan) -> None:
    """Raise PlanError unless the orders without a memory cap take the seconds that the plan says.

    Only custom orders have this entry. The prediction is checked already.
    """
    source = plan.origin.orders
    if (source is not None) != (plan.schedule == CUSTOM):
        raise PlanError(
            f"the plan has {'no' if source is None else 'a'} source of its orders, "
            f"and its schedule is {plan.schedule}"
        )
    if source is None:
        return
    name, own = plan.objective, plan_minimised(plan)
    step = own
    if source.orders_without_cap:
        other = msgspec.structs.replace(plan, orders=source.orders_without_cap)
        check_schedule(schedule_of(other), stage_ranks(plan), plan.num_microbatches)
        step = period_of_plan(other) if name == "period" else simulate_plan(other).makespan
    said = source.step_time_without_cap
    if not abs(step - said) <= TOLERANCE * max(step, said):
        raise PlanError(f"the {name} without the memory limit is {said} s, recomputed {step} s")
    if said > own * (1 + TOLERANCE):
        raise PlanError(
            f"the {name} without the memory limit is {said} s, longer than the plan's own {name}"
        )


def _difference(ours: object, theirs: object, path: str) -> str | None:
    """The first place where two trees of plain values differ by more than TOLERANCE."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if ours.keys() != theirs.keys():
            return f"prediction{path} has {', '.join(theirs)}, recomputed {', '.join(ours)}"
        pairs = [(f"{path}.{key}", ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            return f"prediction{path} has {len(theirs)} entries, recomputed {len(ours)}"
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(ours, theirs, strict=True))]
    elif isinstance(ours, float) and isinstance(theirs, int | float):
        near = abs(ours - theirs) <= TOLERANCE * max(abs(ours), abs(theirs))
        return None if near else f"prediction{path} is {theirs}, recomputed {ours}"
    else:
        return None if ours == theirs else f"prediction{path} is {theirs}, recomputed {ours}"
    return next((found for at, a, b in pairs if (found := _difference(a, b, at))), None)
