"""A plan: which layers run where, in which order, what that should cost, and how good it is."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from autopart.cluster import Cluster
from autopart.errors import AutopartError, PlanError, ScheduleError
from autopart.files import encode, read_file, write_file
from autopart.problem import Demands, Objective
from autopart.schedule import Schedule, check_schedule, format_order, parse_order
from autopart.training import Training, make_training
from autopart.units import Bytes, Count, PositiveCount, Seconds

FORMAT = "autopart-plan"
VERSION = 2


class Stage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Layers that run together; its replicas are its ranks."""

    layers: tuple[str, ...]
    ranks: tuple[Count, ...]
    recompute: tuple[str, ...] = ()
    """Layers that run their whole forward again in backward."""
    selective: tuple[str, ...] = ()
    """Layers that run only their cheap part again."""
    offload: tuple[str, ...] = ()
    """Layers whose stash waits in the memory of the host."""
    optimizer_on_host: bool = False
    """Whether optimizer state and master copies wait in the memory of the host, but for the step."""


TREATED = ("recompute", "selective", "offload")
"""The lists of a stage; a layer in none of them simply keeps its stash."""


class MemoryUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bytes of one rank at its peak, by what they are: those of `ON_DEVICE` add up to the peak."""

    weights: Bytes
    """And the model's buffers."""
    gradients: Bytes
    """In the precision in which they are summed."""
    master: Bytes
    """Float32 copies of 16-bit weights, which the optimizer steps."""
    optimizer: Bytes
    """Its state, without master copies."""
    versions: Bytes
    """Further copies of the weights, for microbatches that an older step has begun."""
    stash: Bytes
    """Over all microbatches in flight."""
    workspace: Bytes
    receives: Bytes
    """The next activations, and two gradients under way."""
    sends: Bytes
    """Two gradients under way; activations are part of the stash until they are sent."""
    batch: Bytes
    """What the rank reads of the batch, for all its microbatches of a step."""
    reserve: Bytes
    """What the framework holds for itself."""
    host: Bytes
    """On the host, beside all these."""
    recomputed: Bytes
    """Of the workspace, what comes back for a while of the stash that recomputation freed."""
    loss_stash: Bytes
    """Of the stash, the logits and what the loss keeps inside."""
    loss_workspace: Bytes
    """Of the workspace, what the loss's transient is larger than any other layer's."""


ON_DEVICE = (
    "weights",
    "gradients",
    "master",
    "optimizer",
    "versions",
    "stash",
    "workspace",
    "receives",
    "sends",
    "batch",
    "reserve",
)
"""The fields of `MemoryUse` that add up to the peak."""
HELD_ONCE = ("workspace", "reserve")
"""Those that a rank holds once, however many stages it has."""
MOVING = ("stash", "workspace", "receives", "sends")
"""Those that come and go within a step."""
LASTING = tuple(kind for kind in ON_DEVICE if kind not in (*MOVING, "reserve"))
"""Those that a rank holds of each of its stages from the start of a step to its end."""


class MovingBytes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes and goes on a rank of one stage beside the stash, for one microbatch."""

    waiting: Bytes = 0
    """Where the backward is split, kept from I to W in place of the stash."""
    activations: Bytes = 0
    """Received from the stage before."""
    gradients: Bytes = 0
    """Received from the stage behind, and copies of those that are handed on as they are."""
    sent: Bytes = 0
    """Gradients for the stage before."""
    workspace: Bytes = 0
    """The transient of F and of B."""
    input_grad_workspace: Bytes = 0
    """The transient of I."""
    weight_grad_workspace: Bytes = 0
    """The transient of W."""


class StagePrediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one rank of a stage is expected to need."""

    forward_time: Seconds
    """The layers' own time for one microbatch, without sends and fixed costs."""
    backward_time: Seconds
    weight_grad_time: Seconds
    """The part of the backward that W runs where it is split into I and W."""
    split_time: Seconds = 0.0
    """What forward and backward take more where the backward is split; I takes it on."""
    busy_time: Seconds
    """Forward, backward, fixed costs and what sends keep the rank busy, for one microbatch."""
    send_time: Seconds
    """The activations' way to the next stage, for one microbatch; 0 for the last stage."""
    send_back_time: Seconds
    """The gradients' way to the previous stage, for one microbatch; 0 for the first stage."""
    update_time: Seconds
    """The optimizer's step, once a batch."""
    in_flight: PositiveCount
    stash_bytes: Bytes
    """Kept on the device for one microbatch in flight."""
    moving: MovingBytes = MovingBytes()
    memory: MemoryUse
    peak_bytes: Bytes


