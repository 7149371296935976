"""Numbers for asynchronous schedules, against a long run of 1F1B and the papers' formulas."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.cost.stage_times import bottleneck_period
from autopart.errors import ScheduleError
from autopart.schedules.asynchronous_kind import Setting, check_setting
from autopart.schedules.named.asynchronous import ASYNCHRONOUS, asynchronous
from autopart.schedules.named.one_f_one_b import eager_warmups, one_f_one_b, usual_warmups


def updates_seen(num_stages: int, stage: int, per_update: int, count: int) -> list[tuple[int, int]]:
    """Updates that `stage` has applied, for each microbatch.

    The first number counts updates before F. The second counts updates before the one that takes
    the microbatch's gradient. F always uses the newest weights.
    """
    order = one_f_one_b([[s] for s in range(num_stages)], count)[stage]
    done, at_forward = 0, {}
    for action in order:
        if action.op == "F":
            at_forward[action.microbatch] = done // per_update
        else:
            done += 1
    return [(at_forward[m], m // per_update) for m in range(count)]


@given(st.integers(1, 8), st.data())
def test_pipedream_s_order_has_its_delay_and_its_weight_copies(stages: int, data: st.DataObject):
    stage = data.draw(st.integers(0, stages - 1))
    seen = updates_seen(stages, stage, 1, 40)[stages:]
    setting, pipedream = Setting(stages), asynchronous("pipedream")
    assert {own - at for at, own in seen} == {pipedream.forward_delay(setting, stage)}
    assert pipedream.extra_copies(setting, stage) + 1 == stages - stage
    # The versions in use while one microbatch is computed.
    versions = {at for at, own in seen if at <= seen[0][1] <= own}
    assert len(versions) == pipedream.in_flight(setting, stage)


@pytest.mark.slow
@given(st.integers(1, 8), st.integers(0, 8), st.data())
def test_two_weight_versions_are_enough_for_double_buffering(
    stages: int, more: int, data: st.DataObject
):
    """Batch t uses the weights after batch t - 2; they exist in time."""
    stage, per_update = data.draw(st.integers(0, stages - 1)), stages + more
    for at, own in updates_seen(stages, stage, per_update, 6 * per_update):
        assert at >= own - asynchronous("pipedream-2bw").forward_delay(Setting(stages), stage)


PREDICTED = ["spectrain", "xpipe", "pipeoptim"]


@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from(PREDICTED), st.data())
def test_predictions_cover_the_delay_of_an_update_s_first_microbatch(
    stages: int, per_update: int, name: str, data: st.DataObject
):
    """PipeOptim predicts for the stage's own backward, the others for the later one on stage 0."""
    stage = data.draw(st.integers(0, stages - 1))
    kind = asynchronous(name)
    n = 1 if kind.every_microbatch else per_update
    setting = Setting(stages, n)
    seen = updates_seen(stages, stage, n, n * (stages + 3))[n * stages :: n]
    (delay,) = {own - at for at, own in seen}
    further = kind.forward_delay(setting, stage) - delay
    assert 0 <= further <= kind.backward_delay(setting, stage)


