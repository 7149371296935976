"""Exposed parts of gradient syncs, against buckets that go out one after the other."""

import random

import msgspec
import pytest

from autopart.cost.cuts import stage_totals
from autopart.cost.stage_syncs import StageSync, bucket_bytes, exposed, stage_sync
from autopart.errors import AutopartError
from autopart.records.cluster import Link
from autopart.records.network import Network
from autopart.records.problem import Problem
from autopart.records.training import SYNCS, Sync, Training, make_training
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, problem, profile

GB = 10**9
NETWORK = Network(
    rails=1, rail_bandwidth=1e9, ring_bandwidth=1e9, start=0.0, step=0.01, hop=0.0, slowdown=0.5
)
"""On two ranks S bytes take 0.02 s + S / 1 GB/s, and one half of that each way."""
LAYER = layer("a", param_bytes=GB, grad_bytes=GB, num_trainable=GB // 4)
"""F 1 s, B 2 s, of which W 1 s."""


def given(sync: Sync, *, zero1: bool = False, bucket: int | None = GB // 4) -> Problem:
    """One layer with a gradient of 1 GB on two GPUs of one node."""
    on = msgspec.structs.replace(cluster(1, 2), network=NETWORK)
    training = Training(sync=sync, zero1=zero1, bucket_bytes=bucket)
    return problem(chain_graph(LAYER), cluster=on, training=training)


def synced(one: Problem, stage: int = 0) -> StageSync[float]:
    return stage_sync(one, stage_totals(one.graph, ((0,),))[0], stage, (0, 1))


def test_exposed_seconds_are_those_of_buckets_one_after_the_other():
    rng = random.Random(0)
    for _ in range(500):
        count, bucket, compute = rng.randint(1, 9), rng.uniform(0, 2), rng.uniform(0, 9)
        now = 0.0
        for made in range(1, count + 1):
            now = max(now, made * compute / count) + bucket
        assert exposed(count, bucket, compute) == pytest.approx(now - compute, abs=1e-12)


def test_at_the_end_a_sync_is_one_call_and_has_no_parts():
    assert synced(given("end", bucket=None)) == ("stage 0", (0, 1), pytest.approx(1.02), None)


@pytest.mark.parametrize("sync", ["overlap", "ddp", "megatron"])
def test_each_bucket_pays_its_latency_and_all_but_one_may_hide(sync: Sync):
    name, ranks, time, parts = synced(given(sync))
    assert (name, ranks, time) == ("stage 0", (0, 1), pytest.approx(4 * 0.27))
    assert parts is not None
    # Half of the seconds beside the first three buckets are added to the backward.
    assert parts.slows_backward == pytest.approx(0.5 * 3 * 0.27)
    assert parts.after_backward == pytest.approx(0.27)
    # W takes 1 s, and 0.405 s more.
    assert parts.after_weights == pytest.approx(max(0.27, 1.08 - 1.405 * 3 / 4))
    assert parts.late_time is None


def test_megatron_has_buckets_in_the_first_stage_only():
    parts = synced(given("megatron"), stage=1).parts
    assert parts is not None
    assert (parts.buckets, parts.slows_backward) == (1, 0.0)
    assert parts.after_backward == parts.early_time == pytest.approx(1.02)


def test_zero_1_gathers_late_or_beside_the_first_forward():
    late = synced(given("overlap", zero1=True)).parts
    assert late is not None and late.late_time == pytest.approx(4 * 0.135)
    assert late.gather_wait == 0.0
    beside = synced(given("megatron", zero1=True)).parts
    assert beside is not None and beside.late_time is None
    assert beside.gather_wait == pytest.approx(max(0.135, 4 * 0.135 - 1.0 * 3 / 4))


@pytest.mark.parametrize("link", [False, True])
def test_under_zero_1_buckets_are_all_reduced_where_they_do_not_follow_the_shards(link: bool):
    early: dict[Sync, float] = {}
    for sync in ("overlap", "ddp", "megatron"):
        one = given(sync, zero1=True)
        if link:
            plain = Link(bandwidth=1e9, latency=0.01)
            on = msgspec.structs.replace(one.cluster, network=None, intra_node=plain)
            one = msgspec.structs.replace(one, cluster=on)
        parts = synced(one).parts
        assert parts is not None
        early[sync] = float(parts.early_time)
    # An all-reduce of a quarter of 1 GB takes 0.27 s; a reduce-scatter takes half of that.
    assert early["overlap"] == early["ddp"] == pytest.approx(4 * 0.27)
    assert early["megatron"] == pytest.approx(4 * 0.135)


def test_fsdp2_and_deepspeed_sum_after_all_actions():
    assert synced(given("deepspeed")).parts is None
    assert synced(given("deepspeed")).time == pytest.approx(4 * 0.27)
    parts = synced(given("fsdp2", zero1=True)).parts
    assert parts is not None and parts.early_time == parts.slows_backward == 0.0
    assert parts.late_time == pytest.approx(4 * 0.135)
    assert parts.gather_wait == pytest.approx(0.135)


def test_each_sync_has_its_usual_buckets():
    sizes = {sync: bucket_bytes(given(sync, bucket=None), 0, 64) for sync in SYNCS if sync != "end"}
    assert sizes == {
        "overlap": 25 << 20,
        "ddp": 25 << 20,
        "megatron": 64e6 * 4,
        "fsdp2": 1e9,
        "deepspeed": 2e9,
    }


def test_an_unknown_sync_and_buckets_without_overlap_are_refused():
    with pytest.raises(AutopartError, match="unknown sync 'horovod'; known: end, overlap"):
        make_training("float32", sync="horovod")
    with pytest.raises(AutopartError, match="another --sync than end"):
        make_training("float32", bucket_bytes=5)
    with pytest.raises(AutopartError, match="at least 1"):
        make_training("float32", sync="ddp", bucket_bytes=0)


def test_a_hidden_sync_makes_the_step_shorter_and_the_bound_follows():
    graph = chain_graph(*(msgspec.structs.replace(LAYER, name=name) for name in "abcd"))
    on = msgspec.structs.replace(cluster(1, 2), network=NETWORK)
    plans = {
        sync: solve(
            profile(graph), on, num_microbatches=4, num_stages=1, sync=sync, bucket_bytes=size
        )
        for sync, size in (("end", None), ("overlap", GB))
    }
    steps = {sync: plan.prediction.step_time for sync, plan in plans.items()}
    # Of four buckets of 1.02 s three hide, and half of their seconds slow the backward down.
    assert steps["end"] == pytest.approx(2 * 12 + 4.02)
    assert steps["overlap"] == pytest.approx(2 * 12 + 0.5 * 3.06 + 1.02)
    assert all(plan.certificate.gap == 0 for plan in plans.values())
