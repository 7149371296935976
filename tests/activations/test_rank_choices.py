"""The choice of policies for all stages of a rank, against every combination of points."""

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest

from autopart.activations import rank_choices
from autopart.activations.moments import Moments, bytes_at_moments, moments_of
from autopart.activations.rank_choices import (
    RankBytes,
    StagePoints,
    best_choice,
    leanest_choice,
    least_vectors,
)
from autopart.cost.in_flight import ranks_in_flight
from autopart.records.layouts import Layout
from autopart.schedules.catalogue import KINDS
from autopart.schedules.in_flight import KINDS as COUNTED
from autopart.schedules.in_flight import STASH, InFlight
from tests.support.seeds import seeds

SCHEDULES = {"interleaved-1f1b": 3, "looped-bfs": 2, "zbv": 2, "v-min": 2, "zb-h2": 1}
"""Schedules with their stages per rank."""


def drawn_rank(rng: random.Random) -> InFlight:
    """What one rank keeps under some schedule."""
    name, per_rank = rng.choice(sorted(SCHEDULES.items()))
    placement = KINDS[name].placement(3, per_rank)
    layout = Layout(
        schedule=name, stage_ranks=tuple((rank,) for rank in placement), num_microbatches=6
    )
    return rng.choice(list(ranks_in_flight(layout).values()))


def drawn_points(rng: random.Random, count: int, *, hosts: bool) -> StagePoints:
    """Points of a stage, those with fewer seconds first, as a frontier has them."""
    seconds = sorted([0.0] + [rng.choice([1.0, 2.0, rng.uniform(0, 3)]) for _ in range(count - 1)])
    most = 30 if hosts else 1
    return StagePoints(
        extra_time=np.array(seconds),
        forward_wait=np.array([own * rng.random() * hosts for own in seconds]),
        update_time=np.array([rng.choice([0.0, 1.0]) * hosts for _ in range(count)]),
        freed_bytes=np.array([0] + [rng.randrange(60) for _ in range(count - 1)]),
        workspace_bytes=np.array([rng.randrange(40) for _ in range(count)]),
        input_grad_workspace_bytes=np.array([rng.randrange(40) for _ in range(count)]),
        host_bytes=np.array([rng.randrange(most) for _ in range(count)]),
        state_off_device=np.array([rng.randrange(most) for _ in range(count)]),
        state_on_host=np.array([rng.randrange(most) for _ in range(count)]),
        changed_layers=np.array([0] + [rng.randint(1, 3) for _ in range(count - 1)]),
    )


def peak_of(
    in_flight: InFlight,
    stash: Sequence[int],
    stages: Sequence[StagePoints],
    places: Sequence[int],
) -> int:
    """The fullest place in the order, place by place: stash, state and the running action's workspace alone."""
    most = 0
    pairs = list(zip(stages, places, strict=True))
    away = sum(int(points.state_off_device[at]) for points, at in pairs)
    for column, op, counts in zip(in_flight.column, in_flight.op, in_flight.counts, strict=True):
        kept = [
            own - points.freed_bytes[at] for own, (points, at) in zip(stash, pairs, strict=True)
        ]
        points, at = pairs[column]
        in_w = 5
        whole, half = points.workspace_bytes[at], points.input_grad_workspace_bytes[at]
        work = (whole, whole, half, in_w, whole)[op]
        most = max(
            most, int(sum(n * own for n, own in zip(counts[STASH], kept, strict=True)) + work)
        )
    return most - away


def host_peak_of(in_flight: InFlight, stages: Sequence[StagePoints], places: Sequence[int]) -> int:
    """The most bytes on the host at any place in the order."""
    pairs = list(zip(stages, places, strict=True))
    state = sum(int(points.state_on_host[at]) for points, at in pairs)
    return state + max(
        sum(int(n * own.host_bytes[at]) for n, (own, at) in zip(counts[STASH], pairs, strict=True))
        for counts in in_flight.counts
    )


