"""Bytes over time, and the peak that an order can need."""

import random

import numpy as np
import pytest

from autopart.schedule import Action, parse_order
from autopart.schedules import make_schedule
from autopart.simulator import simulate
from autopart.simulator.contention import HostTraffic
from autopart.simulator.memory import held_counts, memory_over_time, most_held, peak_stash
from autopart.simulator.timeline import used_ranks
from tests.problems import memory_use
from tests.simulator.steps import random_step, stage

USE = memory_use(weights=1000, gradients=500, optimizer=300, workspace=70, sends=20, reserve=7)


def plainly(order: tuple[Action, ...], stash: list[int], kept: list[int]) -> int:
    """The most stash, action by action."""
    held = most = 0
    for stage_, op, _ in order:
        whole, half = stash[stage_], kept[stage_]
        held += {"F": whole, "B": -whole, "I": half - whole, "W": -half}[op]
        most = max(most, held)
    return most


@pytest.mark.parametrize("part", range(4))
def test_the_peak_of_an_order_is_that_of_adding_up_action_by_action(part: int):
    for seed in range(100 * part, 100 * part + 100):
        rng = random.Random(seed)
        step = random_step(rng)
        stash = [s.stash_bytes for s in step.stages]
        kept = [rng.randint(0, size) for size in stash]
        for order in step.schedule:
            held = held_counts(order)
            assert peak_stash(held, stash, kept) == plainly(order, stash, kept)
            assert peak_stash(held, stash) == plainly(order, stash, stash)


def test_peaks_of_many_partitions_come_at_once():
    order = parse_order("0F0 0F1 2F0 0I0 2F1 0W0 2I0 2W0 0I1 0W1 2I1 2W1")
    stash = [np.array([10, 0, 3]), np.array([9, 9, 9]), np.array([1, 5, 4])]
    each = [plainly(order, [int(s[at]) for s in stash], [0, 0, 0]) for at in range(3)]
    assert peak_stash(held_counts(order), stash, [0, 0, 0]).tolist() == each


def test_one_f_one_b_holds_as_many_as_stages_are_behind():
    orders = make_schedule("1f1b", [(0,), (1,), (2,)], 9)
    assert [most_held(order)[s] for s, order in enumerate(orders)] == [3, 2, 1]


def test_a_rank_of_one_stage_peaks_at_its_state_its_stashes_and_one_workspace():
    line = [(0,), (1,), (2,)]
    stages = [stage(stash_bytes=10, memory=USE)] * 3
    timeline = simulate(
        make_schedule("1f1b", line, 5), line, stages, (), action_overhead=0.0, sends_overlap=True
    )
    curves = memory_over_time(timeline, line, stages)
    assert [c.peak_bytes for c in curves] == [1897 + 10 * held for held in (3, 2, 1)]
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
        "sends": 40,
        "reserve": 7,
    }
    held = peak_stash(held_counts(schedule[0]), [10] * 4)
    assert curve.stash.max() == held
    assert curve.peak_bytes == 3647 + 70 + held


@pytest.mark.parametrize("seed", range(100))
def test_the_stash_over_time_peaks_where_the_order_says(seed: int):
    step = random_step(random.Random(seed))
    timeline = step.simulate()
    curves = memory_over_time(timeline, step.ranks, step.stages)
    stash = [s.stash_bytes for s in step.stages]
    for rank in used_ranks(timeline):
        assert curves[rank].stash.max() == peak_stash(held_counts(step.schedule[rank]), stash)
        assert curves[rank].stash.min() >= 0
        assert curves[rank].stash[-1] == 0


def test_what_w_needs_stays_until_w():
    schedule = (parse_order("0F0 0I0 0W0"),)
    stages = [stage(1.0, 4.0, weight_grad_time=1.0, stash_bytes=10)]
    timeline = simulate(schedule, [(0,)], stages, (), action_overhead=0.0, sends_overlap=True)
    curve = memory_over_time(timeline, [(0,)], stages, kept_for_weights=[6])[0]
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
