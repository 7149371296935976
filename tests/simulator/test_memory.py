"""Bytes over time, and the peak that follows from an order."""

import itertools
import random

import numpy as np
import pytest

from autopart.cost.in_flight import most_in_flight, stages_in_flight
from autopart.records.peak_bytes import MicrobatchBytes, at_peak, sizes_of
from autopart.records.prediction import MovingBytes
from autopart.schedules.actions import Action, parse_order
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.classic_rows import all_at_once, classic_rows
from autopart.schedules.encoding import encode
from autopart.schedules.in_flight import (
    ACTIVATIONS,
    GRADIENTS,
    OUTPUTS,
    SENT,
    in_flight_at_each_action,
    in_flight_by_rank,
)
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import simulate, used_ranks
from autopart.units import Q
from tests.support.problems import memory_use
from tests.support.steps import random_step, stage

USE = memory_use(weights=1000, gradients=500, optimizer=300, workspace=70, reserve=7)


def only_stash(stash: Q, waiting: Q) -> MicrobatchBytes[Q]:
    """A stage with stash and no other bytes."""
    nothing = 0 * stash
    return MicrobatchBytes(stash, waiting, *[nothing] * (len(MicrobatchBytes._fields) - 2))


def largest_stash(order: tuple[Action, ...], stash: list[int], waiting: list[int]) -> int:
    """The most stash, action by action. In I all stash is still there.

    Stash that is lent goes once the action beside L is over; its room is there in the one beside T.
    """
    kept = most = going = 0
    for stage_, op, _ in order:
        if op in "LT":
            going = stash[stage_] if op == "L" else 0
            kept += stash[stage_] if op == "T" else 0
            continue
        whole, left = stash[stage_], waiting[stage_]
        most = max(most, kept + (whole if op == "F" else 0))
        kept += {"F": whole, "B": -whole, "I": left - whole, "W": -left}[op] - going
        going = 0
    return most


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_the_peak_of_an_order_is_the_largest_sum_action_by_action(part: int):
    for seed in range(100 * part, 100 * part + 100):
        rng = random.Random(seed)
        step = random_step(rng)
        stash = [s.stash_bytes for s in step.stages]
        kept = [rng.randint(0, 2 * size) for size in stash]
        in_flight = in_flight_by_rank(step.schedule, step.ranks)
        for own, order in zip(in_flight, step.schedule, strict=True):
            if order:
                sizes = [only_stash(stash[s], kept[s]) for s in own.stages]
                assert at_peak(own, sizes).stash == largest_stash(order, stash, kept)


def test_peaks_of_many_partitions_are_computed_at_once():
    order = parse_order("0F0 1F0 0F1 1I0 1F1 1W0 0I0 0W0 1I1 1W1 0I1 0W1")
    stash = [np.array([10, 0, 3]), np.array([9, 9, 9])]
    each = [largest_stash(order, [int(s[at]) for s in stash], [0, 0]) for at in range(3)]
    (in_flight,) = in_flight_by_rank((order,), [(0,), (0,)])
    peak = at_peak(in_flight, [only_stash(of, 0 * of) for of in stash])
    assert peak.stash.tolist() == each


def test_one_f_one_b_has_one_microbatch_in_flight_for_each_stage_left():
    line = [(0,), (1,), (2,)]
    in_flight = stages_in_flight(make_schedule("1f1b", line, 9), line)
    assert [most_in_flight(own) for own in in_flight] == [3, 2, 1]


def rows(schedule: str, kind: int) -> list[list[list[int]]]:
    """The counts for one kind, by rank, action and stage on the rank."""
    orders = tuple(parse_order(order) for order in schedule.split(" | "))
    return [
        own[:, kind].tolist() for own in in_flight_at_each_action(encode(orders, 2), [(0,), (1,)])
    ]


def test_a_message_needs_a_buffer_from_the_round_in_which_it_is_sent():
    schedule = "0F0 0F1 0B0 0F2 0B1 0B2 | 1F0 1B0 1F1 1B1 1F2 1B2"
    activations, gradients = rows(schedule, ACTIVATIONS), rows(schedule, GRADIENTS)
    # Round 2 runs 0F1 and 1F0. So in round 3 there is room for the message from 0F1 beside 1B0.
    assert activations[1] == [[1], [1], [0], [1], [0], [0]]
    # Round 3 runs 1B0 while rank 0 waits. In round 5, 0F2 stands before the room for 1B1's message.
    assert gradients[0] == [[0], [0], [1], [0], [1], [1]]


def test_results_stay_until_the_second_next_send_or_until_their_gradient_is_back():
    schedule = "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3 | 1F0 1F1 1F2 1F3 1B0 1B1 1B2 1B3"
    # While 0F3 runs, two results are under way and it makes the third. 1B0 frees the result of 0F0.
    outputs = rows(schedule, OUTPUTS)
    assert outputs[0] == [[1], [2], [3], [3], [2], [2], [1], [0]]
    assert outputs[1] == [[0]] * 8


