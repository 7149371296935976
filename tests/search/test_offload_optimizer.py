"""The search decides whether optimizer state is on the host, and its bound includes this."""

import random
import time

import msgspec
import pytest

from autopart.activations.policies import StagePolicies
from autopart.certificate.verify import verify
from autopart.errors import AutopartError, InfeasibleError
from autopart.pricing import predict
from autopart.records.cluster import Cluster, HostLink
from autopart.records.layer_graph import Recompute
from autopart.records.layouts import Layout
from autopart.records.plan import Plan
from autopart.records.problem import Demands, Problem
from autopart.records.training import Training, state_bytes
from autopart.search.microbatch_sizes import search_sizes
from autopart.search.planner import solve
from tests.support.oracle import best_step_time
from tests.support.problems import chain_graph, cluster, layer, problem, profile, random_problem
from tests.support.seeds import seeds

SIZES = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
LINK = HostLink(bandwidth=100.0, latency=0.0, overlaps=True)


def _drawn(seed: int) -> Problem:
    """A problem with tight memory that allows recompute and optimizer state on the host."""
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


@pytest.mark.parametrize("seed", seeds(4, 400, slow=20))
def test_the_search_and_its_bound_equal_trying_everything(seed: int) -> None:
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
    training: Training, policies: StagePolicies, replicas: int = 1, **fields: object
) -> tuple[Problem, object]:
    graph = chain_graph(layer("a", update_time=0.5, **SIZES), layer("b", **SIZES))
    asked = problem(graph, 4, cluster=cluster(1, 2, host_link=LINK, **fields), training=training)
    ranks = (tuple(range(replicas)),)
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=4)
    (stage,), _ = predict(asked, layout, ((0, 1),), (policies,))
    return asked, stage


@pytest.mark.parametrize("replicas", [1, 2])
def test_state_on_the_host_keeps_one_layer_s_state_on_the_device_and_adds_two_copies(
    replicas: int,
) -> None:
    training = Training(precision="bfloat16-mixed", gradient_dtype="bfloat16", zero1=True)
    _, on_device = _one_stage(training, StagePolicies(), replicas)
    _, on_host = _one_stage(training, StagePolicies(optimizer_on_host=True), replicas)
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


@pytest.mark.slow
def test_auto_moves_optimizer_state_to_the_host_only_if_memory_requires_it() -> None:
    roomy = _solved("auto", 1 << 30)
    assert not any(stage.optimizer_on_host for stage in roomy.stages)
    with pytest.raises(InfeasibleError) as refused:
        _solved("never", max(roomy.prediction.rank_peak_bytes) // 2)
    least = refused.value.least_bytes
    assert least is not None
    assert not any(stage.optimizer_on_host for stage in _solved("never", least).stages)
    tight = _solved("auto", least - 1)
    assert any(stage.optimizer_on_host for stage in tight.stages)
    assert tight.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert "optimizer state on the host" in tight.certificate.assumes
    assert all(check.passed for check in verify(tight, profile(_graph())))
    with pytest.raises(InfeasibleError):
        _solved("never", least - 1)
    with pytest.raises(InfeasibleError):
        _solved("auto", least - 1, host_memory_bytes=8)


def test_a_plan_with_its_state_on_another_place_is_refused() -> None:
    plan = _solved("always", 1 << 30)
    assert all(stage.optimizer_on_host for stage in plan.stages)
    back = tuple(msgspec.structs.replace(s, optimizer_on_host=False) for s in plan.stages)
    failed = verify(msgspec.structs.replace(plan, stages=back), profile(_graph()))[-1]
    assert not failed.passed and "lies on the device, against the demand" in failed.detail


def test_state_on_the_host_without_a_host_link_is_refused() -> None:
    with pytest.raises(AutopartError, match="--host-bandwidth RATE"):
        _solved("auto", 1 << 30, host_link=None)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["interleaved-1f1b", "zbv", "zb-h1"])
def test_state_goes_to_the_host_under_any_named_order_where_memory_asks_for_it(
    schedule: str,
) -> None:
    # A stage with one layer alone has room for all of its state.
    given = profile(chain_graph(*(layer(f"l{i}", **SIZES) for i in range(8))))
    words = {"num_microbatches": 4, "num_replicas": 1, "schedule": schedule}
    roomy = solve(given, _machine(1 << 30), **words, offload_optimizer="auto")  # pyright: ignore
    assert not any(stage.optimizer_on_host for stage in roomy.stages)
    with pytest.raises(InfeasibleError) as refused:
        solve(given, _machine(1), **words)  # pyright: ignore
    assert refused.value.least_bytes is not None
    tight = _machine(refused.value.least_bytes - 1)
    found = solve(given, tight, **words, offload_optimizer="auto")  # pyright: ignore
    assert any(stage.optimizer_on_host for stage in found.stages)
    assert found.certificate.gap == pytest.approx(0.0, abs=1e-9)
    assert all(check.passed for check in verify(found, given))
