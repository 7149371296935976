import random

import msgspec
import numpy as np
import pytest

from autopart.bounds import joined_replicas
from autopart.bounds.joined_replicas import Joined, TripPairs, fewest_pairs, no_list_is_open
from autopart.bounds.open_replicas import all_open_counts, is_open, nothing_open_joined
from autopart.bounds.open_stages import OpenStages
from autopart.bounds.replicas_behind import replicas_behind
from autopart.bounds.uneven_replicas import ReplicaBounds
from autopart.cost.cuts import all_cuts
from autopart.pricing import price
from autopart.records.layouts import layouts_of
from autopart.records.problem import Demands
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds
from tests.support.uneven_problems import random_lists, random_path, stages_along, uneven_problem


@pytest.mark.parametrize("seed", seeds(40, 2500, slow=95))
def test_no_partition_is_faster_than_a_value_that_joined_lists_refute(seed: int):
    rng = random.Random(71_000 + seed)
    asked = uneven_problem(rng)
    cuts = all_cuts(asked.graph)
    for layout in layouts_of(asked, random_lists(asked, rng)):
        path = random_path(cuts, len(layout.stage_ranks), rng)
        if path is None:
            continue
        stages = stages_along(cuts, path)
        step = price(asked, layout, stages).prediction.step_time * (1 + 1e-9)
        # With the demanded number of stages the bounds are larger.
        own = Demands(
            replicas_per_stage=True, num_stages=rng.choice([None, len(layout.stage_ranks)])
        )
        bounds = ReplicaBounds(msgspec.structs.replace(asked, demands=own), cuts)
        assert not no_list_is_open(OpenStages(bounds, layout.schedule, step))
        counts = tuple(len(ranks) for ranks in layout.stage_ranks)
        assert is_open(bounds, counts, step)


@pytest.mark.parametrize("seed", seeds(15, 300))
def test_joined_lists_refute_no_value_below_which_a_list_is_open(seed: int):
    rng = random.Random(72_000 + seed)
    asked = msgspec.structs.replace(
        random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.5),
        num_microbatches=rng.randint(2, 16),
        demands=Demands(replicas_per_stage=True, num_stages=rng.choice([None, None, 2])),
    )
    bounds = ReplicaBounds(asked, all_cuts(asked.graph))
    least = min(float(replicas_behind(bounds, s).in_all().min()) for s in ("gpipe", "1f1b"))
    if least == np.inf:
        return
    for value in (least, *(least * (1 + rng.random() / 4) for _ in range(4))):
        found = list(all_open_counts(bounds, value))
        assert all(is_open(bounds, counts, value) for counts in found)
        assert not (found and nothing_open_joined(bounds, value))


def uneven_chain(seed: int, stages: int = 3) -> ReplicaBounds:
    rng = random.Random(seed)
    times = [1.0] * 9 if seed == 0 else [rng.uniform(0.5, 2.0) for _ in range(9)]
    asked = problem(
        chain_graph(*(layer(f"l{at}", forward_time=time) for at, time in enumerate(times))),
        num_microbatches=40,
        cluster=cluster(1, 13),
        demands=Demands(replicas_per_stage=True, num_stages=stages, schedules=("1f1b",)),
    )
    return ReplicaBounds(asked, all_cuts(asked.graph))


def first_open_value(bounds: ReplicaBounds) -> float:
    """The smallest value below which some list is open, within a millionth."""
    low = float(replicas_behind(bounds, "1f1b").in_all().min())
    high = 2 * low
    while high - low > 1e-6 * low:
        middle = (low + high) / 2
        some = next(all_open_counts(bounds, middle), None)
        low, high = (middle, high) if some is None else (low, middle)
    return high


@pytest.mark.parametrize("seed", seeds(3, 60))
def test_joined_lists_refute_as_much_as_the_list_that_opens_first(seed: int):
    bounds = uneven_chain(seed, stages=3 + seed % 2)
    first = first_open_value(bounds)
    assert not nothing_open_joined(bounds, first)
    assert nothing_open_joined(bounds, first * 0.985)


@pytest.mark.parametrize("seed", range(20))
def test_each_pair_of_window_and_work_has_one_that_stands_for_it(seed: int):
    rng = np.random.default_rng(seed)
    windows = [rng.integers(1, 99, size=4) for _ in range(8)]
    # A larger window mostly has more work, so that many pairs stand side by side.
    given = [TripPairs(own, own + rng.integers(0, 9, size=4) / 2) for own in windows]
    kept = fewest_pairs(given)
    assert len(kept.window) <= joined_replicas.MOST_PAIRS
    for one in given:
        for window, work in zip(one.window, one.work, strict=True):
            assert any(kept.window[kept.work <= work] >= window)


def test_a_joined_beginning_is_no_later_than_any_of_its_members():
    late, early = (np.array([3.0, 4.0]), np.array([1.0, 5.0]))
    few, many = (TripPairs(np.array([window]), np.array([float(window)])) for window in (2, 9))
    joined = Joined(late.copy(), early.copy(), (few,))
    joined.join(early, late, (many,))
    assert joined.arrival.tolist() == joined.drain.tolist() == [1.0, 4.0]
    assert set(fewest_pairs(joined.back[0]).window.tolist()) == {2, 9}


def test_joined_lists_refute_values_that_stages_alone_leave_open():
    bounds = uneven_chain(0)
    alone = float(replicas_behind(bounds, "1f1b").in_all().min())
    assert nothing_open_joined(bounds, alone * 1.025)


def test_fewer_pairs_of_window_and_work_refute_less_but_nothing_wrongly(
    monkeypatch: pytest.MonkeyPatch,
):
    bounds = uneven_chain(0)
    alone = float(replicas_behind(bounds, "1f1b").in_all().min())
    values = [alone * (1 + at / 100) for at in range(8)]
    many = [nothing_open_joined(bounds, value) for value in values]
    monkeypatch.setattr(joined_replicas, "MOST_PAIRS", 1)
    few = [nothing_open_joined(bounds, value) for value in values]
    listed = [not list(all_open_counts(bounds, value)) for value in values]
    assert all(not one or two for one, two in zip(few, many, strict=True))
    assert all(not one or two for one, two in zip(many, listed, strict=True))
    assert sum(few) <= sum(many) <= sum(listed)
