"""Gathers and sums on the timeline and in the bytes over time; by hand, and on drawn steps."""

import itertools
import random
from typing import Any

import msgspec
import numpy as np
import pytest

from autopart.records.cluster import Link
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.prediction import MovingBytes, StateActions, StateMessages
from autopart.records.profile import Profile
from autopart.schedules.actions import has_pairs, parse_order
from autopart.search.planner import solve
from autopart.simulator.memory import memory_over_time
from autopart.simulator.state_actions import exposed_times, has_state_actions, state_slices
from autopart.simulator.timeline import rank_spans, simulate, simulate_plan, used_ranks
from tests.support.plan_kinds import ROW
from tests.support.problems import cluster
from tests.support.steps import random_step, stage
from tests.support.tensor_profiles import with_degrees

GIVEN = with_degrees(ROW, 2, whole=8)


def with_pairs(profile: Profile) -> Profile:
    """The profile with pair times that save a tenth."""
    layers = tuple(
        msgspec.structs.replace(
            layer,
            pair_time=0.9 * (layer.forward_time + layer.input_grad_time + layer.weight_grad_time),
        )
        for layer in profile.graph.layers
    )
    graph = msgspec.structs.replace(profile.graph, layers=layers)
    return msgspec.structs.replace(profile, graph=graph, variants=())


def solved(bandwidth: float, given: Profile = GIVEN, **options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 8, "shard_degree": 2, "shard": "zero3"}
    on = {"intra_node": Link(bandwidth=bandwidth, latency=0.01), **options.pop("cluster", {})}
    return solve(given, cluster(1, 4, **on), **(words | options))


PLANS = {
    "zero3, slow": solved(12.0),
    "zero3, fast": solved(2000.0, schedule="zb-h1"),
    "zero2, slow": solved(12.0, shard="zero2"),
    "zero2, once per step": solved(60.0, shard="zero2", sync="fsdp2"),
    "zero3, blocking sends": solved(60.0, cluster={"sends_overlap": False}),
    "zero3, two stages on a rank": solved(12.0, schedule="interleaved-1f1b", stages_per_rank=2),
    "zero3, pairs": solved(60.0, with_pairs(GIVEN), schedule="paired-1f1b", num_stages=2),
}


@pytest.mark.parametrize("name", PLANS)
def test_messages_of_a_rank_stand_within_its_actions_and_its_update(name: str):
    plan = PLANS[name]
    timeline = simulate_plan(plan)
    assert has_pairs(schedule_of(plan)) is ("pairs" in name)
    assert has_state_actions(plan) and timeline.makespan == plan.prediction.step_time
    for rank in used_ranks(timeline):
        slices = state_slices(plan, timeline, rank)
        spans = {action: span for span in rank_spans(timeline, rank) for action in span.actions}
        for one in slices:
            bounds = timeline.sync_end[rank], timeline.rank_end[rank]
            if one.action is not None:
                bounds = spans[one.action].start, spans[one.action].end
                assert one.stage == one.action.stage
            assert bounds[0] <= one.start < one.end <= bounds[1] + 1e-12
            assert 0 <= one.exposed <= (one.end - one.start) * (1 + 1e-9)
        for before, behind in itertools.pairwise(slices):
            assert before.end <= behind.start + 1e-9
        check_totals(plan, rank, slices)


