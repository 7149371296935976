"""Optimizer state on the host: where it lies is decided with everything else, and proven."""

import random
import time

import msgspec
import pytest

from autopart.certificate import verify
from autopart.cluster import Cluster, HostLink
from autopart.cost import predict
from autopart.errors import AutopartError, InfeasibleError
from autopart.graph import Recompute
from autopart.layouts import Layout
from autopart.plan import Plan
from autopart.planner import solve
from autopart.problem import Demands, Problem
from autopart.size_search import search_sizes
from autopart.training import Training, state_bytes
from autopart.ways import StageWays
from tests.oracle import best_step_time
from tests.problems import chain_graph, cluster, layer, problem, profile, random_problem
from tests.seeds import seeds

SIZES = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
LINK = HostLink(bandwidth=100.0, latency=0.0, overlaps=True)


def _drawn(seed: int) -> Problem:
    """A problem that may recompute layers and hold state on the host, in memory that is tight."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.3, tight=True)
    again = tuple(
        msgspec.structs.replace(
            la, recompute=Recompute(extra_time=la.forward_time, stash_bytes=la.stash_bytes // 3)
        )
        for la in asked.graph.layers
    )
    host = HostLink(bandwidth=rng.choice([10.0, 300.0, 3000.0]), latency=0.0, overlaps=False)
    share = rng.choice([None, None, rng.randrange(1, 2000)])
    return msgspec.structs.replace(
        asked,
        graph=msgspec.structs.replace(asked.graph, layers=again),
        cluster=msgspec.structs.replace(asked.cluster, host_link=host, host_memory_bytes=share),
        demands=Demands(
            recompute=rng.choice(["never", "auto"]),
            offload_optimizer=rng.choice(["auto", "auto", "always"]),
        ),
    )


@pytest.mark.parametrize("seed", seeds(40, 400))
def test_the_search_finds_and_proves_what_trying_everything_finds(seed: int) -> None:
    asked = _drawn(seed)
    try:
        tried = best_step_time(asked)
        found = search_sizes([asked], "auto", time.perf_counter() + 60)
    except InfeasibleError:
        return
    if tried is None:
        assert found.best is None
        return
    best, bound = found.outcomes[0].best, found.outcomes[0].lower_bound
    assert best is not None and best.prediction.step_time == pytest.approx(tried, rel=1e-9)
    assert bound == pytest.approx(tried, rel=1e-6)


def _one_stage(
    training: Training, ways: StageWays, replicas: int = 1, **fields: object
) -> tuple[Problem, object]:
    graph = chain_graph(layer("a", update_time=0.5, **SIZES), layer("b", **SIZES))
    asked = problem(graph, 4, cluster=cluster(1, 2, host_link=LINK, **fields), training=training)
    ranks = (tuple(range(replicas)),)
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=4)
    (stage,), _ = predict(asked, layout, ((0, 1),), (ways,))
    return asked, stage


@pytest.mark.parametrize("replicas", [1, 2])
def test_state_on_the_host_leaves_room_for_one_layer_s_and_takes_the_way_there_and_back(
    replicas: int,
) -> None:
    training = Training(precision="bfloat16-mixed", gradient_dtype="bfloat16", zero1=True)
    _, on_device = _one_stage(training, StageWays(), replicas)
    _, on_host = _one_stage(training, StageWays(optimizer_on_host=True), replicas)
    state = 20 // replicas * state_bytes(training)
    assert (on_device.memory.host, on_host.memory.host) == (0, state)
    assert on_device.peak_bytes - on_host.peak_bytes == state // 2
    assert on_host.update_time == pytest.approx(on_device.update_time + 2 * state / 100.0)


def _solved(offload_optimizer: str, memory_bytes: int, **fields: object) -> Plan:
    return solve(
        profile(_graph()),
        _machine(memory_bytes, **fields),
        num_microbatches=4,
        num_stages=2,
        offload_optimizer=offload_optimizer,
    )


def _graph():  # type: ignore[no-untyped-def]
    return chain_graph(*(layer(f"l{i}", **SIZES) for i in range(4)))


def _machine(memory_bytes: int, **fields: object) -> Cluster:
    return cluster(1, 2, memory_bytes=memory_bytes, **({"host_link": LINK} | fields))


def test_auto_keeps_state_where_it_fits_and_a_plan_may_need_the_host() -> None:
    roomy = _solved("auto", 1 << 30)
    assert not any(stage.optimizer_on_host for stage in roomy.stages)
    peak = max(roomy.prediction.rank_peak_bytes)
    tight = _solved("auto", peak - 1)
    assert any(stage.optimizer_on_host for stage in tight.stages)
    assert tight.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert "optimizer state on the host" in tight.certificate.assumes
    assert all(check.passed for check in verify(tight, profile(_graph())))
    with pytest.raises(InfeasibleError):
        _solved("never", peak - 1)
    with pytest.raises(InfeasibleError):
        _solved("auto", peak - 1, host_memory_bytes=8)


def test_a_plan_that_moved_its_state_is_refused() -> None:
    plan = _solved("always", 1 << 30)
    assert all(stage.optimizer_on_host for stage in plan.stages)
    back = tuple(msgspec.structs.replace(s, optimizer_on_host=False) for s in plan.stages)
    failed = verify(msgspec.structs.replace(plan, stages=back), profile(_graph()))[-1]
    assert not failed.passed and "lies on the device, against the demand" in failed.detail


def test_without_a_link_to_the_host_nothing_can_lie_there() -> None:
    with pytest.raises(AutopartError, match="--host-bandwidth RATE"):
        _solved("auto", 1 << 30, host_link=None)


def test_no_order_with_several_stages_a_rank_holds_state_on_the_host() -> None:
    with pytest.raises(AutopartError, match="nothing is recomputed or offloaded under zbv"):
        solve(
            profile(_graph()),
            _machine(1 << 30),
            num_microbatches=4,
            schedule="zbv",
            offload_optimizer="always",
        )
