"""The bisection over the fewest ranks, against trying everything."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.solvers.fewest_ranks import (
    BestStages,
    DownsetStage,
    bottleneck,
    fewest_ranks,
    tighten,
)
from autopart.solvers.fewest_ranks_matrices import BytesMatrices, SecondsMatrices
from autopart.stopping.time_limit import GRACE, check_time, deadline_in


def stage_paths(size: int, ranks, most: int):
    """Every path with stages from downset 0 to the last, on at most `most` ranks."""

    def further(at: int, left: int):
        if at == size - 1:
            yield ()
            return
        for end in range(at + 1, size):
            for choice, taken in enumerate(ranks):
                if taken <= left:
                    for rest in further(end, left - taken):
                        yield (DownsetStage(at, end, choice), *rest)

    return further(0, most)


def fits(seconds: SecondsMatrices, stages) -> bool:
    if seconds.memory is None:
        return True
    later = 0
    for stage in reversed(stages):
        at = stage.start, stage.end
        in_flight = seconds.memory.in_flight(stage.choice, later)
        fixed = np.broadcast_to(seconds.memory.fixed[stage.choice], seconds.memory.stash.shape)[at]
        if fixed + in_flight * seconds.memory.stash[at] > seconds.memory.limit:
            return False
        later += seconds.ranks[stage.choice]
    return True


def random_matrices(rng: np.random.Generator, size: int, with_memory: bool) -> SecondsMatrices:
    ranks = sorted(rng.choice([1, 2, 3, 5], size=rng.integers(1, 4), replace=False).tolist())
    matrices = [rng.integers(0, 9, (size, size)).astype(float) for _ in ranks]
    for matrix in matrices:
        matrix[rng.random(matrix.shape) < 0.15] = np.inf
        matrix[np.tril_indices(size)] = np.inf
    memory = None
    if with_memory:
        stash = rng.integers(0, 5, (size, size)).astype(float)

        def in_flight(choice: int, later: int) -> int:
            return -(-later // ranks[choice]) + 1

        fixed = [rng.integers(0, 4, (size, size)).astype(float) for _ in ranks]
        memory = BytesMatrices(fixed, stash, in_flight, float(rng.integers(4, 16)))
    return SecondsMatrices(ranks, matrices, np.zeros(size), memory)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.integers(2, 6), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_any_seconds_give_the_smallest_bottleneck_over_all_paths(
    size: int, ranks: int, seed: int, with_memory: bool
):
    seconds = random_matrices(np.random.default_rng(seed), size, with_memory)
    found = tighten(
        lambda limit: fewest_ranks(seconds, limit, ranks),
        lambda stages: bottleneck(seconds.seconds_of, stages),
        None,
        0.0,
        100.0,
    )
    tried = [
        bottleneck(seconds.seconds_of, path)
        for path in stage_paths(size, seconds.ranks, ranks)
        if fits(seconds, path)
    ]
    best = min(tried, default=math.inf)
    if found is None:
        assert best == math.inf
        return
    assert found.bottleneck == found.lower_bound == pytest.approx(best, abs=1e-12)
    assert sum(seconds.ranks[stage.choice] for stage in found.stages) <= ranks
    assert fits(seconds, found.stages)


def test_a_bottleneck_is_reached_with_the_fewest_ranks():
    matrix = np.full((4, 4), np.inf)
    matrix[0, 1], matrix[1, 2], matrix[2, 3], matrix[0, 3] = 1.0, 1.0, 1.0, 2.0
    seconds = SecondsMatrices([1], [matrix], np.zeros(4))
    assert fewest_ranks(seconds, 1.0, 3) == (
        DownsetStage(0, 1, 0),
        DownsetStage(1, 2, 0),
        DownsetStage(2, 3, 0),
    )
    assert fewest_ranks(seconds, 1.0, 2) is None
    assert fewest_ranks(seconds, 2.0, 3) == (DownsetStage(0, 3, 0),)


def test_an_invalid_plan_ends_the_bisection_without_a_new_bound():
    limits: list[float] = []

    def stages_within(limit: float):
        limits.append(limit)
        return (DownsetStage(0, 1, 0),)

    known: BestStages[DownsetStage] = BestStages(4.0, 1.0, ())
    assert tighten(stages_within, lambda stages: None, known, 1.0, 4.0) == BestStages(4.0, 1.0, ())
    assert len(limits) == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_probe_that_outlasts_the_deadline_is_dropped_and_claims_nothing(known: bool):
    def probe(limit: float) -> tuple[int, ...] | None:
        check_time()
        raise AssertionError("the deadline has passed")

    best = BestStages(9.0, 2.0, (1, 2)) if known else None
    found = tighten(probe, lambda _: 1.0, best, 2.0, 9.0, deadline_in(-2 * GRACE))
    assert found == best


def test_a_probe_that_is_dropped_in_the_middle_keeps_the_best_stages(
    monkeypatch: pytest.MonkeyPatch,
):
    now, asked = [0.0], 0
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def probe(limit: float) -> tuple[int, ...] | None:
        nonlocal asked
        asked += 1
        now[0] += 0.0 if asked == 1 else 10.0
        check_time()
        return (8,)

    found = tighten(probe, lambda _: 8.0, None, 1.0, 9.0, 5.0)
    assert asked == 2 and found == BestStages(8.0, 1.0, (8,))