def beside_of(moments: Moments, stash: Sequence[int]) -> np.ndarray:
    """c of a rank whose stages have stash alone, and 5 bytes of workspace in W."""
    stages = len(stash)
    sizes = np.zeros((len(COUNTED), stages, 1), dtype=np.int64)
    sizes[STASH, :, 0] = stash
    last = np.full((stages, 1), 5)
    none = np.zeros(1, dtype=np.int64)
    return bytes_at_moments(moments, sizes, none, last, 0 * last)[:, 0]


def effort(stages: Sequence[StagePoints], places: tuple[int, ...]) -> tuple[float, int]:
    """What the rule compares: seconds, then changed layers."""
    pairs = list(zip(stages, places, strict=True))
    seconds = sum(float(own.extra_time[at] + own.update_time[at]) for own, at in pairs)
    return round(seconds, 9), sum(int(own.changed_layers[at]) for own, at in pairs)


def apart(stages: Sequence[StagePoints], places: tuple[int, ...]) -> tuple[float, ...]:
    """The seconds of each stage's forward, then backward, then update."""
    pairs = list(zip(stages, places, strict=True))
    return (
        *(float(own.forward_wait[at]) for own, at in pairs),
        *(float(own.extra_time[at] - own.forward_wait[at]) for own, at in pairs),
        *(float(own.update_time[at]) for own, at in pairs),
    )


@pytest.mark.parametrize("seed", seeds(30, 300, slow=65))
def test_the_choice_is_the_best_of_all_combinations(seed: int) -> None:
    rng = random.Random(seed)
    in_flight, hosts = drawn_rank(rng), seed % 2 > 0
    moments = moments_of(in_flight)
    stages = [drawn_points(rng, rng.randint(1, 5), hosts=hosts) for _ in in_flight.stages]
    stash = [rng.randrange(60, 120) for _ in stages]
    every = list(itertools.product(*(range(len(own.extra_time)) for own in stages)))
    peaks = {places: peak_of(in_flight, stash, stages, places) for places in every}
    on_host = {places: host_peak_of(in_flight, stages, places) for places in every}
    limit = sorted(peaks.values())[rng.randrange(len(every))] - rng.randrange(2)
    share = None
    if hosts and seed % 3:
        share = sorted(on_host.values())[rng.randrange(len(every))] - rng.randrange(2)
    rank = RankBytes(beside_of(moments, stash), limit, 0, share)
    within = [places for places in every if share is None or on_host[places] <= share]
    fitting = [places for places in within if peaks[places] <= limit]
    chosen = best_choice(moments, rank, stages)
    leanest = leanest_choice(moments, rank, stages)
    fewest = min(peaks[places] for places in within or every)
    assert peaks[leanest] == fewest or not within
    assert leanest in within or not within
    vectors = least_vectors(moments, rank, stages)
    if not fitting:
        assert chosen == leanest and vectors is None
        return
    assert chosen in fitting
    assert effort(stages, chosen) == min(effort(stages, places) for places in fitting)
    assert vectors is not None and vectors.places is not None
    seconds = {apart(stages, places) for places in fitting}
    least = {
        one
        for one in seconds
        if not any(o != one and all(a <= b for a, b in zip(o, one, strict=True)) for o in seconds)
    }
    assert {tuple(row.ravel().tolist()) for row in vectors.seconds} == least
    assert all(tuple(places) in fitting for places in vectors.places.tolist())


@pytest.mark.parametrize("seed", seeds(10, 60))
def test_too_many_choices_have_one_vector_below_all_of_them(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    in_flight = drawn_rank(rng)
    moments = moments_of(in_flight)
    stages = [drawn_points(rng, 4, hosts=seed % 2 > 0) for _ in in_flight.stages]
    beside = beside_of(moments, [100] * len(stages))
    places = tuple(0 for _ in stages)
    limit = peak_of(in_flight, [100] * len(stages), stages, places) - 30
    exact = least_vectors(moments, RankBytes(beside, limit), stages)
    monkeypatch.setattr(rank_choices, "MOST_CHOICES", 3)
    bound = least_vectors(moments, RankBytes(beside, limit), stages)
    if exact is None:
        return
    assert bound is not None and (bound.seconds[0] <= exact.seconds).all()
    assert bound.places is None or len(stages) == 1