def check_totals(plan: Plan, rank: int, slices: Any) -> None:
    """The slices of a rank have all seconds that its actions and its update are said to have."""
    whole = dict.fromkeys(("UNSHARD", "REDUCE_GRAD"), 0.0)
    shown = dict(whole)
    fields = {"F": "forward", "B": "backward", "I": "input_grad", "W": "weight_grad"}
    states = [stage.state for stage in plan.prediction.stages]
    own = [getattr(states[a.stage], fields[a.op]) for a in schedule_of(plan)[rank]]
    own += [
        s.step
        for s, ranks in zip(states, stage_ranks(plan), strict=True)
        if rank in ranks and isinstance(s, StateActions)
    ]
    for messages in own:
        whole["UNSHARD"] += messages.gather_time
        whole["REDUCE_GRAD"] += messages.reduction_time
        shown["UNSHARD"] += messages.exposed_gather_time
        shown["REDUCE_GRAD"] += messages.exposed_reduction_time
    exposed = exposed_times(slices)
    for op, seconds in whole.items():
        assert sum(s.end - s.start for s in slices if s.op == op) == pytest.approx(seconds)
        assert exposed.total(op) == pytest.approx(shown[op])  # type: ignore[arg-type]


def test_a_step_without_sharded_state_has_none():
    plan = solve(GIVEN, cluster(1, 4), num_microbatches=8)
    assert not has_state_actions(plan)
    assert state_slices(plan, simulate_plan(plan), 0) == ()


@pytest.mark.parametrize("name", PLANS)
def test_the_peak_of_the_bytes_over_time_is_the_predicted_one(name: str):
    plan = PLANS[name]
    curves = memory_over_time(simulate_plan(plan), stage_ranks(plan), plan.prediction.stages)
    for curve, peak in zip(curves, plan.prediction.rank_peak_bytes, strict=True):
        assert curve.peak_bytes == peak
        assert bool(curve.gathered.any()) is name.startswith("zero3")
        assert bool(curve.reducing.any()) is ("once" not in name)
        for own in (curve.workspace, curve.gathered, curve.reducing):
            assert own.min() >= 0 and own[-1] == 0


@pytest.mark.parametrize("seed", range(40))
def test_whole_bytes_are_parts_of_the_workspace_and_change_no_sum(seed: int):
    rng = random.Random(seed)
    step = random_step(rng)
    timeline = step.simulate()

    def drawn() -> StateMessages:
        return StateMessages(gathered_bytes=rng.randint(0, 40), reducing_bytes=rng.randint(0, 40))

    shared = [
        msgspec.structs.replace(
            one,
            state=StateActions(
                forward=drawn(), backward=drawn(), input_grad=drawn(), weight_grad=drawn()
            ),
        )
        for one in step.stages
    ]
    plain = memory_over_time(timeline, step.ranks, step.stages)
    for before, now in zip(plain, memory_over_time(timeline, step.ranks, shared), strict=True):
        transient = now.workspace + now.gathered + now.reducing
        assert np.array_equal(before.workspace, transient)
        assert np.array_equal(before.moving, now.moving)
        assert not before.gathered.any() and not before.reducing.any()
        assert min(own.min(initial=0) for own in (now.workspace, now.gathered, now.reducing)) == 0


def test_whole_weights_come_with_an_action_and_go_with_its_end():
    moving = MovingBytes(workspace=10, input_grad_workspace=9, weight_grad_workspace=5)
    state = StateActions(
        forward=StateMessages(gathered_bytes=6),
        input_grad=StateMessages(gathered_bytes=7),
        weight_grad=StateMessages(reducing_bytes=4),
    )
    stages = [stage(1.0, 4.0, weight_grad_time=1.0, moving=moving, state=state)]  # type: ignore[arg-type]
    order = (parse_order("0F0 0I0 0W0"),)
    timeline = simulate(order, [(0,)], stages, (), action_overhead=0.0, sends_overlap=True)
    curve = memory_over_time(timeline, [(0,)], stages)[0]
    rows = list(
        zip(
            curve.times.tolist(),
            curve.gathered.tolist(),
            curve.reducing.tolist(),
            curve.workspace.tolist(),
            strict=True,
        )
    )
    assert rows == [
        (0.0, 6, 0, 4), (1.0, 0, 0, 0), (1.0, 7, 0, 2), (4.0, 0, 0, 0), (4.0, 0, 4, 1), (5.0, 0, 0, 0),
    ]  # fmt: skip
