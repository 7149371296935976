"""Everything that a solver is told, as one value."""

import math
from typing import Literal

import msgspec

from autopart.cluster import Cluster, num_gpus
from autopart.errors import AutopartError, InfeasibleError
from autopart.graph import LayerGraph
from autopart.units import Count, PositiveCount

ScheduleName = Literal["gpipe", "1f1b"]
SCHEDULES: tuple[ScheduleName, ...] = ("gpipe", "1f1b")

OPTIMIZER_BYTES = {"adamw": 8, "sgd-momentum": 4, "sgd": 0}
"""Bytes of optimizer state for each trained element, in float32 (two moments, one, none)."""
MASTER_BYTES = 4
"""A float32 master copy for each trained element, where training runs in 16 bits."""


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One layer that must lie on one stage (counted from 0)."""

    layer: str
    stage: Count


class Demands(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user fixed beforehand; None and several schedules leave the choice to the planner."""

    num_stages: PositiveCount | None = None
    num_replicas: PositiveCount | None = None
    schedules: tuple[ScheduleName, ...] = SCHEDULES
    pins: tuple[Pin, ...] = ()
    same_stage: tuple[tuple[str, ...], ...] = ()
    """Groups of layers, each of which must share a stage."""
    different_stage: tuple[tuple[str, ...], ...] = ()
    """Groups of layers, of which no two may share a stage."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A layer graph to be cut for a cluster."""

    graph: LayerGraph
    cluster: Cluster
    microbatch_size: PositiveCount
    num_microbatches: PositiveCount
    """Microbatches of one optimizer step, over all replicas together."""
    optimizer_bytes: int = OPTIMIZER_BYTES["adamw"]
    """Bytes of optimizer state (and master copy) for each trained element."""
    demands: Demands = Demands()


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Every decision but the partition: how many stages, on which ranks, under which schedule."""

    schedule: ScheduleName
    stage_ranks: tuple[tuple[int, ...], ...]
    """For each stage its ranks, as many as it has replicas."""
    num_microbatches: int
    """Microbatches of a step, which the ranks of a stage run in turn."""


def own_microbatches(layout: Layout, stage: int) -> int:
    """Microbatches that the first rank of a stage runs in a step; no rank of it runs more."""
    return math.ceil(layout.num_microbatches / len(layout.stage_ranks[stage]))


def alike(layout: Layout) -> bool:
    """Whether every rank runs as many microbatches, each with the same ranks: then each replica of
    the whole pipeline does the same."""
    counts = {len(ranks) for ranks in layout.stage_ranks}
    return len(counts) == 1 and layout.num_microbatches % counts.pop() == 0


def optimizer_bytes(optimizer: str, dtype: str) -> int:
    """Bytes for each trained element: the optimizer's state, and a master copy for 16-bit weights."""
    if optimizer not in OPTIMIZER_BYTES:
        raise AutopartError(f"unknown optimizer '{optimizer}'; known: {', '.join(OPTIMIZER_BYTES)}")
    master = MASTER_BYTES if dtype in ("bfloat16", "float16") else 0
    return OPTIMIZER_BYTES[optimizer] + master


def shapes(problem: Problem) -> list[tuple[int, int]]:
    """Every (stages, replicas) that the problem allows, fewest stages first.

    Replicas divide the microbatches, so that each pipeline does the same work.
    Raises InfeasibleError where the demands leave none, or where some GPU must stay idle.
    """
    layers, gpus = len(problem.graph.layers), num_gpus(problem.cluster)
    demands = problem.demands
    if demands.num_stages is not None and demands.num_stages > min(layers, gpus):
        limit = f"the model has {layers} layers" if layers < gpus else f"there are {gpus} GPUs"
        raise InfeasibleError(
            f"{demands.num_stages} stages cannot be made: {limit}; "
            f"ask for at most {min(layers, gpus)} stages"
        )
    if gpus > layers * problem.num_microbatches:
        raise InfeasibleError(
            f"{gpus} GPUs cannot be used: {layers} layers and {problem.num_microbatches} "
            f"microbatches employ at most {layers * problem.num_microbatches}; "
            "take fewer GPUs or a larger --global-batch"
        )
    allowed = [
        (k, r)
        for k in range(1, min(layers, gpus) + 1)
        for r in range(1, gpus // k + 1)
        if problem.num_microbatches % r == 0
        and demands.num_stages in (None, k)
        and demands.num_replicas in (None, r)
    ]
    if not allowed:
        raise InfeasibleError(
            f"no way to make {demands.num_replicas} replicas: they must divide the "
            f"{problem.num_microbatches} microbatches, and {demands.num_stages or 1} stages "
            f"of each must fit on {gpus} GPUs"
        )
    return allowed


def layouts(problem: Problem, num_stages: int, num_replicas: int) -> list[Layout]:
    """The layouts of one shape: each schedule, with the replicas of a stage side by side (the
    pipeline crosses the nodes) and with each pipeline side by side (the gradient syncs cross).
    1F1B comes before GPipe: where both are as fast, it holds less."""
    k, r = num_stages, num_replicas
    replicas_together = tuple(tuple(range(s * r, s * r + r)) for s in range(k))
    pipeline_together = tuple(tuple(range(s, k * r, k)) for s in range(k))
    places = dict.fromkeys((replicas_together, pipeline_together))
    return [
        Layout(schedule=name, stage_ranks=place, num_microbatches=problem.num_microbatches)
        for place in places
        for name in sorted(problem.demands.schedules)
    ]
