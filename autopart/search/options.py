"""The options for a solve: one record, which the planner and the command line share."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TypedDict

from autopart.records.expert_load import LayerLoad

PER_STAGE = "per-stage"
"""The word for a tensor degree of each stage's own."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SolveOptions:
    """Everything that a user may fix for a solve, in the user's own words.

    A default leaves the choice to the planner, or takes the usual training. `make_problem` checks
    the words and raises AutopartError on an unknown one.
    """

    num_microbatches: int | None = None
    """Microbatches per step, over all replicas together. Excludes `global_batch`."""
    global_batch: int | None = None
    """Samples per optimizer step, over all replicas together. Excludes `num_microbatches`."""
    microbatch_sizes: Sequence[int] = ()
    """Microbatch sizes to search, in samples. Empty: the profiles' own sizes.

    A size without a profile is scaled from the nearest profile (records/microbatch_sizes.py).
    """
    objective: str = "step"
    """The seconds to minimise: `step`, the simulated step; `period`, the seconds from step to step where
    steps run back to back; or `bottleneck`, the busy time on the step's busiest rank."""
    target: str | None = None
    """The framework that the plan is for (`autopart.records.frameworks.FRAMEWORKS`). None: the executor.

    It sets the defaults of `sync`, `sends`, `schedule` and `gradient_dtype`.
    """
    schedule: str | None = None
    """Schedules to choose from: one name, several with commas between, or `auto`.

    `auto` tries every schedule that a plan can follow, and the plan's own orders. None: GPipe and 1F1B,
    as far as the target runs them.
    """
    solver: str = "auto"
    """The solver: `auto`, `dp` and `ilp` are exact; `uniform` and `parameters` are baselines."""
    num_stages: int | None = None
    """Stages in the pipeline. None: the planner chooses."""
    num_replicas: int | None = None
    """Replicas per stage, equal for all stages. None: the planner chooses."""
    replicas_per_stage: bool = False
    """Whether each stage may have its own replica count. Excludes `num_replicas`."""
    stages_per_rank: int | None = None
    """Stages per rank (virtual stages). None: the planner chooses, where the schedule allows it."""
    tensor: int | str = 1
    """GPUs that run each layer together (the tensor degree), or `auto`: every degree of the profile that divides
    the GPUs of a node. `per-stage`: also plans whose stages have degrees of their own."""
    sequence_parallel: str = "auto"
    """Whether degrees above 1 have sequence parallelism: `on`, `off`, or `auto`: both."""
    context: str = "1"
    """GPUs that each have their part of every sequence (context degrees), with commas between, or `auto`: every degree
    of the profile that fills nodes with the other degrees."""
    context_exchange: str = "auto"
    """How they exchange keys and values: `ring`, `gather`, or `auto`: both."""
    expert: str = "1"
    """GPUs that each have their part of a microbatch's samples and of the experts (expert degrees), as `context`."""
    expert_imbalance: float | str | Sequence[LayerLoad] | None = None
    """How uneven the loads of expert ranks are: the fullest divided by the mean, `measured` for the profile's figures, or
    `expert_loads` of a run. None: balanced."""
    shard: str = "none"
    """State that GPUs share: `none`; `zero1`, as `zero1=True`; `zero2`: gradients and optimizer state over the GPUs of
    a group; `zero3`: weights, too. Several with commas between are searched, and with `auto` all that the target has."""
    shard_degree: int | None = None
    """GPUs of a group that share state under zero2 and zero3. None: every number that fills nodes is searched."""
    pins: Mapping[str, int] | None = None
    """The stage for each pinned layer, counted from 0."""
    same_stage: Sequence[Sequence[str]] = ()
    """Layer groups; all layers in a group share one stage."""
    different_stage: Sequence[Sequence[str]] = ()
    """Layer groups; no two layers in a group share a stage."""
    recompute: str | None = None
    """Layers that drop their stash and run their forward again in backward: `never`, `auto`,
    `selective` or `always`. None: the layers that the model checkpoints itself.

    `auto` recomputes the layers that give the fastest step within the memory. `selective`
    recomputes the cheap part in all layers.
    """
    recompute_layers: Sequence[str] = ()
    """Layers that are always recomputed."""
    selective_layers: Sequence[str] = ()
    """Layers whose cheap part is always recomputed."""
    keep_layers: Sequence[str] = ()
    """Layers that always keep their stash."""
    offload: str = "never"
    """Layers whose stash waits in host memory: `never`, `auto` or `always`."""
    offload_layers: Sequence[str] = ()
    """Layers that are always offloaded."""
    offload_optimizer: str = "never"
    """Optimizer state and master copies in host memory: `never`, `auto` or `always`.

    `auto` moves them for the stages where this shortens their ranks' busy time.
    """
    optimizer: str = "adamw"
    """The optimizer's name, or its state in bytes per trained element, such as "6"."""
    precision: str | None = None
    """Weight dtype, the profile's own; with `-mixed` the optimizer steps float32 copies.

    None: mixed where the profile's dtype has 16 bits.
    """
    gradient_dtype: str | None = None
    """Dtype in which gradients are summed. None: the target's, or the profile's dtype."""
    zero1: bool = False
    """Whether replicas share optimizer state and master copies (ZeRO-1)."""
    sync: str | None = None
    """Whose gradient sync a step has: `end`, `overlap`, or a framework's: `megatron`, `ddp`, `fsdp2`,
    `deepspeed`. None: the target's."""
    bucket_bytes: int | None = None
    """Bytes of the buckets in which gradients are summed. None: the usual ones of `sync`."""
    sends: str | None = None
    """Whether sends wait for their receiver: `buffered` or `rendezvous`. None: the target's, or the
    cluster's own."""
    time_limit: float = 60.0
    """Seconds for the search. A search that ends early leaves a wider gap."""


class SolveKeywords(TypedDict, total=False):
    """The fields in `SolveOptions` as keywords, for `autopart.solve(profile, cluster, ...)`."""

    num_microbatches: int | None
    global_batch: int | None
    microbatch_sizes: Sequence[int]
    objective: str
    target: str | None
    schedule: str | None
    solver: str
    num_stages: int | None
    num_replicas: int | None
    replicas_per_stage: bool
    stages_per_rank: int | None
    tensor: int | str
    sequence_parallel: str
    context: str
    context_exchange: str
    expert: str
    expert_imbalance: float | str | Sequence[LayerLoad] | None
    shard: str
    shard_degree: int | None
    pins: Mapping[str, int] | None
    same_stage: Sequence[Sequence[str]]
    different_stage: Sequence[Sequence[str]]
    recompute: str | None
    recompute_layers: Sequence[str]
    selective_layers: Sequence[str]
    keep_layers: Sequence[str]
    offload: str
    offload_layers: Sequence[str]
    offload_optimizer: str
    optimizer: str
    precision: str | None
    gradient_dtype: str | None
    zero1: bool
    sync: str | None
    bucket_bytes: int | None
    sends: str | None
    time_limit: float
