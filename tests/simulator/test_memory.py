"""Bytes over time, and the peak that an order can need."""

import random

import numpy as np
import pytest

from autopart.cost import held_by, most_in_flight
from autopart.plan import MovingBytes
from autopart.schedule import Action, parse_order
from autopart.schedules import make_schedule
from autopart.simulator import simulate
from autopart.simulator.contention import HostTraffic
from autopart.simulator.holding import (
    ACTIVATIONS,
    GRADIENTS,
    SENT,
    Number,
    Sizes,
    at_peak,
    every_row,
    holdings,
    sizes_of,
)
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import used_ranks
from tests.problems import memory_use
from tests.simulator.steps import random_step, stage

USE = memory_use(weights=1000, gradients=500, optimizer=300, workspace=70, reserve=7)


def only_stash(stash: Number, waiting: Number) -> Sizes:
    """A stage of which nothing but the stash is held."""
    return Sizes(stash, waiting, 0, 0, 0, 0, 0, 0)


def plainly(order: tuple[Action, ...], stash: list[int], kept: list[int]) -> int:
    """The most stash, action by action: in I still all of it."""
    held = most = 0
    for stage_, op, _ in order:
        whole, half = stash[stage_], kept[stage_]
        most = max(most, held + (whole if op == "F" else 0))
        held += {"F": whole, "B": -whole, "I": half - whole, "W": -half}[op]
    return most


@pytest.mark.parametrize("part", range(4))
def test_the_peak_of_an_order_is_that_of_adding_up_action_by_action(part: int):
    for seed in range(100 * part, 100 * part + 100):
        rng = random.Random(seed)
        step = random_step(rng)
        if len(step.starts) > 1:
            continue
        stash = [s.stash_bytes for s in step.stages]
        kept = [rng.randint(0, 2 * size) for size in stash]
        held = holdings(step.schedule, step.ranks)
        for own, order in zip(held, step.schedule, strict=True):
            if order:
                sizes = [only_stash(stash[s], kept[s]) for s in own.stages]
                assert at_peak(own, sizes).stash == plainly(order, stash, kept)


def test_peaks_of_many_partitions_come_at_once():
    order = parse_order("0F0 1F0 0F1 1I0 1F1 1W0 0I0 0W0 1I1 1W1 0I1 0W1")
    stash = [np.array([10, 0, 3]), np.array([9, 9, 9])]
    each = [plainly(order, [int(s[at]) for s in stash], [0, 0]) for at in range(3)]
    (held,) = holdings((order,), [(0,), (0,)])
    peak = at_peak(held, [only_stash(of, 0) for of in stash])
    assert peak.stash.tolist() == each


def test_one_f_one_b_holds_as_many_as_stages_are_behind():
    line = [(0,), (1,), (2,)]
    held = held_by(make_schedule("1f1b", line, 9), line)
    assert [most_in_flight(own) for own in held] == [3, 2, 1]


def rows(schedule: str, kind: int) -> list[list[list[int]]]:
    """By rank and action the counts of one kind, of each stage of the rank."""
    orders = tuple(parse_order(order) for order in schedule.split(" | "))
    return [own[:, kind].tolist() for own in every_row(orders, [(0,), (1,)])]


def test_there_is_room_for_a_message_from_the_round_in_which_it_is_sent():
    schedule = "0F0 0F1 0B0 0F2 0B1 0B2 | 1F0 1B0 1F1 1B1 1F2 1B2"
    activations, gradients = rows(schedule, ACTIVATIONS), rows(schedule, GRADIENTS)
    # Round 2 runs 0F1 and 1F0, so 1B0 in round 3 finds room for what 0F1 has sent.
    assert activations[1] == [[1], [1], [0], [1], [0], [0]]
    # Round 3 runs 1B0 while rank 0 waits; of round 5, 0F2 stands before the room for what 1B1 sends.
    assert gradients[0] == [[0], [0], [1], [0], [1], [1]]


def test_two_messages_stay_until_the_next_is_sent_and_activations_until_their_stash_goes():
    schedule = "0F0 0F1 0F2 0B0 0B1 0B2 | 1F0 1F1 1F2 1B0 1B1 1B2"
    assert rows(schedule, SENT)[1] == [[0], [0], [0], [0], [1], [2]]
    assert rows(schedule, SENT)[0] == [[0]] * 6


