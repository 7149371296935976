"""What `--sync` says about one stage's sync, written from docs/cost-model.md."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from autopart.records.cluster import Link
from autopart.records.problem import Problem
from tests.support.witness.clock import Beside
from tests.support.witness.collectives import all_reduce_seconds, ring_seconds, sharded_seconds

MIB = 1 << 20
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


class Own(NamedTuple):
    """One stage's figures."""

    stage: int
    replicas: int
    summed: float
    """Gradient bytes in the dtype of the sum."""
    weights: float
    """Bytes that ZeRO-1 gathers."""
    link: Link
    nodes: Sequence[Sequence[int]]
    """The node of each replica, once; empty without a network record."""


def parts_of(problem: Problem, own: Own) -> tuple[float | None, Beside | None]:
    """Seconds behind all actions, None where nothing is left, and what runs beside them."""
    training = problem.training
    buckets = max(1, math.ceil(own.summed / bucket_of(problem, own)))
    # The executor's and DDP's buckets beside a backward are summed whole, also under ZeRO-1.
    whole = training.sync in ("overlap", "ddp") or not training.zero1
    tau = call_seconds(problem, own, own.summed / buckets, whole=whole)
    gather = 0.0
    if training.zero1:
        gather = call_seconds(problem, own, own.weights / buckets, whole=False)
    sums_beside = training.sync in ("overlap", "ddp", "megatron")
    gathers_beside = training.zero1 and training.sync in ("megatron", "fsdp2")
    rest = [buckets * tau] * (not sums_beside)
    rest += [buckets * gather] * (training.zero1 and not gathers_beside)
    late = sum(rest) if rest else None
    if not sums_beside and not gathers_beside:
        return late, None
    network = problem.cluster.network
    beside = Beside(
        own.stage,
        buckets,
        sum=tau if sums_beside else 0.0,
        gather=gather if gathers_beside else 0.0,
        slowdown=network.slowdown if network is not None and sums_beside else 0.0,
    )
    return late, beside


def call_seconds(problem: Problem, own: Own, size: float, *, whole: bool) -> float:
    """One all-reduce, or one half of it: a reduce-scatter takes as long as a gather."""
    cluster = problem.cluster
    if cluster.network is None:
        return ring_seconds(own.link, size, own.replicas) / (1 if whole else 2)
    if not whole:
        return sharded_seconds(cluster, own.nodes[0], size, size) / 2
    return all_reduce_seconds(cluster, own.nodes[0], size)


def bucket_of(problem: Problem, own: Own) -> float:
    training, width = problem.training, BYTES[problem.training.gradient_dtype]
    if training.sync == "end" or (training.sync == "megatron" and own.stage > 0):
        return math.inf
    if training.bucket_bytes:
        return training.bucket_bytes
    trained = [la.num_trainable for la in problem.graph.layers if la.num_trainable]
    return {
        "overlap": 25 * MIB,
        "ddp": 25 * MIB,
        "megatron": max(40e6, 1e6 * own.replicas) * width,
        "fsdp2": max(1.0, sum(trained) * width / max(1, len(trained))),
        "deepspeed": 5e8 * width,
    }[training.sync]
