"""A plan's prediction: seconds and bytes per stage, per rank and per step."""

from typing import Annotated

import msgspec

from autopart.units import MOST_AMOUNT, Bytes, Count, PositiveCount, Seconds


class MemoryUse(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One rank's bytes at its peak, by kind. The kinds in `ON_DEVICE` add up to the peak."""

    weights: Bytes
    """Weights and the model's buffers."""
    gradients: Bytes
    """Gradients, in the precision in which they are summed; 0 where the peak comes before the first backward."""
    master: Bytes
    """Master copies: float32 copies that the optimizer steps in place of 16-bit weights."""
    optimizer: Bytes
    """Optimizer state, without master copies."""
    versions: Bytes
    """Further weight versions, for microbatches that began before an update."""
    stash: Bytes
    """Stash, over all microbatches in flight."""
    workspace: Bytes
    """Transient bytes while one action runs; in the first backward also gradients that it has made."""
    receives: Bytes
    """Buffers for messages that arrive: the next activations and gradients."""
    sends: Bytes
    """Gradients that are being sent, two at most. Activations count in the stash until sent."""
    batch: Bytes
    """Model inputs that the rank reads from the batch, for all its microbatches in a step."""
    borrowed: Bytes = 0
    """Places for stash that another rank lends, kept for the whole step. Absent for 0."""
    reserve: Bytes
    """Bytes that the framework keeps for itself."""
    host: Bytes
    """Bytes in host memory, not part of the device peak."""
    recomputed: Bytes
    """The part of the workspace that recompute brings back for a while."""
    loss_stash: Bytes
    """The part of the stash that belongs to the loss: logits, and its own stash."""
    loss_workspace: Bytes
    """The part of the workspace by which the loss's transient exceeds every other layer's."""


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
    "borrowed",
    "reserve",
)
"""The kinds that add up to the peak on the device."""

MOVING = ("stash", "workspace", "receives", "sends")
"""The kinds that change within a step."""


REPEATED = ("weights", "gradients", "master", "optimizer")
"""The kinds on the device that a rank has once for a tied parameter in several of its stages."""

LASTING = tuple(kind for kind in ON_DEVICE if kind not in (*MOVING, "reserve"))
"""The kinds that do not change within a step. A rank has them for each of its stages.

Gradients are among them for frameworks that keep room for them all the time. Elsewhere they are `MovingBytes.made`."""


class RepeatedBytes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of tied parameters and values that an earlier stage on a stage's ranks has too; gradients: a later stage.

    A rank has them once. A later stage's backward comes first, so a gradient counts from there on.
    """

    weights: Bytes
    """Weights."""
    gradients: Bytes
    """Gradients, in the precision in which they are summed."""
    master: Bytes
    """Master copies on the device."""
    optimizer: Bytes
    """Optimizer state on the device, without master copies."""
    host: Bytes
    """Master copies and optimizer state in host memory."""
    stash: Bytes = 0
    """Values for one microbatch that the stage ahead hands over on the same ranks, and keeps itself."""


class MovingBytes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stage's bytes that change within a step, for one microbatch, without the stash."""

    waiting: Bytes = 0
    """Bytes that stay from I to W in place of the stash, where the backward is split."""
    activations: Bytes = 0
    """Bytes received from the previous stage."""
    gradients: Bytes = 0
    """Gradient bytes received from the next stage."""
    sent: Bytes = 0
    """Gradient bytes sent to the previous stage."""
    workspace: Bytes = 0
    """Transient bytes in F and in B, and copies of gradients that the stage passes on unchanged."""
    input_grad_workspace: Bytes = 0
    """Transient bytes in I."""
    weight_grad_workspace: Bytes = 0
    """Transient bytes in W."""
    outputs: Bytes = 0
    """Result bytes that F sends to the next stage, and that no backward on the stage needs."""
    made: Bytes = 0
    """Gradient bytes that a step's first backward on the stage makes; 0 where their room is there before."""
    first_backward: Bytes = 0
    """Transient bytes in that backward, with the gradients that it has made so far."""


