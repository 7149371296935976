"""Tensor groups of several sizes on GPUs."""

import itertools

import pytest

from autopart.stage_degrees.placement import placements

CASES = [
    (degrees, replicas)
    for count in (2, 3)
    for degrees in itertools.product((1, 2, 4), repeat=count)
    for replicas in (1, 2, 3)
]


@pytest.mark.parametrize(("degrees", "replicas"), CASES)
def test_groups_are_aligned_apart_and_numbered_by_their_gpus(
    degrees: tuple[int, ...], replicas: int
):
    gpus = 16
    found = placements(gpus, degrees, replicas)
    # Where each degree divides the next larger one, stages side by side leave no gap.
    assert bool(found) == (replicas * sum(degrees) <= gpus)
    for one in found:
        starts = [
            (first, rank, degree)
            for own, ranks, degree in zip(one.first_gpus, one.stage_ranks, degrees, strict=True)
            for first, rank in zip(own, ranks, strict=True)
        ]
        taken = [gpu for first, _, t in starts for gpu in range(first, first + t)]
        assert len(set(taken)) == len(taken) == replicas * sum(degrees)
        assert max(taken) < gpus
        assert all(first % t == 0 for first, _, t in starts)
        # A rank's first GPU is the sum of the ranks before it; GPUs without a stage are ranks of one.
        size = {rank: t for _, rank, t in starts}
        for first, rank, _ in starts:
            assert first == sum(size.get(before, 1) for before in range(rank))


def test_pipelines_stand_side_by_side_or_stages_do():
    by_stage, by_pipeline = placements(8, (2, 1), 2)
    assert by_stage.first_gpus == ((0, 2), (4, 5))
    assert by_pipeline.first_gpus == ((0, 4), (2, 3))
    assert placements(4, (2, 1), 2) == ()
