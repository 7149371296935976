"""Everything that a solver is told, as one value."""

from typing import Literal

import msgspec

from autopart.cluster import Cluster, num_gpus
from autopart.errors import AutopartError, InfeasibleError
from autopart.graph import LayerGraph
from autopart.units import PositiveCount

ScheduleName = Literal["gpipe", "1f1b"]
SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b")

OPTIMIZER_BYTES = {"adamw": 8, "sgd-momentum": 4, "sgd": 0}
"""Bytes of optimizer state for each trained element, in float32 (two moments, one, none)."""
MASTER_BYTES = 4
"""A float32 master copy for each trained element, where training runs in 16 bits."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer graph to be cut for a cluster."""

    graph: LayerGraph
    cluster: Cluster
    microbatch_size: PositiveCount
    num_microbatches: PositiveCount
    """Microbatches of one optimizer step, over all replicas together."""
    optimizer_bytes: int = OPTIMIZER_BYTES["adamw"]
    """Bytes of optimizer state (and master copy) for each trained element."""
    schedules: tuple[ScheduleName, ...] = SCHEDULES
    num_stages: int | None = None
    num_replicas: int | None = None


def optimizer_bytes(optimizer: str, dtype: str) -> int:
    """Bytes for each trained element: the optimizer's state, and a master copy for 16-bit weights."""
    if optimizer not in OPTIMIZER_BYTES:
        raise AutopartError(
            f"unknown optimizer '{optimizer}'; known: {', '.join(OPTIMIZER_BYTES)}"
        )
    master = MASTER_BYTES if dtype in ("bfloat16", "float16") else 0
    return OPTIMIZER_BYTES[optimizer] + master


def shapes(problem: Problem) -> list[tuple[int, int]]:
    """Every (stages, replicas) that the problem allows, fewest stages first.

    Replicas divide the microbatches, so that each pipeline does the same work.
    Raises InfeasibleError where the demands leave none.
    """
    layers, gpus = len(problem.graph.layers), num_gpus(problem.cluster)
    if problem.num_stages is not None and problem.num_stages > min(layers, gpus):
        limit = f"the model has {layers} layers" if layers < gpus else f"there are {gpus} GPUs"
        raise InfeasibleError(
            f"{problem.num_stages} stages cannot be made: {limit}; "
            f"ask for at most {min(layers, gpus)} stages"
        )
    allowed = [
        (k, r)
        for k in range(1, min(layers, gpus) + 1)
        for r in range(1, gpus // k + 1)
        if problem.num_microbatches % r == 0
        and problem.num_stages in (None, k)
        and problem.num_replicas in (None, r)
    ]
    if not allowed:
        raise InfeasibleError(
            f"no shape with {problem.num_replicas} replicas: it must divide "
            f"{problem.num_microbatches} microbatches and leave a GPU for each of "
            f"{problem.num_stages or 1} stages on {gpus} GPUs"
        )
    return allowed
