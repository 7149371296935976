"""A step's gradient syncs: which part is exposed, and which part hides behind compute.

Symbols   S         gradient bytes of a stage;  T(S) the price of its sync (autopart/cost/syncs.py)
          n, tau    buckets, and the seconds of one: tau = T(S / n);  each pays its latency
          b, b'     the stage's last backward, and the same beside a sync
          f         its first forward;  sigma  slowdown of compute beside a sync

The buckets are equal, and their gradients are made evenly over the last backward. They go out one
after the other. So bucket q of 1 … n starts no sooner than q b' / n after the backward's start:

    b'       = b + sigma min(b, n tau - tau)                   compute beside all buckets except the last
    exposed  = max(tau, n tau - b' (n - 1) / n)                after the stage's last backward

The middle buckets give nothing more, for their ends are linear in q. ZeRO-1 sums gradients with a
reduce-scatter, then gathers weights in T_g. Where a framework gathers beside the next step's
first forwards, bucket by bucket, a stage's first forward starts later by

    wait     = max(tau_g, T_g - f (n - 1) / n)                 after the step's start

Else the gather follows all actions. docs/cost-model.md says what each framework does.
autopart/cost/step_syncs.py lists the syncs of a step.
"""

from typing import Any, Generic, NamedTuple

import numpy as np

from autopart.cost.stage_totals import StageTotals, layer_sizes
from autopart.cost.sync_rules import RULES
from autopart.cost.syncs import SyncPrice, gradient_bytes, halves, sync_price, synced_bytes
from autopart.records.cluster import Cluster
from autopart.records.prediction import Sync
from autopart.records.problem import Problem
from autopart.records.training import WIDTHS
from autopart.units import Q

