"""An answer under another planner's objective: its stages, their bottleneck and its bound."""

from typing import Literal

import msgspec


class PeerStage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The nodes on one device, or on the devices for one stage; fields that a planner does not know
    are left out."""

    nodes: tuple[int | str, ...]
    """The file's names or ids."""
    replicas: int
    """Replicas in all; a replica with several devices counts once."""
    kind: Literal["accelerator", "cpu"]
    outer_stage: int | None = None
    """Two levels: number of the stage over nodes that contains this stage."""
    outer_replicas: int | None = None
    """Two levels: nodes that run the same stage."""
    inner_replicas: int | None = None
    """Two levels: replicas in each such node."""
    tensor_parallel: int | None = None
    """Devices per replica."""
    recompute: tuple[int, ...] | None = None
    """Nodes that run their forward again in backward."""
    in_flight: int | None = None
    """Microbatches in flight."""
    time: float | None = None
    """The stage's charge, in the answer's `unit`."""
    memory_bytes: float | None = None
    """Bytes on one device."""


class PeerAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Stages under another planner's objective, with a lower bound."""

    convention: str
    """The planner: pipedream, dnn-partitioning, piper."""
    file: str
    """Path of the planner's file."""
    objective: float
    """The largest charge for a stage, in `unit`: the planner's own objective."""
    lower_bound: float
    """No stages have a smaller objective; equal to `objective` where it is proven optimal."""
    gap: float | None
    """objective / lower_bound - 1; null where the bound is 0 and the objective is not."""
    unit: str
    """Unit for objective, bound and times."""
    proof: str
    """Basis for the lower bound."""
    stages: tuple[PeerStage, ...]
    """In pipeline order, where the answer has one."""
    objective_with_all_sends: float | None = None
    """pipedream: the same stages' objective, with the first stages' sends charged too."""
    num_downsets: int | None = None
    """pipedream: downsets in the layer graph; null where they were not all listed."""
    infeasible_at: float | None = None
    """piper: the next smaller time for any stage; no plan keeps within it."""