class Sync(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One all-reduce of gradients at the end of a step: over the replicas of a stage, or over the
    stages that hold copies of a tied parameter."""

    what: str
    ranks: tuple[Count, ...]
    time: Seconds


class Prediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the simulator says of the plan."""

    step_time: Seconds
    bubble: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    """Idle share of rank-seconds over the ranks in use."""
    rank_peak_bytes: tuple[Bytes, ...]
    """Of each rank at its peak; 0 for an idle one."""
    stages: tuple[StagePrediction, ...]
    syncs: tuple[Sync, ...]


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No plan for the same problem has a smaller objective than `lower_bound`."""

    lower_bound: Seconds
    """Of the step, or of the bottleneck, as the plan's objective says; the smallest over all sizes."""
    gap: Annotated[float, msgspec.Meta(ge=0.0)]
    """The plan's own objective / lower_bound - 1."""
    simulated: Count
    """Partitions that the closed-form bounds alone do not exclude; the check simulates them."""
    assumes: str
    """What the bound is a bound over."""


class OrderSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a plan's own orders come from, and what the memory limit cost them."""

    method: str
    """The named schedule that they started from, or list scheduling; and local search, if it helped."""
    step_time_without_cap: Seconds
    """Of the fastest orders found if every rank had room for all microbatches."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the plan was made from, so that a run can be held against it."""

    model: str
    graph_hash: str
    profile_hash: str
    method: Literal["measured", "analytic", "imported"]
    dtype: str
    solver: str
    solve_seconds: Seconds
    autopart: str
    orders: OrderSource | None = None
    """Of orders that no named schedule gives."""


class SearchedSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One microbatch size that was searched, and what is proven of all plans with it."""

    microbatch_size: PositiveCount
    profile_hash: str
    """Of the profile that its times and bytes come from."""
    profiled_size: PositiveCount
    """The profile's own size; the times and bytes were scaled where it is another."""
    lower_bound: Seconds | None
    """No plan of this size has a smaller objective; null where this size has no plan at all."""
    simulated: Count
    """The share of the certificate's `simulated` that this size has."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A complete decision, with its prediction and its certificate."""

    format: Literal["autopart-plan"] = FORMAT
    version: Literal[2] = VERSION
    origin: Origin
    cluster: Cluster
    microbatch_size: PositiveCount
    num_microbatches: PositiveCount
    """Microbatches of one optimizer step, over all replicas together."""
    training: Training
    demands: Demands
    objective: Objective = "step"
    """What the plan minimises, and its certificate bounds."""
    sizes: tuple[SearchedSize, ...] = ()
    """All microbatch sizes that were searched, the plan's own among them."""
    stages: tuple[Stage, ...]
    schedule: str
    """The name of the schedule that the orders follow."""
    orders: tuple[str, ...]
    """For each rank its actions, separated by spaces."""
    prediction: Prediction
    certificate: Certificate


def stage_ranks(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """The ranks of each stage."""
    return tuple(stage.ranks for stage in plan.stages)


def way_of_layers(stage: Stage) -> dict[str, str]:
    """For each layer of a stage the way that its stash goes: "keep", or the name of its list."""
    found = dict.fromkeys(stage.layers, "keep")
    for way in TREATED:
        found |= dict.fromkeys(getattr(stage, way), way)
    return found


def schedule_of(plan: Plan) -> Schedule:
    """The plan's orders as actions; raises ScheduleError where one cannot be read."""
    return tuple(parse_order(order) for order in plan.orders)


def orders_of(schedule: Schedule) -> tuple[str, ...]:
    """The reverse of `schedule_of`."""
    return tuple(format_order(order) for order in schedule)


def num_ranks(plan: Plan) -> int:
    """Processes that the plan runs on."""
    return len(plan.orders)


def check_plan(plan: Plan, where: str = "plan") -> None:
    """Raise PlanError unless the plan is whole in itself: every layer once, every rank at most once
    in a stage, orders complete and free of deadlock. Whether it matches a profile is `verify`'s question."""
    _check_layers(plan, where)
    for index, stage in enumerate(plan.stages):
        if len(set(stage.ranks)) < len(stage.ranks):
            raise PlanError(f"{where}: stage {index} names a rank twice: {stage.ranks}")
    beyond = max(rank for stage in plan.stages for rank in stage.ranks)
    if beyond >= len(plan.orders):
        raise PlanError(
            f"{where}: rank {beyond} has a stage but no order ({len(plan.orders)} orders)"
        )
    _check_training(plan, where)
    try:
        check_schedule(schedule_of(plan), stage_ranks(plan), plan.num_microbatches)
    except ScheduleError as error:
        raise ScheduleError(f"{where}: {error}") from None


def _check_training(plan: Plan, where: str) -> None:
    said = msgspec.structs.asdict(plan.training)
    try:
        make_training(plan.origin.dtype, **said)
    except AutopartError as error:
        raise PlanError(f"{where}: {error}") from None


def _check_layers(plan: Plan, where: str) -> None:
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
        _check_ways(stage, f"{where}: stage {index}")


def _check_ways(stage: Stage, where: str) -> None:
    """Whether each layer that is not simply kept is the stage's own, and treated in one way."""
    found: dict[str, str] = {}
    for way in TREATED:
        for name in getattr(stage, way):
            if name not in stage.layers:
                raise PlanError(f"{where} treats layer '{name}', which it does not have")
            if name in found:
                raise PlanError(f"{where} lists layer '{name}' under {found[name]} and {way}")
            found[name] = way


def load_plan(path: Path | str) -> Plan:
    """Read a plan file strictly; raises FileError or PlanError."""
    plan = read_file(Path(path), Plan, FORMAT, VERSION)
    check_plan(plan, where=str(path))
    return plan


def save_plan(plan: Plan, path: Path | str) -> None:
    """Write a plan file whole or not at all."""
    write_file(Path(path), encode(plan))
