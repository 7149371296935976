"""What a run of a plan measured, beside what the plan predicted."""

from typing import Annotated

import msgspec

from autopart.plan import StagePrediction
from autopart.schedule import Op
from autopart.units import Bytes, Count, PositiveCount, Seconds


class RunSlice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One action of the last step on one rank; seconds from the start of the step."""

    action: str
    start: Seconds
    """The rank turned to the action."""
    ready: Seconds
    """What the action needs had arrived."""
    end: Seconds


class ActionTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of action of one stage, without waiting, over all its ranks."""

    op: Op
    time: Seconds
    """The median."""
    spread: Seconds
    """Interquartile range."""
    count: PositiveCount
    """Actions that were measured."""
    core_time: Seconds | None = None
    """The median of what their thread had of a core, on a CPU with one thread."""


class SendTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long results of a stage were on their way to a rank that waited for them: from the end of the
    action that made them to the start of the one that needed them."""

    op: Op
    """Of the action that made them."""
    time: Seconds
    """The median."""
    spread: Seconds
    """Interquartile range."""
    count: PositiveCount
    """Messages that somebody waited for; the way of the others is not known."""


class RankStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one rank's time went in a step, by medians, and what it held."""

    rank: Count
    acting_time: Seconds
    """In its actions."""
    between_time: Seconds
    """Between them, without waiting."""
    waiting_time: Seconds
    """For messages to arrive or to be received."""
    sync_time: Seconds
    """Summing gradients over replicas and tied copies, with waiting for them."""
    update_time: Seconds
    peak_bytes: Bytes
    """See `RunResult.memory`."""
    tensor_bytes: Bytes | None = None
    """The most bytes of tensors that were alive in a step that counted them; None where none did."""


class StageRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage as it ran: medians over its ranks' actions in all steps but the first."""

    ranks: tuple[Count, ...]
    forward_time: Seconds
    """One microbatch, without waiting."""
    backward_time: Seconds
    """Both halves together where the backward is split."""
    busy_time: Seconds
    """Forward, backward and the stage's share, by its number of actions, of everything that its
    ranks do between actions but waiting, for one microbatch."""
    wait_time: Seconds
    """Waiting for messages to arrive or to be received, in one step."""
    sync_time: Seconds
    """Summing gradients over replicas and tied copies, with waiting for them, in one step; of the
    whole rank, as are the next two."""
    update_time: Seconds
    """The optimizer's step."""
    peak_bytes: Bytes
    """The most that one of its ranks held; see `RunResult.memory`."""
    stash_bytes: Bytes | None = None
    """The most that its microbatches in flight really kept on one of its ranks between forwards and
    backwards, to be held against `predicted.memory.stash`. Counted in the first step of several, and in
    a checked one, since counting takes time."""
    predicted: StagePrediction
    actions: tuple[ActionTimes, ...] = ()
    sends: tuple[SendTimes, ...] = ()


class CheckResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the pipeline is from the plain model; nothing is further off than docs/runtime.md
    allows (The check).

    A tensor's difference is the largest absolute difference of an element over the largest
    absolute element of the plain model's tensor, unless its field says otherwise.
    """

    tolerance: float
    floor: float
    """Differences up to this share of the model's largest gradient count as rounding."""
    losses: float
    """The largest relative difference of a step's loss."""
    gradients: float
    """The largest difference of a gradient of the first step; what is mere rounding counts as 0."""
    worst_gradient: str
    """The parameter that it belongs to."""
    parameters: float
    """The largest difference of a parameter after the last step: the root mean square of the
    difference over that of the way that the parameter has gone since the start."""
    worst_parameter: str
    first_update: float | None = None
    """The largest difference of a parameter after the first step; None with AdamW, which divides
    each element's gradient by its own size."""
    num_parameters: PositiveCount
    """Parameters compared, each on every rank that holds it."""
    num_buffers: Count
    """Buffers compared; 0 with replicas, each of which sees only its own microbatches."""
    dropouts: Count
    """Dropout operations that were switched off in both models."""
    notes: tuple[str, ...] = ()
    """What was not compared, and why."""


class AsynchronousRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run without flushes held beside what its schedule says; see docs/schedules.md."""

    schedule: str
    updates: PositiveCount
    microbatches_per_update: PositiveCount
    versions: tuple[PositiveCount, ...]
    """Of each stage: the most versions of its weights that a rank held at once, the newest included."""
    predicted_versions: tuple[PositiveCount, ...]
    predicted_period: Seconds
    """From one microbatch to the next once the pipeline is full."""
    predicted_peak_bytes: tuple[Bytes, ...]
    """Of a rank of each stage, the versions of its weights included."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of a plan on real ranks."""

    model: str
    device: str
    """cpu, or the name of the GPU."""
    backend: str
    """What carried the messages: gloo or nccl."""
    dtype: str
    optimizer: str
    num_ranks: PositiveCount
    num_microbatches: PositiveCount
    microbatch_size: PositiveCount
    losses: tuple[float, ...]
    """The mean loss of each step's batch."""
    step_times: tuple[Seconds, ...]
    """Each step from the moment that all ranks stood ready until the last rank's update."""
    step_time: Seconds
    """The median of `step_times`, without the first where there are more."""
    predicted_step_time: Seconds
    error: float
    """predicted / measured - 1."""
    stages: tuple[StageRun, ...]
    memory: Annotated[str, msgspec.Meta(description="how peak_bytes was measured")]
    check: CheckResult | None = None
    ranks: tuple[RankStep, ...] = ()
    asynchronous: AsynchronousRun | None = None
    """For a run without flushes; `step_times` are then the times from batch to batch."""
    trace: tuple[tuple[RunSlice, ...], ...] = ()
    """For each rank its actions in the last step."""
    notes: tuple[str, ...] = ()


class OneDeviceResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ranks of a plan, one after the other on one device, with stand-ins for their neighbours."""

    model: str
    device: str
    dtype: str
    optimizer: str
    steps: PositiveCount
    """Of each rank, the first of which does not count where there are more."""
    stages: tuple[StageRun, ...]
    """`wait_time` and `sync_time` are those of no one: 0."""
    ranks: tuple[RankStep, ...]
    """Those that were run: of replicas, which do the same work, the first."""
    memory: str
    """How `peak_bytes` was measured."""
    trace: tuple[tuple[RunSlice, ...], ...]
    """For each rank its actions in its last step; none for one that was not run."""
    notes: tuple[str, ...] = ()
