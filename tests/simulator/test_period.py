"""The period against long plays of steps, closed forms, and Karp's algorithm alone."""

import random
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest

from autopart.records.prediction import Sync, SyncParts
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.simulator import period
from autopart.simulator.carried import Carried, begin_of
from autopart.simulator.costs import StageTimes
from autopart.simulator.period import period_of, period_times
from autopart.simulator.syncs import NO_EFFECTS
from autopart.simulator.working_order import compile_schedule
from tests.support.back_to_back import played_period
from tests.support.seeds import seeds
from tests.support.steps import Step, random_step, stage


def period_of_step(step: Step, *, rendezvous: bool = False) -> float:
    return period_of(
        step.schedule,
        step.ranks,
        step.stages,
        step.syncs,
        action_overhead=step.overhead,
        sends_overlap=step.overlap,
        rendezvous=rendezvous,
    )


def uneven_step(rng: random.Random) -> Step:
    """A step whose seconds are no whole numbers, and some of whose stages are nearly alike."""
    step, near = random_step(rng), rng.choice([0.0, 1e-6, 1e-3, 0.3])

    def moved(seconds: float) -> float:
        return seconds * (1 + near * rng.random())

    times = ("forward_time", "backward_time", "send_time", "send_back_time", "update_time")
    stages = [
        msgspec.structs.replace(one, **{name: moved(getattr(one, name)) for name in times})
        for one in step.stages
    ]
    return step._replace(stages=stages)


@pytest.mark.parametrize("seed", seeds(15, 240, slow=50))
def test_the_period_is_the_growth_of_a_long_play(seed: int):
    step = uneven_step(random.Random(seed))
    assert period_of_step(step) == pytest.approx(played_period(step), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_each_way_to_the_period_gives_the_same(steps: int, monkeypatch: pytest.MonkeyPatch):
    """With few steps, the slowest rank's delays and Karp's algorithm decide."""
    drawn = [uneven_step(random.Random(seed)) for seed in range(90)]
    # A send that waits for its receiver may deadlock where its order does not.
    named = [one for one in drawn if one.name == "gpipe" or (one.name == "1f1b" and one.overlap)]
    wanted = [period_of_step(one) for one in drawn]
    waiting = [period_of_step(one, rendezvous=True) for one in named]
    asked = {name: Mock(wraps=getattr(period, name)) for name in ("_from_slowest", "_largest_mean")}
    for name, counted in asked.items():
        monkeypatch.setattr(period, name, counted)
    monkeypatch.setattr(period, "FEW_STEPS", steps)
    monkeypatch.setattr(period, "MOST_STEPS", steps)
    assert [period_of_step(one) for one in drawn] == pytest.approx(wanted, rel=1e-12)
    assert [period_of_step(one, rendezvous=True) for one in named] == pytest.approx(
        waiting, rel=1e-12
    )
    if steps == 1:
        assert all(counted.call_count > 10 for counted in asked.values())


@pytest.mark.slow
def test_partitions_side_by_side_have_their_own_periods():
    ranks = [(0,), (1,), (2,)]
    program = compile_schedule(make_schedule("1f1b", ranks, 7), ranks)
    rng = random.Random(3)
    rows = [
        [stage(rng.random(), rng.random(), update_time=rng.random(), send_time=0.1) for _ in ranks]
        for _ in range(9)
    ]
    columns = [
        StageTimes(
            **{
                name: np.array([getattr(row[s], name) for row in rows])
                for name in StageTimes._fields
            }
        )
        for s in range(3)
    ]
    together = period_times(program, ranks, columns, (), action_overhead=0.0, sends_overlap=True)
    for row, one in zip(rows, together.tolist(), strict=True):
        alone = period_of(
            program.actions.schedule, ranks, row, (), action_overhead=0.0, sends_overlap=True
        )
        assert one == pytest.approx(alone, rel=1e-13)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "zb-h1", "zb-h2", "zbv"])
def test_only_zero_bubble_of_twice_the_stash_has_no_idle_time_between_its_steps(name: str):
    k, m, each = 4, 12, KINDS[name].stages_per_rank or 1
    ranks = [(rank,) for rank in KINDS[name].placement(k, each)]
    stages = [stage(1.0, 2.0, weight_grad_time=1.0, update_time=0.5) for _ in ranks]
    schedule = make_schedule(name, ranks, m)
    found = period_of(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)
    idle = found - each * (3.0 * m + 0.5)
    slots = {"gpipe": 3.0 * (k - 1), "1f1b": 3.0 * (k - 1), "zb-h1": k - 1.0}
    assert idle == pytest.approx(slots.get(name, 0.0))


def test_a_sync_of_all_ranks_makes_the_period_the_step():
    """A norm over all gradients is such a sync: no rank starts its next step before the last one."""
    ranks = [(0,), (1,), (2,)]
    stages = [stage(1.0, 2.0, weight_grad_time=1.0, update_time=0.25)] * 3
    step = Step("zb-h2", make_schedule("zb-h2", ranks, 6), ranks, stages, (), 0.0, True)
    assert period_of_step(step) < step.simulate().makespan
    together = step._replace(syncs=(Sync(what="norm", ranks=(0, 1, 2), time=0.5),))
    assert period_of_step(together) == pytest.approx(together.simulate().makespan)


def test_hidden_syncs_and_gathers_count_from_the_rank_s_own_start():
    """One stage on two ranks: all times are known, and the two ranks run in step."""
    parts = SyncParts(
        stage=0,
        buckets=2.0,
        early_time=1.0,
        after_backward=0.75,
        after_weights=0.75,
        slows_backward=0.125,
        slows_weights=0.0,
        gather_time=1.0,
        gather_wait=0.5,
    )
    ranks = [(0, 1)]
    own = stage(1.0, 2.0, update_time=0.25)
    sync = Sync(what="stage 0", ranks=(0, 1), time=2.0, parts=parts)
    step = Step("gpipe", make_schedule("gpipe", ranks, 8), ranks, [own], (sync,), 0.0, True)
    # The gather's wait, four microbatches, the slowed last backward, its last bucket, the update.
    assert period_of_step(step) == 0.5 + 4 * 3.0 + 0.125 + 0.75 + 0.25
    # A bucket that takes longer than the whole step is waited for from the step's start on.
    long = msgspec.structs.replace(parts, early_time=40.0)
    slow = step._replace(syncs=(msgspec.structs.replace(sync, parts=long),))
    assert period_of_step(slow) == 40.0 + 0.25


def test_a_gather_waits_for_the_updates_of_all_its_ranks():
    effects = NO_EFFECTS._replace(begin={0: 0.5}, gathers={0: (0, 2)})
    assert begin_of(Carried([1.0, 7.0, 3.0], []), effects, max) == [3.5, 7.0, 3.0]
