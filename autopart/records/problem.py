"""The problem: a solver's whole input in one value."""

from typing import Literal

import msgspec

from autopart.records.cluster import Cluster
from autopart.records.group_choice import GroupDemand
from autopart.records.layer_graph import LayerGraph
from autopart.records.training import Training
from autopart.schedules.catalogue import KINDS
from autopart.units import Count, PositiveCount

CLASSIC = ("gpipe", "1f1b")
"""The schedules that every framework runs: one stage per rank, whole backwards."""
CUSTOM = "custom"
"""The schedule name for orders that no named schedule gives."""
SCHEDULES = (
    *(kind.name for kind in KINDS.values() if not (kind.bidirectional or kind.pairs or kind.lends)),
    CUSTOM,
)
"""The schedules that `auto` tries."""
BIDIRECTIONAL = tuple(kind.name for kind in KINDS.values() if kind.bidirectional)
"""The schedules with two pipelines over the same ranks. A plan has one only where its name is asked for."""
LENDING = tuple(kind.name for kind in KINDS.values() if kind.lends)
"""The schedules whose ranks lend stash to other ranks. A plan has one only where its name is asked for."""

PAIRED = tuple(kind.name for kind in KINDS.values() if kind.pairs)
"""The schedules with overlapped pairs. A plan has one only where its name is asked for."""

Objective = Literal["step", "period", "bottleneck"]
"""The minimised seconds: the simulated step, the period of steps back to back, or the bottleneck."""
OBJECTIVES: tuple[Objective, ...] = ("step", "period", "bottleneck")

Recomputing = Literal["never", "auto", "selective", "always"]
"""Which layers may be recomputed; see `Demands.recompute`."""
RECOMPUTING: tuple[Recomputing, ...] = ("never", "auto", "selective", "always")
Offloading = Literal["never", "auto", "always"]
"""Whether something may lie in host memory; see `Demands.offload`."""
OFFLOADING: tuple[Offloading, ...] = ("never", "auto", "always")


def splits_backward(schedule: str) -> bool:
    """Whether a schedule's orders may split backwards into I and W."""
    return schedule == CUSTOM or KINDS[schedule].splits_backward


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer that must be on one stage."""

    layer: str
    """The layer's name."""
    stage: Count
    """The stage, counted from 0."""


class Demands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choices that the user fixed before the search. A null leaves the choice to the planner."""

    num_stages: PositiveCount | None = None
    """How many stages the plan must have; null for any number."""
    num_replicas: PositiveCount | None = None
    """How many replicas every stage must have; null for any number."""
    replicas_per_stage: bool = False
    """Whether stages may have different numbers of replicas."""
    stages_per_rank: PositiveCount | None = None
    """How many stages each rank must have; null for any number that a schedule takes."""
    schedules: tuple[str, ...] = CLASSIC
    """The schedules to choose from. "custom" adds orders without a name, on the others' placements."""
    pins: tuple[Pin, ...] = ()
    """Layers that must be on a given stage."""
    same_stage: tuple[tuple[str, ...], ...] = ()
    """Groups of layers, each of which must share a stage."""
    different_stage: tuple[tuple[str, ...], ...] = ()
    """Groups of layers in which no two may share a stage."""
    recompute: Recomputing = "never"
    """Which layers may be recomputed: none, layers that memory requires, or all.

    "selective" recomputes the cheap part in all layers."""
    offload: Offloading = "never"
    """Which layers without recompute may offload their stash: none, layers that memory requires, or all."""
    offload_optimizer: Offloading = "never"
    """Which stages keep optimizer state and master copies in host memory: none, "auto", or all.

    "auto" takes the stages that do not fit otherwise, or whose ranks are busy for less time so."""
    recompute_layers: tuple[str, ...] = ()
    """Layers that must be recomputed."""
    selective_layers: tuple[str, ...] = ()
    """Layers whose cheap part must be recomputed."""
    offload_layers: tuple[str, ...] = ()
    """Layers that must be offloaded."""
    keep_layers: tuple[str, ...] = ()
    """Layers that must keep their stash."""
    group: GroupDemand | msgspec.UnsetType = msgspec.UNSET
    """The rank groups to choose from; absent where each rank is one GPU."""


def keeps_all_stash(demands: Demands) -> bool:
    """Whether every layer must keep its stash on the device."""
    named = demands.recompute_layers or demands.selective_layers or demands.offload_layers
    return demands.recompute == "never" and demands.offload == "never" and not named


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer graph to be cut for a cluster."""

    graph: LayerGraph
    """The layers, with their seconds and bytes for one microbatch."""
    cluster: Cluster
    """The ranks to use."""
    microbatch_size: PositiveCount
    """Samples per microbatch."""
    num_microbatches: PositiveCount
    """Microbatches per optimizer step, over all replicas together."""
    training: Training = Training()
    """Optimizer and precisions."""
    demands: Demands = Demands()
    """Choices that the user fixed before the search."""
    objective: Objective = "step"
    """The minimised seconds."""