class StateMessages(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Gathers of weights and sums of gradients in one kind of action, or once per step. Absent means 0."""

    gather_time: Seconds = 0.0
    """Seconds of its gathers, one after the other."""
    reduction_time: Seconds = 0.0
    """Seconds of its sums, one after the other."""
    exposed_gather_time: Seconds = 0.0
    """The part of the action's seconds in which gathers are hidden by no compute."""
    exposed_reduction_time: Seconds = 0.0
    """The same for sums."""
    gathered_bytes: Bytes = 0
    """The part of the action's workspace that whole weights need."""
    reducing_bytes: Bytes = 0
    """The part that whole gradients, and gradients on their way, need."""


class StateActions(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A stage's gathers of weights and sums of gradients among GPUs that share its state, for one microbatch."""

    forward: StateMessages = StateMessages()
    """Those of F."""
    backward: StateMessages = StateMessages()
    """Those of a whole backward."""
    input_grad: StateMessages = StateMessages()
    """Those of I."""
    weight_grad: StateMessages = StateMessages()
    """Those of W."""
    step: StateMessages = StateMessages()
    """Those once per step, in `update_time`: sums come before the optimizer's step, gathers behind it."""


class StagePrediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Predicted seconds and bytes for one rank with one stage."""

    forward_time: Seconds
    """Forward seconds for one microbatch, without sends and fixed costs."""
    backward_time: Seconds
    """Backward seconds for one microbatch, without sends and fixed costs."""
    weight_grad_time: Seconds
    """The part of the backward that W runs where the backward is split into I and W."""
    split_time: Seconds = 0.0
    """Seconds by which a split backward makes forward and backward longer. They belong to I."""
    pair_saving: Seconds | msgspec.UnsetType = msgspec.UNSET
    """Seconds by which a forward beside a backward takes less than both in turn; absent without pairs."""
    busy_time: Seconds
    """Seconds per microbatch that the rank is busy: forward, backward, fixed costs, blocking sends."""
    send_time: Seconds
    """Seconds to send one microbatch's activations to the next stage; 0 on the last stage."""
    send_back_time: Seconds
    """Seconds to send one microbatch's gradients to the previous stage; 0 on the first stage."""
    update_time: Seconds
    """Seconds per batch for the optimizer's step."""
    state: StateActions | msgspec.UnsetType = msgspec.UNSET
    """Gathers and sums where GPUs of a rank share state; absent elsewhere. Their seconds and bytes count in other fields."""
    lend_time: Seconds | msgspec.UnsetType = msgspec.UNSET
    """Seconds to lend one microbatch's stash, and to take it back. Absent where the stage lends none."""
    in_flight: PositiveCount
    """Most microbatches in flight on the rank."""
    stash_bytes: Bytes
    """Stash on the device for one microbatch in flight."""
    host_stash_bytes: Bytes | msgspec.UnsetType = msgspec.UNSET
    """Stash in host memory for one microbatch in flight; unset where no layer is offloaded."""
    moving: MovingBytes = MovingBytes()
    """Other bytes that change within a step, for one microbatch."""
    memory: MemoryUse
    """Bytes at the rank's peak, by kind, as if it had this stage alone."""
    repeated: RepeatedBytes | msgspec.UnsetType = msgspec.UNSET
    """The part of `memory` that another stage on the stage's ranks has too; absent without any."""
    peak_bytes: Bytes
    """Peak device bytes, as if the rank had this stage alone."""


class SyncParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parts of a stage's gradient sync, where some of it hides behind compute."""

    stage: Count
    """The stage."""
    buckets: Annotated[float, msgspec.Meta(ge=1.0, le=MOST_AMOUNT)]
    """Buckets of equal size that its gradients are summed in."""
    early_time: Seconds
    """Seconds of the buckets that go out during the stage's last backward, one after the other."""
    after_backward: Seconds
    """Seconds of these that are exposed where the last backward is whole."""
    after_weights: Seconds
    """The same where the last backward is W."""
    slows_backward: Seconds
    """Seconds by which a last whole backward takes longer beside them."""
    slows_weights: Seconds
    """The same for W."""
    late_time: Seconds | None = None
    """Seconds after all actions of its ranks; null where nothing is left."""
    gather_time: Seconds
    """Seconds of ZeRO-1's gather beside the next step's first forwards."""
    gather_wait: Seconds
    """Seconds of this gather that are exposed: the stage's first forward starts no sooner."""


class Sync(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gradient sync in a step.

    It runs over a stage's replicas, or over the stages that have copies of a tied parameter.
    """

    what: str
    """The gradients that are summed, in words."""
    ranks: tuple[Count, ...]
    """The ranks that take part."""
    time: Seconds
    """Seconds that all its parts take, one after the other."""
    parts: SyncParts | None = None
    """Its parts; null where the whole sync follows all actions of its ranks."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Predicted seconds and bytes from the cost model and the simulator."""

    step_time: Seconds
    """Seconds per step: the simulated makespan."""
    period: Seconds | msgspec.UnsetType = msgspec.UNSET
    """Seconds from step to step, where steps run back to back. Absent unless it is the objective."""
    bubble: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    """Idle rank-seconds divided by all rank-seconds, over the ranks in use."""
    rank_peak_bytes: tuple[Bytes, ...]
    """Peak device bytes for each rank, over all its stages; 0 for an idle rank."""
    rank_host_bytes: tuple[Bytes, ...] | msgspec.UnsetType = msgspec.UNSET
    """Bytes in host memory for each rank, over all its stages.

    Unset where each rank has one stage, and where nothing is there.
    """
    stages: tuple[StagePrediction, ...]
    """For each stage its seconds and bytes."""
    syncs: tuple[Sync, ...]
    """The gradient syncs in a step."""
