"""A run's result: measured seconds and bytes next to the predicted ones."""

from pathlib import Path
from typing import Annotated

import msgspec

from autopart.errors import FileError
from autopart.records.expert_load import LayerLoad, check_load
from autopart.records.files import decode_json, read_content
from autopart.records.group_variants import LayerCollectives
from autopart.records.pace import Pace, PaceComparison
from autopart.records.prediction import StagePrediction
from autopart.records.readings import Share
from autopart.schedules.actions import Op
from autopart.units import Bytes, Count, PositiveCount, Seconds


class RunSlice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One action in the last step on one rank, in seconds from the step's start."""

    action: str
    """The action as text, `2F0`."""
    start: Seconds
    """When the rank turned to the action."""
    ready: Seconds
    """When all that the action needs had arrived."""
    end: Seconds
    """When the action ended."""


class ActionTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of action on one stage, without waiting, over all its ranks."""

    op: Op
    """Forward (F), backward (B), input-gradient half (I) or weight-gradient half (W)."""
    time: Seconds
    """Median seconds."""
    spread: Seconds
    """Interquartile range in seconds."""
    count: PositiveCount
    """How many actions were measured."""
    core_time: Seconds | None = None
    """Median core seconds that the action's thread had, on a CPU with one thread."""


class SendTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds that a stage's results took to reach a rank that waited for them.

    They run from the end of the sending action to the start of the action that needs the result.
    """

    op: Op
    """The kind of action that made the results."""
    time: Seconds
    """Median seconds."""
    spread: Seconds
    """Interquartile range in seconds."""
    count: PositiveCount
    """How many messages a rank waited for. Times for the other messages are not known."""


class RankStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rank's median seconds per step by use, and its peak bytes."""

    rank: Count
    """The rank."""
    acting_time: Seconds
    """Seconds in actions."""
    between_time: Seconds
    """Seconds between actions, without waiting."""
    waiting_time: Seconds
    """Seconds that the rank waited for messages to arrive or to be received."""
    sync_time: Seconds
    """Seconds in gradient sums over replicas and tied copies, including waiting for them.

    Seconds beside actions do not count."""
    hidden_sync_time: Seconds | None = None
    """Seconds in which gradient sums ran beside actions; null where none did."""
    update_time: Seconds
    """Seconds in the optimizer's step, and in a tensor group's sums once per step."""
    peak_bytes: Bytes
    """Peak bytes, measured as `RunResult.memory` says."""
    tensor_bytes: Bytes | None = None
    """Most tensor bytes alive at once, in a step that counted them; null where none did."""
    pace: Pace | None = None
    """The machine's pace on this rank, before, between and after the steps; null where not sampled."""
    core_share: Share | None = None
    """Share of the actions' time in which their threads had a core; null where not known."""


class StageRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage in a run: medians over its ranks' actions in all steps except the first."""

    ranks: tuple[Count, ...]
    """The stage's ranks."""
    forward_time: Seconds
    """Forward seconds for one microbatch, without waiting."""
    backward_time: Seconds
    """Backward seconds for one microbatch, I and W together where the backward is split."""
    busy_time: Seconds
    """Seconds per microbatch that a rank is busy with the stage: forward, backward and a share.

    The share is the rank's time between actions, without waiting, split by numbers of actions."""
    wait_time: Seconds
    """Seconds per step that ranks waited for messages to arrive or to be received."""
    sync_time: Seconds
    """Seconds per step in gradient sums, including waiting for them, over the whole rank."""
    update_time: Seconds
    """Seconds per step in the optimizer's step, and in a tensor group's sums once per step, over the whole rank."""
    peak_bytes: Bytes
    """Largest peak among the stage's ranks, over the whole rank; see `RunResult.memory`."""
    stash_bytes: Bytes | None = None
    """Most stash that the microbatches in flight really kept on one rank; null where not counted.

    Compare it with `predicted.memory.stash`. Counting takes time, so it is done only in the first
    of several steps, and in a checked step."""
    predicted: StagePrediction
    """The plan's prediction for the stage."""
    actions: tuple[ActionTimes, ...] = ()
    """Measured seconds by kind of action."""
    sends: tuple[SendTimes, ...] = ()
    """Measured seconds for sends, by the action that made them."""


class CheckResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Differences between the pipeline and the plain model, all within docs/runtime.md (The check).

    A tensor's difference is the largest absolute difference between elements, divided by the plain
    model's largest absolute element, unless the field says otherwise.
    """

    tolerance: float
    """The largest difference that is allowed."""
    floor: float
    """Share of the model's largest gradient up to which differences count as rounding."""
    losses: float
    """The largest relative difference between losses in one step."""
    gradients: float
    """The largest difference between gradients in the first step; mere rounding counts as 0."""
    worst_gradient: str
    """The parameter whose gradient differs most."""
    parameters: float
    """The largest difference between parameters after the last step.

    It is the difference's root mean square, divided by the root mean square of the parameter's change
    since the start."""
    worst_parameter: str
    """The parameter that differs most after the last step."""
    first_update: float | None = None
    """The largest difference between parameters after the first step; null with AdamW.

    AdamW divides each element's gradient by its own size."""
    num_parameters: PositiveCount
    """How many parameters were compared, each on every rank that has it."""
    num_buffers: Count
    """How many buffers were compared; 0 with replicas, each of which sees only its own microbatches."""
    dropouts: Count
    """How many dropout operations in recurrent networks were switched off in both models."""
    notes: tuple[str, ...] = ()
    """Tensors that were not compared, with the reasons, and random numbers that were seeded."""


class AsynchronousRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An asynchronous run's weight versions, with the schedule's predictions; see docs/schedules.md."""

    schedule: str
    """The asynchronous schedule's name."""
    updates: PositiveCount
    """How many updates the run made."""
    microbatches_per_update: PositiveCount
    """Microbatches per optimizer step."""
    versions: tuple[PositiveCount, ...]
    """For each stage the most weight versions on one rank at once, including the newest and predicted ones."""
    predicted_versions: tuple[PositiveCount, ...]
    """For each stage the weight versions that the schedule needs."""
    predicted_period: Seconds
    """Seconds from one microbatch to the next once the pipeline is full."""
    predicted_peak_bytes: tuple[Bytes, ...]
    """For each stage one rank's peak bytes, including all weight versions."""


class RunResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of a plan on real ranks."""

    model: str
    """The model as the user named it."""
    device: str
    """cpu, or the GPU's name."""
    backend: str
    """The backend that carried the messages: gloo or nccl."""
    dtype: str
    """The weights' dtype."""
    optimizer: str
    """The optimizer's name."""
    num_ranks: PositiveCount
    """How many ranks ran."""
    num_microbatches: PositiveCount
    """Microbatches per step, over all replicas together."""
    microbatch_size: PositiveCount
    """Samples per microbatch."""
    losses: tuple[float | None, ...]
    """For each step the mean loss over its batch; null where it is NaN or infinite."""
    step_times: tuple[Seconds, ...]
    """For each step the seconds from all ranks ready to the last rank's update."""
    step_time: Seconds
    """Median step seconds, without the first step where there are more."""
    predicted_step_time: Seconds
    """Step seconds that the plan predicts."""
    error: float
    """Predicted step seconds divided by measured ones, minus 1."""
    pace: PaceComparison | None = None
    """The run's pace beside the profile's; null where the run sampled none."""
    stages: tuple[StageRun, ...]
    """For each stage its measured seconds and bytes."""
    memory: Annotated[str, msgspec.Meta(description="how peak_bytes was measured")]
    """How peak bytes were measured."""
    check: CheckResult | None = None
    """Differences from the plain model; null where the run was not checked."""
    ranks: tuple[RankStep, ...] = ()
    """For each rank its seconds by use, and its peak bytes."""
    asynchronous: AsynchronousRun | None = None
    """Weight versions in an asynchronous run. `step_times` then go from batch to batch."""
    trace: tuple[tuple[RunSlice, ...], ...] = ()
    """For each rank its actions in the last step."""
    expert_loads: tuple[LayerLoad, ...] = ()
    """The imbalance of each layer's expert ranks over the run; empty where no entries are exchanged.

    It stands for every degree that divides the experts: the run knows how many entries each expert had."""
    notes: tuple[str, ...] = ()
    """Remarks on the figures."""


class OneDeviceResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan's ranks, run one after the other on one device with fake neighbours."""

    model: str
    """The model as the user named it."""
    device: str
    """cpu, or the GPU's name."""
    dtype: str
    """The weights' dtype."""
    optimizer: str
    """The optimizer's name."""
    steps: PositiveCount
    """Steps per rank. The first does not count where there are more."""
    stages: tuple[StageRun, ...]
    """For each stage its measured seconds and bytes. Nothing waits here: wait and sync times are 0."""
    ranks: tuple[RankStep, ...]
    """The ranks that were run. Replicas do the same work, so only the first is run."""
    memory: str
    """How peak bytes were measured."""
    trace: tuple[tuple[RunSlice, ...], ...]
    """For each rank its actions in its last step; empty where it was not run."""
    collectives: tuple[LayerCollectives, ...] = ()
    """The collectives inside a tensor group, which the ranks left out; empty with tensor degree 1."""
    notes: tuple[str, ...] = ()
    """Remarks on the figures."""


def load_run_result(path: Path | str) -> RunResult:
    """Read what `autopart run --json` printed; raises FileError on anything else, and ProfileError for impossible loads."""
    content = read_content(Path(path))
    try:
        found = decode_json(content, RunResult, str(path))
    except FileError as error:
        raise FileError(f"{error}; give what 'autopart run --json' printed") from None
    for load in found.expert_loads:
        check_load(load, str(path))
    return found
