"""A plan: stages, ranks and orders, with their prediction and certificate."""

import functools
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.errors import AutopartError, PlanError, ScheduleError
from autopart.records.cluster import Cluster, check_cluster
from autopart.records.files import read_file, write_record
from autopart.records.lending import check_lending_sends
from autopart.records.pace import Pace
from autopart.records.plan_degrees import check_own_degrees, check_room
from autopart.records.prediction import Prediction
from autopart.records.problem import LENDING, Demands, Objective
from autopart.records.rank_group import Group, MaybeGroup, StageDegrees
from autopart.records.shown import html_of
from autopart.records.training import Training, make_training
from autopart.schedules.actions import Schedule, count_actions, format_order, has_pairs, parse_order
from autopart.schedules.catalogue import make_schedule, orders_by_name
from autopart.schedules.check import check_schedule
from autopart.schedules.encoding import encode
from autopart.schedules.lending import MOVES
from autopart.schedules.rendezvous import rendezvous_events
from autopart.text import counted
from autopart.units import MOST_AMOUNT, Count, PositiveCount, Seconds

SolverName = Literal["auto", "dp", "ilp", "uniform", "parameters"]
SOLVERS: tuple[SolverName, ...] = ("auto", "dp", "ilp", "uniform", "parameters")
"""The solvers that a user can ask for; a plan names the one that found its partition."""

FORMAT = "autopart-plan"
VERSION = 5


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers that run together, with one replica on each rank."""

    layers: tuple[str, ...]
    """The stage's layers by name, in topological order."""
    ranks: tuple[Count, ...]
    """The stage's ranks, one per replica. Microbatch m runs on rank number m mod (their count).

    With rank groups of g GPUs rank q is the GPUs q x g … q x g + g - 1."""
    group: MaybeGroup = msgspec.UNSET
    """The stage's own rank group, in a plan with several tensor degrees. Absent for one GPU, and where all are equal.

    Ranks stand side by side: a rank starts at the GPU behind those of the rank before it."""
    held: tuple[str, ...] = ()
    """Values that the stage sends on and keeps until their backward, because their own layer's backward needs them.

    Other results are freed once they are sent, unless another layer on the stage needs them."""
    recompute: tuple[str, ...] = ()
    """Layers that run their whole forward again in backward."""
    selective: tuple[str, ...] = ()
    """Layers that run only their cheap part again in backward."""
    offload: tuple[str, ...] = ()
    """Layers whose stash waits in host memory."""
    optimizer_on_host: bool = False
    """Whether optimizer state and master copies lie in host memory between updates."""


POLICY_LISTS = ("recompute", "selective", "offload")
"""The stage's lists, one per activation policy. A layer in no list keeps its stash."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lower bound on the objective, and the plan's distance from it."""

    lower_bound: Seconds
    """Seconds that no plan for the same problem can beat: the smallest bound over all sizes."""
    gap: Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)] | None
    """The plan's own objective divided by the lower bound, minus 1; null for a bound of 0."""
    simulated: Count
    """How many partitions the closed-form bounds leave open. Verification simulates each one."""
    assumes: str
    """The set over which the bound holds, in words."""
    any_order_bound: Seconds = 0.0
    """Seconds that no order of actions can beat, with any stages per rank and split backwards.

    All other demands hold. It equals the lower bound for the bottleneck, and where "custom" is
    among the schedules; 0 says nothing."""


class OrderSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How custom orders were found, and the price that they pay for the memory limit."""

    method: str
    """The start of the orders, the searches that made them faster, and CP-SAT's word on their bound."""
    step_time_without_cap: Seconds
    """Step time with the fastest orders found if every rank had room for all microbatches.

    Where the plan minimises the period, it is their period."""
    orders_without_cap: tuple[str, ...] = ()
    """These fastest orders, for each rank; empty where they are the plan's own."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model, profile and solver behind a plan, with which a run can be compared."""

    model: str
    """The model as the user named it for the profile."""
    graph_hash: str
    """Hash over the captured computation, from the profile."""
    profile_hash: str
    """Hash by which the plan names its profile."""
    method: Literal["measured", "analytic", "imported"]
    """How the profile was made."""
    calibration: str | msgspec.UnsetType = msgspec.UNSET
    """The calibration behind an analytic profile, in words; absent without one."""
    dtype: str
    """The profile's dtype."""
    own_dtypes: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where the model and its batch kept several dtypes; absent where all have one."""
    pace: Pace | msgspec.UnsetType = msgspec.UNSET
    """The machine's pace while the profile was measured; absent where the profile has none."""
    solver: str
    """The solver that found the partition."""
    solve_seconds: Seconds
    """Seconds that the search took."""
    autopart: str
    """The autopart version that made the plan."""
    orders: OrderSource | None = None
    """How custom orders were found; null where a named schedule gives the orders."""


class SearchedSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One microbatch size and rank group that were searched, with the bound over all plans of both."""

    microbatch_size: PositiveCount
    """Samples per microbatch."""
    profile_hash: str
    """Hash by which the plan names the profile for this size."""
    profiled_size: PositiveCount
    """Samples per microbatch in that profile. Seconds and bytes were scaled where it differs."""
    group: MaybeGroup = msgspec.UNSET
    """The rank group that was searched at this size; absent for one GPU."""
    zero1: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    """True where this entry has ZeRO-1, and others of the plan do not; else absent."""
    per_stage: StageDegrees | msgspec.UnsetType = msgspec.UNSET
    """The tensor degrees that stages could have, where this entry is for plans with several; else absent."""
    lower_bound: Seconds | None
    """Seconds that no plan at this size, with this group, can beat; null where they have no plan."""
    simulated: Count
    """How many partitions at this size, with this group, the closed-form bounds leave open."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete decision, with its prediction and its certificate."""

    format: Literal["autopart-plan"] = FORMAT
    version: Literal[5] = VERSION
    origin: Origin
    """The model, profile and solver behind the plan."""
    cluster: Cluster
    """The cluster that the plan was made for."""
    microbatch_size: PositiveCount
    """Samples per microbatch."""
    num_microbatches: PositiveCount
    """Microbatches per optimizer step, over all replicas together."""
    group: MaybeGroup = msgspec.UNSET
    """The GPUs of each rank, and what they share; absent for one GPU, and where stages have their own."""
    training: Training
    """Optimizer and precisions."""
    demands: Demands
    """Choices that the user fixed before the search."""
    objective: Objective = "step"
    """The seconds that the plan minimises and its certificate bounds: step, period or bottleneck."""
    sizes: tuple[SearchedSize, ...] = ()
    """All microbatch sizes and rank groups that were searched, including the plan's own."""
    stages: tuple[Stage, ...]
    """The stages in pipeline order."""
    schedule: str
    """Name for the schedule that the orders follow, or "custom"."""
    orders: tuple[str, ...]
    """For each rank its actions, separated by spaces."""
    prediction: Prediction
    """Predicted seconds and bytes."""
    certificate: Certificate
    """The lower bound and the gap."""

    def _repr_html_(self) -> str:
        """The plan in a notebook."""
        return html_of(self)