RUN_BUCKET_BYTES = 25 << 20
"""Bytes of a bucket in the executor's overlapped sync."""
DDP_BUCKET_BYTES = 25 << 20
"""torch DDP's `bucket_cap_mb`."""
MEGATRON_BUCKET_ELEMENTS, MEGATRON_ELEMENTS_PER_REPLICA = 40_000_000, 1_000_000
"""Elements of a bucket in Megatron's first stage: the larger of the first, and replicas times the second."""
DEEPSPEED_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`."""


class PartSeconds(NamedTuple, Generic[Q]):
    """The parts of a stage's sync in seconds, where some of it hides behind compute."""

    stage: int
    buckets: Q
    """Buckets of equal size."""
    early_time: Q | float
    """Seconds of the buckets that go out during the last backward, one after the other."""
    after_backward: Q | float
    """Seconds of these that are exposed where the last action is a whole backward."""
    after_weights: Q | float
    """The same where it is W."""
    slows_backward: Q | float
    """Seconds by which a last whole backward takes longer."""
    slows_weights: Q | float
    """The same for W."""
    late_time: Q | None
    """Seconds after all actions of its ranks; None where nothing is left."""
    gather_time: Q | float
    """Seconds of the gather beside the first forwards."""
    gather_wait: Q | float
    """Seconds of the gather that are exposed."""


class StageSync(NamedTuple, Generic[Q]):
    """One gradient sync in each step."""

    what: str
    """The stage or the tied parameter that is synced."""
    ranks: tuple[int, ...]
    time: Q
    """Seconds of all its parts, one after the other."""
    parts: PartSeconds[Q] | None = None
    """None where the whole sync follows all actions of its ranks."""


class _Buckets(NamedTuple, Generic[Q]):
    """A stage's sync by buckets, in seconds."""

    number: Q
    sum_time: Q
    """One bucket's sum."""
    gather_time: Q | float
    """One bucket's gather under ZeRO-1, else 0."""

    @property
    def sums(self) -> Q:
        return self.number * self.sum_time

    @property
    def gathers(self) -> Q:
        return self.number * self.gather_time


def exposed(buckets: Q, bucket_time: Q, compute: Q) -> Q:
    """Seconds of n buckets that evenly hide behind `compute` seconds, all except one of them."""
    return _larger(bucket_time, buckets * bucket_time - compute * (buckets - 1) / buckets)


def slowed_by(cluster: Cluster, buckets: Q, bucket_time: Q, compute: Q) -> Q:
    """Seconds by which compute takes longer beside all buckets except the last."""
    slowdown = 0.0 if cluster.network is None else cluster.network.slowdown
    return slowdown * _smaller(compute, buckets * bucket_time - bucket_time)


def bucket_bytes(problem: Problem, stage: int, replicas: int) -> float:
    """Bytes of the buckets in which a stage's gradients are summed; infinite for a single bucket."""
    training = problem.training
    width = WIDTHS[training.gradient_dtype]
    if training.sync == "end" or (training.sync == "megatron" and stage > 0):
        return np.inf
    if training.bucket_bytes is not None:
        return training.bucket_bytes
    match training.sync:
        case "megatron":
            most = max(MEGATRON_BUCKET_ELEMENTS, MEGATRON_ELEMENTS_PER_REPLICA * replicas)
            return most * width
        case "fsdp2":
            # One layer is one unit; units have their mean size.
            elements = layer_sizes(problem.graph).trained_elements
            return max(1.0, float(elements.sum()) * width / max(1, np.count_nonzero(elements)))
        case "deepspeed":
            return DEEPSPEED_BUCKET_ELEMENTS * width
        case "ddp":
            return DDP_BUCKET_BYTES
        case _:
            return RUN_BUCKET_BYTES


def _buckets(
    problem: Problem, totals: StageTotals[Q], price: SyncPrice, stage: int, replicas: int
) -> _Buckets[Q]:
    summed = gradient_bytes(totals, problem.training)
    size = bucket_bytes(problem, stage, replicas)
    number: Any = _larger(1.0, np.ceil(summed / size))
    if not problem.training.zero1:
        return _Buckets(number, price.seconds(summed / number), 0.0)
    sums, gathers = halves(price)
    gather_time = gathers.seconds(totals.grad_bytes / number)
    return _Buckets(number, sums.seconds(summed / number), gather_time)


def stage_sync(
    problem: Problem, totals: StageTotals[Q], stage: int, ranks: tuple[int, ...]
) -> StageSync[Q]:
    """A stage's sync over its replicas; `totals` are on their ranks already."""
    training, cluster = problem.training, problem.cluster
    price, name = sync_price(cluster, ranks, training), f"stage {stage}"
    if training.sync == "end":
        return StageSync(name, ranks, price.seconds(synced_bytes(totals, training)))
    rule, many = RULES[training.sync], _buckets(problem, totals, price, stage, len(ranks))
    gathers_early = rule.gathers_early and training.zero1
    time = many.sums + many.gathers
    if not (rule.sums_early or gathers_early):
        return StageSync(name, ranks, time)
    backward, weights = totals.backward_time, totals.weight_grad_time
    n, tau = many.number, many.sum_time
    slow_b = slowed_by(cluster, n, tau, backward) if rule.sums_early else 0.0
    slow_w = slowed_by(cluster, n, tau, weights) if rule.sums_early else 0.0
    late = None if rule.sums_early else many.sums
    if training.zero1 and not gathers_early:
        late = many.gathers
    parts: PartSeconds[Any] = PartSeconds(
        stage=stage,
        buckets=n,
        early_time=many.sums if rule.sums_early else 0.0,
        after_backward=exposed(n, tau, backward + slow_b) if rule.sums_early else 0.0,
        after_weights=exposed(n, tau, weights + slow_w) if rule.sums_early else 0.0,
        slows_backward=slow_b,
        slows_weights=slow_w,
        late_time=late,
        gather_time=many.gathers if gathers_early else 0.0,
        gather_wait=exposed(n, many.gather_time, totals.forward_time) if gathers_early else 0.0,
    )
    return StageSync(name, ranks, time, parts)


def time_after_backward(
    problem: Problem,
    totals: StageTotals[Q],
    price: SyncPrice,
    replicas: int,
    *,
    stage: int | None,
    split: bool = False,
) -> Q:
    """Seconds that a stage's sync and update take at least, after a last backward alone.

    `price` is of a sync among its `replicas`, or bounds it from below. `stage` None stands for any
    place. `split` says whether the last backward may be W. `totals` are on their ranks already.
    """
    training = problem.training
    if training.sync == "end":
        return totals.update_time + price.seconds(synced_bytes(totals, training))
    rule = RULES[training.sync]
    many = _buckets(problem, totals, price, stage or 0, replicas)
    seconds = _sums_after(problem, totals, many, split=split)
    if stage is None and training.sync == "megatron":
        # Only the first stage has buckets. The other stages' syncs take one call.
        whole = _buckets(problem, totals, price, 1, replicas)
        seconds = _smaller(seconds, _sums_after(problem, totals, whole, split=split))
    if not rule.gathers_early:
        seconds = seconds + many.gathers
    return totals.update_time + seconds


def _sums_after(problem: Problem, totals: StageTotals[Q], many: _Buckets[Q], *, split: bool) -> Q:
    """Seconds from the last backward's end, as if nothing had slowed it, to the end of the sums."""
    if not RULES[problem.training.sync].sums_early:
        return many.sums
    backward, (n, tau, _) = totals.backward_time, many
    if split:
        # W is shorter than B, so less hides behind it. It is slowed down by less.
        return exposed(n, tau, backward)
    slow = slowed_by(problem.cluster, n, tau, backward)
    return slow + exposed(n, tau, backward + slow)


def exposed_time(sync: Sync, *, split: bool) -> float:
    """Seconds of a sync that hide behind no compute, if all its ranks are done together.

    `split` says whether the stage's last backward is W. A wait for weights may still hide in the
    pipeline's fill, and a sync in its drain.
    """
    if sync.parts is None:
        return sync.time
    own = sync.parts
    after = own.after_weights if split else own.after_backward
    return after + (own.late_time or 0.0) + own.gather_wait


def _larger(first: Any, second: Any) -> Any:
    """The larger number, or each larger entry of arrays."""
    arrays = isinstance(first, np.ndarray) or isinstance(second, np.ndarray)
    return np.maximum(first, second) if arrays else max(first, second)


def _smaller(first: Any, second: Any) -> Any:
    return -_larger(-first, -second)
