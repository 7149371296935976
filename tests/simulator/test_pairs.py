"""Overlapped pairs in a simulated step: small cases by hand, and a witness of its own."""

import random
from collections.abc import Sequence

import pytest

from autopart.records.plan import orders_of
from autopart.records.prediction import MovingBytes, StagePrediction
from autopart.schedules.actions import Schedule, StageRanks, has_pairs, parse_order
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.idle import idle_times
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import Timeline, busy_times, rank_spans, simulate
from tests.support.problems import memory_use
from tests.support.seeds import seeds
from tests.support.steps import random_step, stage
from tests.support.witness.paired_steps import PairedSteps, Seconds

LINE = [(0,), (1,)]


def run(schedule: Schedule, ranks: StageRanks, stages: Sequence[StagePrediction]) -> Timeline:
    return simulate(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)


def test_a_pair_takes_both_in_turn_less_what_the_smaller_stage_saves():
    orders = ("0F0 1F0 0F1 1F1 1B0 (0F2;1B1)OVERLAP_F_B 0B0 1F2 0B1 1B2 0B2",)
    stages = [stage(3.0, 6.0, pair_saving=2.0), stage(1.0, 4.0, pair_saving=0.5)]
    timeline = run(tuple(map(parse_order, orders)), [(0,), (0,)], stages)
    assert timeline.makespan == 3 * (3.0 + 6.0 + 1.0 + 4.0) - 0.5
    (pair,) = [span for span in rank_spans(timeline, 0) if span.op == "FB"]
    assert (pair.name, pair.end - pair.start) == ("0F2;1B1", 3.0 + 4.0 - 0.5)


def test_a_pair_starts_when_both_inputs_are_there_and_hands_both_results_over_at_its_end():
    stages = [stage(1.0, 2.0, pair_saving=1.0), stage(5.0, 6.0, pair_saving=2.0)]
    timeline = run(make_schedule("paired-1f1b", LINE, 4), LINE, stages)
    spans = [(span.name, span.start, span.end) for span in rank_spans(timeline, 1)]
    assert spans == [
        ("1F0", 1.0, 6.0),
        ("1F1;1B0", 6.0, 15.0),
        ("1F2;1B1", 15.0, 24.0),
        # 0F3 runs beside 0B0, which awaits the end of 1F1;1B0.
        ("1F3;1B2", 24.0, 33.0),
        ("1B3", 33.0, 39.0),
    ]
    assert [(s.name, s.start, s.end) for s in rank_spans(timeline, 0)][3:5] == [
        ("0F3;0B0", 15.0, 17.0),
        ("0B1", 24.0, 26.0),
    ]
    assert idle_times(timeline)[1] == {
        "fill": 1.0,
        "drain": 2.0,
        "imbalance": 0.0,
        "dependency latency": 0.0,
        "send": 0.0,
        "sync": 0.0,
        "memory cap": 0.0,
        "lending": 0.0,
        "shared state": 0.0,
    }


def test_a_wait_for_the_backward_of_a_pair_is_explained_by_the_result_that_comes_last():
    """Rank 1 has 1F1's input at 2, and 1B0's once 2B0 is back at 7; that was in transit for 3 s."""
    orders = ("0F0 0F1 0B0 0B1", "1F0 (1F1;1B0)OVERLAP_F_B 1B1", "2F0 2B0 2F1 2B1")
    three = [(0,), (1,), (2,)]
    stages = [stage(1.0, 1.0, pair_saving=0.0)] * 2 + [stage(1.0, 1.0, send_back_time=3.0)]
    timeline = run(tuple(map(parse_order, orders)), three, stages)
    pair = rank_spans(timeline, 1)[1]
    assert (pair.start, pair.end) == (7.0, 9.0)
    # From 2 to 4 rank 2 computes; then the result is under way.
    assert idle_times(timeline)[1]["send"] >= 3.0


def test_the_transient_bytes_of_both_actions_exist_during_a_pair():
    use = memory_use(workspace=7)
    one = stage(1.0, 2.0, pair_saving=1.0, memory=use, moving=MovingBytes(workspace=7))
    timeline = run(make_schedule("paired-1f1b", LINE, 4), LINE, [one, one])
    assert [max(c.workspace) for c in memory_over_time(timeline, LINE, [one, one])] == [14, 14]
    plain = run(make_schedule("1f1b", LINE, 4), LINE, [one, one])
    assert [max(c.workspace) for c in memory_over_time(plain, LINE, [one, one])] == [7, 7]


@pytest.mark.parametrize("part", seeds(3, 12))
def test_steps_with_pairs_take_the_longest_path_of_a_witness_that_reads_the_orders(part: int):
    compared = 0
    for seed in range(60 * part, 60 * part + 60):
        step = random_step(random.Random(seed))._replace(overhead=0.0, syncs=())
        if not has_pairs(step.schedule):
            continue
        compared += 1
        timeline = step.simulate()
        owns = [
            Seconds(
                own.forward_time,
                own.backward_time,
                own.weight_grad_time,
                own.pair_saving or 0.0,
                own.send_time,
                own.send_back_time,
            )
            for own in step.stages
        ]
        witness = PairedSteps(list(orders_of(step.schedule)), owns, overlap=step.overlap)
        spans = [span for rank in range(len(step.schedule)) for span in rank_spans(timeline, rank)]
        assert [span.start for span in spans] == witness.start, f"{step.name}, seed {seed}"
        assert [span.end for span in spans] == witness.end, f"{step.name}, seed {seed}"
        # Every idle second has a cause.
        busy = busy_times(timeline.actions, timeline.times)
        for rank, causes in enumerate(idle_times(timeline)):
            if step.schedule[rank]:
                update = timeline.rank_end[rank] - timeline.sync_end[rank]
                assert sum(causes.values()) == timeline.makespan - busy[rank] - update
    assert compared >= 5