def stage_ranks(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """For each stage its ranks."""
    return tuple(stage.ranks for stage in plan.stages)


def policy_of_layers(stage: Stage) -> dict[str, str]:
    """Each layer's activation policy: "keep", or the name of its list."""
    found = dict.fromkeys(stage.layers, "keep")
    for policy in POLICY_LISTS:
        found |= dict.fromkeys(getattr(stage, policy), policy)
    return found


def schedule_of(plan: Plan) -> Schedule:
    """The plan's orders as actions; raises ScheduleError where one cannot be read."""
    return _parsed(plan.orders)


@functools.lru_cache(maxsize=1)
def _parsed(orders: tuple[str, ...]) -> Schedule:
    """The orders as actions, kept for the next question about the same plan."""
    return tuple(parse_order(order) for order in orders)


def orders_of(schedule: Schedule) -> tuple[str, ...]:
    """The reverse of `schedule_of`."""
    return tuple(format_order(order) for order in schedule)


def follows_its_name(plan: Plan) -> bool:
    """Whether the plan's orders are the orders that its schedule's name gives."""
    try:
        return plan.orders == orders_by_name(
            plan.schedule, stage_ranks(plan), plan.num_microbatches
        )
    except ScheduleError:
        return False


def num_ranks(plan: Plan) -> int:
    """How many ranks the plan has; each one GPU or a rank group."""
    return len(plan.orders)


def cast_of(plan: Plan) -> str | None:
    """The dtype to which a run casts the model and its batch; None where both keep their own."""
    return plan.origin.dtype if plan.origin.own_dtypes is msgspec.UNSET else None


def check_plan(plan: Plan, where: str = "plan") -> None:
    """Raise PlanError unless the plan is consistent in itself.

    Each layer is on one stage, each rank at most once in a stage. The orders are complete and free of
    deadlock. Raises ClusterError where the cluster contradicts itself. `verify` compares the plan
    with its profile.
    """
    check_cluster(plan.cluster, f"{where}: cluster")
    _check_layers(plan, where)
    for index, stage in enumerate(plan.stages):
        if len(set(stage.ranks)) < len(stage.ranks):
            raise PlanError(f"{where}: stage {index} names a rank twice: {stage.ranks}")
    if isinstance(plan.group, Group) and plan.microbatch_size % plan.group.data:
        raise PlanError(
            f"{where}: microbatches of {counted(plan.microbatch_size, 'sample')} cannot be divided over the "
            f"{counted(plan.group.data, 'GPU')} that share the state; solve with a microbatch size that is a multiple"
        )
    beyond = max(rank for stage in plan.stages for rank in stage.ranks)
    check_room(plan, where)
    if beyond >= len(plan.orders):
        raise PlanError(
            f"{where}: rank {beyond} has a stage but no order ({counted(len(plan.orders), 'order')})"
        )
    check_own_degrees(plan, where)
    _check_training(plan, where)
    _check_orders(plan, where)


def _check_orders(plan: Plan, where: str) -> None:
    """Raise PlanError unless the orders are complete and free of deadlock, on the stages' ranks."""
    # The check of a schedule takes memory for each microbatch, so absurd counts are refused first.
    actions = sum(map(count_actions, plan.orders))
    if actions < plan.num_microbatches:
        raise PlanError(
            f"{where}: {counted(actions, 'action is', 'actions are')} too few for {counted(plan.num_microbatches, 'microbatch')}"
        )
    try:
        if not _is_named_on_replicas_apart(plan):
            check_schedule(schedule_of(plan), stage_ranks(plan), plan.num_microbatches)
        _check_lending(plan)
        if plan.cluster.sends == "rendezvous":
            actions = encode(schedule_of(plan), len(plan.stages))
            rendezvous_events(actions, sends_overlap=plan.cluster.sends_overlap)
    except ScheduleError as error:
        raise ScheduleError(f"{where}: {error}") from None
    if not plan.orders[-1].split():
        raise PlanError(f"{where}: the last of {counted(len(plan.orders), 'order')} is empty")


def _check_lending(plan: Plan) -> None:
    """Raise ScheduleError where orders lend stash under a schedule, or on a cluster, that cannot."""
    if plan.schedule in LENDING:
        check_lending_sends((plan.schedule,), plan.cluster)
    elif any(action.op in MOVES for order in schedule_of(plan) for action in order):
        raise ScheduleError(
            f"orders under schedule '{plan.schedule}' lend no stash; only {', '.join(LENDING)} does"
        )


def _is_named_on_replicas_apart(plan: Plan) -> bool:
    """Whether all replicas run one named schedule that is complete, each on ranks of its own.

    Then one replica stands for all: a step may have millions of actions.
    """
    ranks, count = stage_ranks(plan), len(plan.stages[0].ranks)
    if any(len(own) != count for own in ranks) or plan.num_microbatches % count:
        return False
    replicas = [set(own) for own in zip(*ranks, strict=True)]
    if sum(map(len, replicas)) > len(set().union(*replicas)) or not follows_its_name(plan):
        return False
    # The first replica's ranks, as if there were no other replica.
    first = {rank: at for at, rank in enumerate(dict.fromkeys(own[0] for own in ranks))}
    alone = tuple((first[own[0]],) for own in ranks)
    own_microbatches = plan.num_microbatches // count
    made = make_schedule(plan.schedule, alone, own_microbatches)
    check_schedule(made, alone, own_microbatches)
    return True


def _check_prediction(plan: Plan, where: str) -> None:
    """Raise PlanError where the prediction is for other stages or ranks than the plan's."""
    prediction, ranks = plan.prediction, len(plan.orders)
    counts = (
        ("predicted stages", len(prediction.stages), "stages", len(plan.stages)),
        ("peaks of ranks", len(prediction.rank_peak_bytes), "ranks", ranks),
        ("bytes on hosts", len(prediction.rank_host_bytes or ()) or ranks, "ranks", ranks),
    )
    for listed, count, what, wanted in counts:
        if count != wanted:
            raise PlanError(f"{where}: it has {count} {listed} for {wanted} {what}")
    lacking = [s for s, one in enumerate(prediction.stages) if one.pair_saving is msgspec.UNSET]
    if lacking and has_pairs(schedule_of(plan)):
        raise PlanError(
            f"{where}: its orders have overlapped pairs, and stage {lacking[0]} has no pair_saving in the "
            "prediction; solve with a profile that has pair times"
        )
    used = {rank for stage in plan.stages for rank in stage.ranks}
    for index, sync in enumerate(prediction.syncs):
        for rank in sync.ranks:
            if rank not in used:
                raise PlanError(f"{where}: sync {index} names rank {rank}, which has no stage")
        if not sync.ranks or len(set(sync.ranks)) < len(sync.ranks):
            raise PlanError(f"{where}: sync {index} names no ranks, or one twice: {sync.ranks}")
    for index, stage in enumerate(prediction.stages):
        if stage.in_flight > plan.num_microbatches:
            raise PlanError(
                f"{where}: stage {index} has {counted(stage.in_flight, 'microbatch')} in flight, the step "
                f"only {plan.num_microbatches}"
            )


def _check_training(plan: Plan, where: str) -> None:
    """Raise PlanError where the training contradicts the profile's dtype."""
    said = msgspec.structs.asdict(plan.training)
    try:
        make_training(plan.origin.dtype, **said)
    except AutopartError as error:
        raise PlanError(f"{where}: {error}") from None


def _check_layers(plan: Plan, where: str) -> None:
    """Raise PlanError where a stage is empty, or a layer is on two stages."""
    if not plan.stages:
        raise PlanError(f"{where}: it has no stages")
    home: dict[str, int] = {}
    for index, stage in enumerate(plan.stages):
        if not stage.layers or not stage.ranks:
            raise PlanError(
                f"{where}: stage {index} has no {'ranks' if stage.layers else 'layers'}"
            )
        for name in stage.layers:
            if name in home:
                raise PlanError(f"{where}: layer '{name}' is on stages {home[name]} and {index}")
            home[name] = index
        _check_policies(stage, f"{where}: stage {index}")


def _check_policies(stage: Stage, where: str) -> None:
    """Raise PlanError where a policy names a layer outside the stage, or a layer has two policies."""
    found: dict[str, str] = {}
    for policy in POLICY_LISTS:
        for name in getattr(stage, policy):
            if name not in stage.layers:
                raise PlanError(
                    f"{where} lists layer '{name}' under {policy}, but does not have it"
                )
            if name in found:
                raise PlanError(f"{where} lists layer '{name}' under {found[name]} and {policy}")
            found[name] = policy


def load_plan(path: Path | str) -> Plan:
    """Read a plan file; raises FileError, or PlanError where it contradicts itself."""
    plan = read_file(Path(path), Plan, FORMAT, VERSION)
    check_plan(plan, where=str(path))
    _check_prediction(plan, where=str(path))
    return plan


def save_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan file, whole or not at all; raises FileError where it could not be read again."""
    write_record(Path(path), plan, FORMAT, VERSION)