def test_a_result_for_a_stage_on_the_same_rank_joins_its_stash():
    (own,) = in_flight_at_each_action(
        encode((parse_order("0F0 0F1 1F0 1F1 1B0 1B1 0B0 0B1"),), 2), [(0,)] * 2
    )
    assert own[:, OUTPUTS, 0].tolist() == [1, 2, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_the_rows_of_classic_schedules_cover_the_counts_of_their_orders(kind: str):
    rng = random.Random(kind)
    for stages, microbatches in itertools.product(range(1, 5), range(1, 8)):
        line = [(s,) for s in range(stages)]
        counted = in_flight_by_rank(make_schedule(kind, line, microbatches), line)
        for stage_, own in enumerate(counted):
            # A stage receives what its gradients are for, and keeps it.
            sent = rng.randint(0, 9)
            stash = sent + rng.randint(0, 9)
            outputs = rng.randint(0, 9) * (stage_ < stages - 1)
            made, work = rng.choice([0, 4, 40]), 3
            first = work + rng.randint(0, made)
            sizes = MicrobatchBytes(stash, 0, sent, 7, sent, work, 0, 0, outputs, made, first)
            number = most_in_flight(own)
            most = (all_at_once if number == microbatches else classic_rows)(number)
            assert sum(at_peak(own, [sizes])) <= sum(at_peak(most, [sizes])), (stage_, sizes)


def test_sent_gradients_stay_until_the_second_next_send():
    schedule = "0F0 0F1 0F2 0B0 0B1 0B2 | 1F0 1F1 1F2 1B0 1B1 1B2"
    assert rows(schedule, SENT)[1] == [[0], [0], [0], [0], [1], [2]]
    assert rows(schedule, SENT)[0] == [[0]] * 6


def test_a_gradient_for_a_stage_on_the_same_rank_stays_until_its_backward_is_done():
    (own,) = in_flight_at_each_action(encode((parse_order("0F0 1F0 1B0 0B0"),), 2), [(0,), (0,)])
    assert own[:, SENT].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]


def test_a_rank_with_one_stage_peaks_at_its_state_its_stashes_and_one_workspace():
    line = [(0,), (1,), (2,)]
    stages = [stage(stash_bytes=10, memory=USE)] * 3
    timeline = simulate(
        make_schedule("1f1b", line, 5), line, stages, (), action_overhead=0.0, sends_overlap=True
    )
    curves = memory_over_time(timeline, line, stages)
    assert [c.peak_bytes for c in curves] == [1877 + 10 * count for count in (3, 2, 1)]
    assert curves[0].stash.tolist()[-1] == 0 and curves[0].workspace.tolist()[-1] == 0
    assert (np.diff(curves[0].times) >= 0).all()


def test_a_rank_with_two_stages_has_both_states_and_one_reserve():
    ranks = [(0,), (1,), (0,), (1,)]
    schedule = make_schedule("interleaved-1f1b", ranks, 4)
    stages = [stage(stash_bytes=10, memory=USE)] * 4
    timeline = simulate(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)
    curve = memory_over_time(timeline, ranks, stages)[0]
    constant = {kind: size for kind, size in curve.constant.items() if size}
    assert constant == {
        "weights": 2000,
        "gradients": 1000,
        "optimizer": 600,
        "reserve": 7,
    }
    peak = at_peak(in_flight_by_rank(schedule, ranks)[0], [sizes_of(stages[0])] * 2)
    assert curve.stash.max() == peak.stash
    assert curve.peak_bytes == 3607 + 70 + peak.stash


@pytest.mark.parametrize("seed", range(100))
def test_the_peak_of_the_bytes_over_time_is_the_peak_of_the_order(seed: int):
    step = random_step(random.Random(seed))
    timeline = step.simulate()
    curves = memory_over_time(timeline, step.ranks, step.stages)
    in_flight = in_flight_by_rank(step.schedule, step.ranks)
    for rank in used_ranks(timeline):
        peak = at_peak(in_flight[rank], [sizes_of(step.stages[s]) for s in in_flight[rank].stages])
        curve = curves[rank]
        assert curve.moving.max() == sum(peak)
        assert (np.diff(curve.gradients) >= 0).all()
        for own in (curve.stash, curve.workspace, curve.messages):
            assert own.min() >= 0
            assert own[-1] == 0


def test_the_bytes_that_w_needs_stay_until_w():
    schedule = (parse_order("0F0 0I0 0W0"),)
    moving = MovingBytes(waiting=6)
    stages = [stage(1.0, 4.0, weight_grad_time=1.0, stash_bytes=10, moving=moving)]
    timeline = simulate(schedule, [(0,)], stages, (), action_overhead=0.0, sends_overlap=True)
    curve = memory_over_time(timeline, [(0,)], stages)[0]
    at_end = dict(zip(curve.times.tolist(), curve.stash.tolist(), strict=True))
    assert at_end == {0.0: 10, 1.0: 10, 4.0: 6, 5.0: 0}
