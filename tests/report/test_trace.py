import itertools
import json
from collections import defaultdict
from typing import Any

import pytest

from autopart.records.cluster import Link
from autopart.records.plan import Plan, stage_ranks
from autopart.records.prediction import ON_DEVICE
from autopart.report.trace import ACTIONS, IDLE, SENDS, messages_thread, trace
from autopart.search.planner import solve
from autopart.simulator.idle import idle_times
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import Timeline, rank_slices, simulate_plan, used_ranks
from tests.support.plan_kinds import ROW
from tests.support.problems import cluster
from tests.support.samples import sample_plan

PHASES = {"M": "args", "X": "dur", "s": "id", "f": "id", "C": "args"}


def _made() -> tuple[Plan, Timeline, list[dict[str, Any]]]:
    plan = sample_plan(num_stages=3, num_replicas=2, num_microbatches=12)
    timeline = simulate_plan(plan)
    return plan, timeline, json.loads(trace(plan, timeline))["traceEvents"]


def test_every_event_has_its_phase_time_process_and_thread_and_times_never_fall() -> None:
    _, timeline, events = _made()
    reached = 0.0
    for event in events:
        assert event.keys() >= {"name", "ph", "ts", "pid", "tid", PHASES[event["ph"]]}
        assert event["ts"] >= reached and event.get("dur", 0.0) >= 0.0
        reached = event["ts"]
    last = max(event["ts"] + event.get("dur", 0.0) for event in events)
    assert last == pytest.approx(timeline.makespan * 1e6, rel=1e-12)


def test_slices_are_the_simulated_actions_and_idle_times() -> None:
    plan, timeline, events = _made()
    spent: dict[tuple[int, int, str], float] = defaultdict(float)
    for event in events:
        if event["ph"] == "X":
            spent[event["pid"], event["tid"], event["name"]] += event["dur"]
    idle = idle_times(timeline)
    for rank in used_ranks(timeline):
        for action, start, end in rank_slices(timeline, rank):
            assert spent[rank, ACTIONS, str(action)] == pytest.approx((end - start) * 1e6)
        for cause, time in idle[rank].items():
            assert spent[rank, IDLE, cause] == pytest.approx(time * 1e6, abs=1e-6)
    sends = sum(event.get("cat") == "send" and event["ph"] == "X" for event in events)
    assert sends == 2 * 2 * plan.num_microbatches


def test_slices_of_one_thread_do_not_overlap() -> None:
    _, _, events = _made()
    threads: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert any(thread >= SENDS for _, thread in threads)
    for spans in threads.values():
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end - 1e-6


def test_every_arrow_begins_where_one_result_is_and_ends_where_it_was_awaited() -> None:
    _, _, events = _made()
    begun = {event["id"]: event["ts"] for event in events if event["ph"] == "s"}
    ended = {event["id"]: event["ts"] for event in events if event["ph"] == "f"}
    assert begun.keys() == ended.keys() and len(begun) == 2 * 2 * 12
    assert all(ended[arrow] >= begun[arrow] for arrow in begun)


def test_the_counter_s_kinds_add_up_to_the_peak() -> None:
    plan, timeline, events = _made()
    curves = memory_over_time(timeline, stage_ranks(plan), plan.prediction.stages)
    for rank in used_ranks(timeline):
        counted = [e["args"] for e in events if e["ph"] == "C" and e["pid"] == rank]
        assert max(sum(kinds.values()) for kinds in counted) <= curves[rank].peak_bytes
        assert set(counted[0]) == {*ON_DEVICE, "messages"} - {"receives", "sends"}
        assert max(kinds["stash"] for kinds in counted) == curves[rank].stash.max()


@pytest.mark.parametrize("shard", ["zero2", "zero3"])
def test_gathers_and_reductions_of_sharded_state_have_a_thread_of_their_own(shard: str) -> None:
    on = cluster(1, 4, intra_node=Link(bandwidth=12.0))
    plan = solve(ROW, on, num_microbatches=4, num_stages=2, shard=shard, sync="fsdp2")
    timeline = simulate_plan(plan)
    events = json.loads(trace(plan, timeline))["traceEvents"]
    thread = messages_thread(timeline)
    own = [e for e in events if e["ph"] == "X" and e["tid"] == thread and e["pid"] == 1]
    assert {e["name"] for e in own} == {"1UNSHARD", "1REDUCE_GRAD"}
    assert all(
        ("beneath" in e["args"]) is (e["name"] == "1UNSHARD" and shard == "zero3") for e in own
    )
    (update,) = [e for e in events if e["name"] == "optimizer step" and e["pid"] == 1]
    state: Any = plan.prediction.stages[1].state
    once = state.step.gather_time + state.step.reduction_time
    spent = timeline.rank_end[1] - timeline.sync_end[1]
    assert update["dur"] == pytest.approx(1e6 * (spent - once))
    named = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert "gathers and reductions" in named
    counted = [e["args"] for e in events if e["ph"] == "C"]
    assert all(("whole weights" in kinds) is (shard == "zero3") for kinds in counted)


def test_every_rank_is_a_process_with_a_name() -> None:
    _, _, events = _made()
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names[0] == "rank 0, stage 0" and names.keys() == set(range(6))
