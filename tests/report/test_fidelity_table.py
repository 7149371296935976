import io
import json

import msgspec
from rich.console import Console

from autopart.fidelity.compare import judge
from autopart.records.plan import Plan
from autopart.records.run_result import RunResult
from autopart.report.both_timelines import both_timelines
from autopart.report.fidelity_table import fidelity_report
from autopart.simulator.timeline import simulate_plan
from tests.support.measured_runs import as_predicted
from tests.support.samples import sample_plan


def _slower(plan: Plan, by: float = 2.0) -> RunResult:
    """Every action and the step take `by` times as long as predicted."""
    run = as_predicted(plan)
    stages = tuple(
        msgspec.structs.replace(
            stage,
            actions=tuple(
                msgspec.structs.replace(one, time=by * one.time) for one in stage.actions
            ),
        )
        for stage in run.stages
    )
    times = tuple(by * time for time in run.step_times)
    return msgspec.structs.replace(run, stages=stages, step_times=times)


def _printed(plan: Plan, run: RunResult) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(fidelity_report(judge(plan, run)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_predicted_stands_beside_measured_for_every_action_send_rank_and_the_step() -> None:
    plan = sample_plan()
    text = _printed(plan, _slower(plan))
    predicted = plan.prediction
    forward = predicted.stages[0].forward_time * 1e3
    row = next(line.split() for line in text.splitlines() if line.split()[1:2] == ["F"])
    assert row[2:4] == [f"{forward:.1f}", f"{2 * forward:.1f}"]
    assert text.count("-50.0%") == 5, "F and B of two stages, and the step"
    assert "send on" in text and "send back" in text
    assert "measured minus predicted: compute +" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_rank_whose_bytes_were_not_counted_has_none() -> None:
    plan = sample_plan()
    run = as_predicted(plan)
    ranks = tuple(msgspec.structs.replace(ran, tensor_bytes=None) for ran in run.ranks)
    text = _printed(plan, msgspec.structs.replace(run, ranks=ranks))
    assert text.count("–") == 2 * len(ranks)


def test_the_trace_has_both_timelines_of_every_rank_on_one_axis() -> None:
    plan = sample_plan()
    timeline, run = simulate_plan(plan), _slower(plan)
    events = json.loads(both_timelines(plan, run))["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {
        0: "rank 0, predicted",
        1: "rank 0, measured",
        2: "rank 1, predicted",
        3: "rank 1, measured",
    }
    actions = [e for e in events if e.get("cat") in ("F", "B")]
    assert len(actions) == 2 * sum(len(order.split()) for order in plan.orders)
    for process in (0, 2):
        ends = [e["ts"] + e["dur"] for e in events if e["ph"] == "X" and e["pid"] == process]
        assert abs(max(ends) - timeline.rank_end[process // 2] * 1e6) < 1e-3
    times = [event["ts"] for event in events]
    assert times == sorted(times)
