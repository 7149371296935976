"""State actions in predictions: their seconds and compute add up to each action, their bytes are parts of workspaces."""

from typing import Any

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.cost.chosen_groups import chosen_variant
from autopart.records.cluster import Link
from autopart.records.group_variants import GroupVariant
from autopart.records.plan import Plan
from autopart.records.prediction import StateActions, StateMessages
from autopart.search.planner import solve
from tests.support.plan_kinds import ROW
from tests.support.problems import cluster
from tests.support.tensor_profiles import with_degrees

GIVEN = with_degrees(ROW, 2, whole=8)
LINKS = {"slow": 12.0, "near": 60.0, "fast": 2000.0}
"""Bytes per second inside nodes: messages longer than compute, about as long, and shorter."""


def solved(link: str, **options: Any) -> Plan:
    """A plan in two stages; ring latency makes messages of layers without parameters cost nothing still."""
    words: dict[str, Any] = {"num_microbatches": 8, "num_stages": 2, "shard_degree": 2}
    links = {"intra_node": Link(bandwidth=LINKS[link], latency=0.01), "sends_overlap": True}
    return solve(GIVEN, cluster(1, 4, **(links | options.pop("cluster", {}))), **(words | options))


def variant(plan: Plan) -> GroupVariant:
    """The layers of one GPU, without any message."""
    found = chosen_variant(GIVEN, plan.group, plan.training, msgspec.UNSET)
    assert found is not None
    return found


KINDS: list[dict[str, Any]] = [
    {"shard": "zero3"},
    {"shard": "zero2"},
    {"shard": "zero3", "sync": "fsdp2"},
    {"shard": "zero2", "sync": "fsdp2"},
    {"shard": "zero3", "recompute": "always"},
    {"shard": "zero2", "recompute": "always"},
    {"shard": "zero3", "schedule": "zb-h1"},
    {"shard": "zero3", "cluster": {"sends_overlap": False}},
    {"shard": "zero3", "cluster": {"compute_slowdown": 1.25}},
]


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_compute_and_exposed_messages_add_up_to_each_action(options: dict[str, Any], link: str):
    plan = solved(link, **options)
    assert all(check.passed for check in verify(plan, GIVEN))
    layers = {layer.name: layer for layer in variant(plan).graph.layers}
    slowdown = plan.cluster.compute_slowdown
    for stage, own in zip(plan.stages, plan.prediction.stages, strict=True):
        state, members = own.state, [layers[name] for name in stage.layers]
        assert isinstance(state, StateActions)
        again = [layers[name].recompute for name in stage.recompute]
        recomputed = slowdown * sum(one.extra_time for one in again if one)
        computed = {
            name: slowdown * sum(getattr(layer, name) for layer in members)
            for name in ("forward_time", "input_grad_time", "weight_grad_time", "split_time")
        }
        back = computed["input_grad_time"] + recomputed
        whole = back + computed["weight_grad_time"]
        assert own.forward_time == pytest.approx(computed["forward_time"] + shown(state.forward))
        assert own.backward_time == pytest.approx(whole + shown(state.backward))
        in_i = own.backward_time - own.weight_grad_time + own.split_time
        assert in_i == pytest.approx(back + computed["split_time"] + shown(state.input_grad))
        assert own.weight_grad_time == pytest.approx(
            computed["weight_grad_time"] + shown(state.weight_grad)
        )
        steps = slowdown * sum(layer.update_time for layer in members)
        assert own.update_time == pytest.approx(steps + shown(state.step))
        check_kinds(plan, state)


def shown(own: StateMessages) -> float:
    """All exposed seconds, which never exceed those of the messages."""
    assert 0 <= own.exposed_gather_time <= own.gather_time * (1 + 1e-9)
    assert 0 <= own.exposed_reduction_time <= own.reduction_time * (1 + 1e-9)
    return own.exposed_gather_time + own.exposed_reduction_time


def check_kinds(plan: Plan, state: StateActions) -> None:
    """Each kind of shared state has its messages, and no others."""
    group: Any = plan.group
    per_action = (state.forward, state.backward, state.input_grad)
    assert all((own.gather_time > 0) is (group.shard == "zero3") for own in per_action)
    assert (state.step.gather_time > 0) is (group.shard == "zero2")
    once = group.reduce == "step"
    assert (state.step.reduction_time > 0) is once
    assert all((o.reduction_time == 0) is once for o in (state.backward, state.weight_grad))
    assert state.step.exposed_gather_time == state.step.gather_time
    if not plan.cluster.sends_overlap:
        assert shown(state.backward) == pytest.approx(
            state.backward.gather_time + state.backward.reduction_time
        )


def test_fast_links_hide_all_messages_and_slow_ones_show_all_that_is_longer_than_compute():
    fast, slow = (solved(link, shard="zero3").prediction.stages for link in ("fast", "slow"))
    for own in fast:
        assert isinstance(own.state, StateActions) and shown(own.state.backward) == 0
    for own in slow:
        assert isinstance(own.state, StateActions)
        assert own.state.forward.exposed_gather_time > 0
        assert own.state.backward.exposed_gather_time < own.state.backward.gather_time


def test_bytes_are_those_that_whole_weights_and_gradients_add_to_a_workspace():
    plan = solved("fast", shard="zero3")
    layers = GIVEN.graph.layers
    weights, grads = max(la.param_bytes for la in layers), max(la.grad_bytes for la in layers)
    for own in plan.prediction.stages:
        state = own.state
        assert isinstance(state, StateActions)
        assert 0 < state.forward.gathered_bytes <= 2 * weights
        assert state.forward.gathered_bytes == state.backward.gathered_bytes
        assert 0 < state.backward.reducing_bytes <= 3 * grads
        both = state.backward.gathered_bytes + state.backward.reducing_bytes
        assert both <= own.moving.workspace
        assert state.forward.reducing_bytes == 0
    second = solved("fast", shard="zero2").prediction.stages[0].state
    assert isinstance(second, StateActions) and second.backward.gathered_bytes == 0


def test_plans_without_sharded_state_have_no_state_actions_and_their_files_no_zeros():
    plain = solve(GIVEN, cluster(1, 4), num_microbatches=8)
    assert all(own.state is msgspec.UNSET for own in plain.prediction.stages)
    plan = solved("fast", shard="zero2", sync="fsdp2")
    assert msgspec.to_builtins(plan.prediction.stages[0].state).keys() == {"step"}


def test_altered_state_actions_are_refused():
    plan = solved("slow", shard="zero3")
    replace = msgspec.structs.replace
    first, *others = plan.prediction.stages
    assert isinstance(first.state, StateActions)
    forward = replace(first.state.forward, exposed_gather_time=0.0)
    lied = replace(first, state=replace(first.state, forward=forward))
    altered = replace(plan, prediction=replace(plan.prediction, stages=(lied, *others)))
    check = verify(altered, GIVEN)[-1]
    assert not check.passed and "state.forward" in check.detail