@given(st.integers(1, 12), st.integers(1, 12))
def test_xpipe_s_distances_are_spectrain_s_in_updates(n: int, t: int):
    """With fairscale's terms, rounded down: (T + N - k/2 - 2) / T, and (T + floor(k/2) - 1) / T."""
    xpipe, spectrain = asynchronous("xpipe"), asynchronous("spectrain")
    for k in range(n):
        forward = (2 * t + 2 * n - k - 4) // (2 * t)
        assert xpipe.forward_delay(Setting(n, t), k) == forward
        assert xpipe.backward_delay(Setting(n, t), k) == (t + k // 2 - 1) // t
        assert xpipe.forward_delay(Setting(n), k) == spectrain.forward_delay(Setting(n), k)
        assert xpipe.backward_delay(Setting(n), k) == spectrain.backward_delay(Setting(n), k)


@pytest.mark.parametrize("stages", [1, 2, 4, 7])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_pipemares_delays_follow_where_each_stage_runs_a_forward_and_a_backward_per_slot(
    stages: int, batch: int
):
    """Slot by slot: a forward and a backward move on by one stage. Backwards since a forward are its delay."""
    forwards: list[list[int | None]] = [[None] * stages]
    backwards: list[list[int | None]] = [[None] * stages]
    for slot in range(8 * stages):
        last, back = forwards[-1], backwards[-1]
        forwards.append([slot, *last[:-1]])
        backwards.append([*back[1:], last[-1]])
    for stage in range(stages):
        began = next(at for at, row in enumerate(forwards) if row[stage] == 2 * stages)
        ended = next(at for at, row in enumerate(backwards) if row[stage] == 2 * stages)
        delay = sum(row[stage] is not None for row in backwards[began:ended])
        assert (
            asynchronous("pipemare").forward_delay(Setting(stages, batch), stage) == delay / batch
        )


def test_numbers_match_the_papers_formulas():
    four = Setting(num_stages=4, num_microbatches=8)
    pipemare = asynchronous("pipemare")
    assert [pipemare.forward_delay(four, s) for s in range(4)] == [7 / 8, 5 / 8, 3 / 8, 1 / 8]
    spectrain = asynchronous("spectrain")
    assert [spectrain.forward_delay(four, s) for s in range(4)] == [3, 2, 2, 1]
    assert [spectrain.backward_delay(four, s) for s in range(4)] == [0, 0, 1, 1]
    wpipe, double = asynchronous("wpipe"), asynchronous("pipedream-2bw")
    for count in ("extra_copies", "forward_delay"):
        half, whole = (sum(getattr(k, count)(four, s) for s in range(4)) for k in (wpipe, double))
        assert 2 * half == whole
    hetpipe = asynchronous("hetpipe")
    assert hetpipe.forward_delay(four, 0) == 4 + 3 - 1
    assert hetpipe.forward_delay(four._replace(clock_distance=3), 0) == 4 * 4 + 3 - 1
    avgpipe = asynchronous("avgpipe")
    assert avgpipe.extra_copies(four._replace(num_pipelines=2), 1) == 2
    assert avgpipe.in_flight(four._replace(num_pipelines=2), 1) == 6


def test_unknown_names_and_settings_are_refused():
    with pytest.raises(ScheduleError, match="unknown asynchronous schedule 'x'; known: pipedream,"):
        asynchronous("x")
    with pytest.raises(ScheduleError, match="needs at least 4 microbatches to an update, and 3"):
        check_setting(asynchronous("pipedream-2bw"), Setting(4, 3))
    with pytest.raises(ScheduleError, match="after every microbatch, not after 2; take 1"):
        check_setting(asynchronous("pipedream"), Setting(4, 2))
    for kind in ASYNCHRONOUS.values():
        check_setting(kind, Setting(4, 1 if kind.every_microbatch else 4))


ENDS = 0.05
"""Relative error: a cycle has up to 2 k microbatches, and may be cut at both ends of the 40 k used."""


def simulated_period(
    forward: Sequence[int], backward: Sequence[int], send: Sequence[int], warmups: Sequence[int]
) -> float:
    """Slots between microbatches under 1F1B, in the middle of a long step."""
    count, stages = 160 * len(forward), len(forward)
    end: dict[tuple[int, str, int], int] = {}
    orders = one_f_one_b([[s] for s in range(stages)], count, warmups)
    at, free = [0] * stages, [0] * stages
    while len(end) < 2 * stages * count:
        for s, order in enumerate(orders):
            while at[s] < len(order):
                _, op, m = order[at[s]]
                other = s - 1 if op == "F" else s + 1
                there = 0
                if 0 <= other < stages:
                    if (other, op, m) not in end:
                        break
                    there = end[other, op, m] + send[min(s, other)]
                took = forward[s] if op == "F" else backward[s]
                free[s] = end[s, op, m] = max(free[s], there) + took
                at[s] += 1
    early, late = count // 4, count // 2
    return (end[0, "B", late] - end[0, "B", early]) / (late - early)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9), st.booleans())
def test_equal_stages_reach_the_bottleneck_period(
    stages: int, forward: int, backward: int, send: int, eager: bool
):
    line = [[s] for s in range(stages)]
    warmups = (eager_warmups if eager else usual_warmups)(line)
    sends = [send] * (stages - 1)
    bound = bottleneck_period([forward + backward] * stages, sends, warmups)
    simulated = simulated_period([forward] * stages, [backward] * stages, sends, warmups)
    assert simulated == pytest.approx(bound, rel=ENDS)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.tuples(*[st.integers(1, 9)] * 2, st.integers(0, 9)), min_size=1, max_size=5))
def test_no_stages_are_faster_than_the_bottleneck_period(stages: list[tuple[int, int, int]]):
    forward, backward, send = zip(*stages, strict=True)
    warmups = usual_warmups([[s] for s in range(len(stages))])
    busy = [f + b for f, b in zip(forward, backward, strict=True)]
    bound = bottleneck_period(busy, send[:-1], warmups)
    assert simulated_period(forward, backward, send, warmups) >= bound * (1 - ENDS)


def test_sends_lengthen_the_period_and_deep_warm_ups_win_it_back():
    line = [[s] for s in range(8)]
    for share, usual in ((0.1, (8 + 1.4) / 8), (0.3, (8 + 4.2) / 8)):
        sends = [share] * 7
        assert bottleneck_period([1.0] * 8, sends, usual_warmups(line)) == pytest.approx(usual)
        assert bottleneck_period([1.0] * 8, sends, eager_warmups(line)) == pytest.approx(1.0)


def test_replicas_share_the_microbatches():
    assert bottleneck_period([6.0, 2.0], [1.0], [2, 1], [2, 1]) == 3.0
    assert bottleneck_period([2.0, 4.0], [5.0], [1, 1], [2, 2]) == 8.0
