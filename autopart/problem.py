"""Everything that a solver is told, as one value."""

from typing import Literal

import msgspec

from autopart.cluster import Cluster
from autopart.graph import LayerGraph
from autopart.schedules import KINDS
from autopart.training import Training
from autopart.units import Count, PositiveCount

CLASSIC = ("gpipe", "1f1b")
"""The schedules that every framework runs: one stage a rank, whole backwards."""
CUSTOM = "custom"
"""The name of orders that no named schedule gives."""
SCHEDULES = (*(kind.name for kind in KINDS.values() if not kind.bidirectional), CUSTOM)
"""What a plan can follow; the bidirectional ones hold every layer twice, which no plan can say."""

Objective = Literal["step", "bottleneck"]
"""What is minimised: the simulated step, or how long it keeps its busiest rank occupied."""
OBJECTIVES: tuple[Objective, ...] = ("step", "bottleneck")

Recomputing = Literal["never", "auto", "selective", "always"]
RECOMPUTING: tuple[Recomputing, ...] = ("never", "auto", "selective", "always")
Offloading = Literal["never", "auto", "always"]
OFFLOADING: tuple[Offloading, ...] = ("never", "auto", "always")


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer that must lie on one stage (counted from 0)."""

    layer: str
    stage: Count


class Demands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user fixed beforehand; None and several schedules leave the choice to the planner."""

    num_stages: PositiveCount | None = None
    num_replicas: PositiveCount | None = None
    """Of every stage."""
    replicas_per_stage: bool = False
    """Whether each stage may have a number of replicas of its own."""
    stages_per_rank: PositiveCount | None = None
    schedules: tuple[str, ...] = CLASSIC
    """With "custom" among them, orders of the plan's own too, on the placements of the others."""
    pins: tuple[Pin, ...] = ()
    same_stage: tuple[tuple[str, ...], ...] = ()
    """Groups of layers, each of which must share a stage."""
    different_stage: tuple[tuple[str, ...], ...] = ()
    """Groups of layers, of which no two may share a stage."""
    recompute: Recomputing = "never"
    """Whether the layers' stash is kept, given up where memory asks for it, or always given up: all of it,
    or what is cheap to compute again."""
    offload: Offloading = "never"
    """Whether the stash of what is not recomputed goes to the host: where memory asks for it, or always."""
    offload_optimizer: Offloading = "never"
    """Whether optimizer state and master copies of a stage lie on the host: where its rank is busy for a
    shorter step so, or always."""
    recompute_layers: tuple[str, ...] = ()
    """Layers that are recomputed in any case."""
    selective_layers: tuple[str, ...] = ()
    """Layers whose cheap part is recomputed in any case."""
    offload_layers: tuple[str, ...] = ()
    """Layers that are offloaded in any case."""
    keep_layers: tuple[str, ...] = ()
    """Layers that keep their stash in any case."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer graph to be cut for a cluster."""

    graph: LayerGraph
    cluster: Cluster
    microbatch_size: PositiveCount
    num_microbatches: PositiveCount
    """Microbatches of one optimizer step, over all replicas together."""
    training: Training = Training()
    demands: Demands = Demands()
    objective: Objective = "step"