def test_a_gradient_for_a_stage_on_the_same_rank_is_held_until_its_backward_is_done():
    (own,) = every_row((parse_order("0F0 1F0 1B0 0B0"),), [(0,), (0,)])
    assert own[:, SENT].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]


def test_a_rank_of_one_stage_peaks_at_its_state_its_stashes_and_one_workspace():
    line = [(0,), (1,), (2,)]
    stages = [stage(stash_bytes=10, memory=USE)] * 3
    timeline = simulate(
        make_schedule("1f1b", line, 5), line, stages, (), action_overhead=0.0, sends_overlap=True
    )
    curves = memory_over_time(timeline, line, stages)
    assert [c.peak_bytes for c in curves] == [1877 + 10 * held for held in (3, 2, 1)]
    assert curves[0].stash.tolist()[-1] == 0 and curves[0].workspace.tolist()[-1] == 0
    assert (np.diff(curves[0].times) >= 0).all()


def test_a_rank_of_two_stages_holds_both_states_and_one_reserve():
    ranks = [(0,), (1,), (0,), (1,)]
    schedule = make_schedule("interleaved-1f1b", ranks, 4)
    stages = [stage(stash_bytes=10, memory=USE)] * 4
    timeline = simulate(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)
    curve = memory_over_time(timeline, ranks, stages)[0]
    held = {kind: size for kind, size in curve.constant.items() if size}
    assert held == {
        "weights": 2000,
        "gradients": 1000,
        "optimizer": 600,
        "reserve": 7,
    }
    peak = at_peak(holdings(schedule, ranks)[0], [sizes_of(stages[0])] * 2)
    assert curve.stash.max() == peak.stash
    assert curve.peak_bytes == 3607 + 70 + peak.stash


@pytest.mark.parametrize("seed", range(100))
def test_the_bytes_over_time_peak_where_the_order_says(seed: int):
    step = random_step(random.Random(seed))
    if len(step.starts) > 1:
        return
    timeline = step.simulate()
    curves = memory_over_time(timeline, step.ranks, step.stages)
    held = holdings(step.schedule, step.ranks)
    for rank in used_ranks(timeline):
        peak = at_peak(held[rank], [sizes_of(step.stages[s]) for s in held[rank].stages])
        curve = curves[rank]
        assert (curve.stash + curve.workspace + curve.messages).max() == sum(peak)
        for own in (curve.stash, curve.workspace, curve.messages):
            assert own.min() >= 0
            assert own[-1] == 0


def test_what_w_needs_stays_until_w():
    schedule = (parse_order("0F0 0I0 0W0"),)
    moving = MovingBytes(waiting=6)
    stages = [stage(1.0, 4.0, weight_grad_time=1.0, stash_bytes=10, moving=moving)]
    timeline = simulate(schedule, [(0,)], stages, (), action_overhead=0.0, sends_overlap=True)
    curve = memory_over_time(timeline, [(0,)], stages)[0]
    at_end = dict(zip(curve.times.tolist(), curve.stash.tolist(), strict=True))
    assert at_end == {0.0: 10, 1.0: 10, 4.0: 6, 5.0: 0}


def test_offloaded_stash_leaves_after_it_was_sent_and_returns_before_its_backward():
    stages, offloads = [stage(1.0, 2.0, stash_bytes=10)], [HostTraffic(8, 0.5)]
    schedule = (parse_order("0F0 0F1 0F2 0B0 0B1 0B2"),)
    timeline = simulate(
        schedule, [(0,)], stages, (), action_overhead=0.0, sends_overlap=True, host=offloads
    )
    curve = memory_over_time(timeline, [(0,)], stages, host=offloads)[0]
    # The way back of 0 is asked for when 0F2 starts, that of 1 and 2 when the backward before starts.
    moves = [(m.action, m.start, m.end) for m in timeline.times.host_moves]
    assert moves == [(0, 1, 1.5), (1, 2, 2.5), (3, 2.5, 3), (2, 3, 3.5), (4, 3.5, 4), (5, 5, 5.5)]
    assert curve.stash.max() == 22
    assert curve.stash[-1] == 0
