import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.peers.piper import fewest_devices
from autopart.peers.piper.stage_pricer import StageOptions


def options(*rows):
    """Rows of (start, end, width, replicas, behind, time)."""
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return StageOptions(*columns, in_flight=np.zeros(len(rows), dtype=np.int64))


def random_options(rng, num_downsets):
    """A level for each downset, and options from lower to higher ones, with many equal times."""
    levels = np.concatenate([[0], np.sort(rng.integers(1, 4, num_downsets - 2)), [4]])
    rows = []
    for _ in range(int(rng.integers(1, 40))):
        start, end = sorted(rng.integers(0, num_downsets, 2).tolist())
        if levels[start] < levels[end]:
            rows.append(
                (
                    start,
                    end,
                    int(rng.integers(1, 4)),
                    int(rng.integers(1, 4)),
                    int(rng.integers(0, 7)),
                    float(rng.integers(0, 9)),
                )
            )
    return levels, rows


def tried(rows, num_downsets, limits, downset=None, time=0.0, replicas=0, used=0):
    """The bottlenecks of all paths, from the last downset to the first."""
    downset = num_downsets - 1 if downset is None else downset
    if downset == 0:
        yield time
    for start, end, width, count, behind, took in rows:
        if end == downset and replicas <= behind:
            more, most = replicas + count, used + count * width
            if most <= limits[0] and more <= limits[1]:
                yield from tried(rows, num_downsets, limits, start, max(time, took), more, most)


def check(seed):
    rng = np.random.default_rng(seed)
    num_downsets = int(rng.integers(2, 8))
    levels, rows = random_options(rng, num_downsets)
    limits = int(rng.integers(1, 12)), int(rng.integers(1, 8))
    best = min(tried(rows, num_downsets, limits), default=None)
    if not rows:
        return
    asked = options(*rows)
    found = fewest_devices.solve(asked, levels, np.zeros(num_downsets), *limits)
    assert (found is None) == (best is None)
    if found is None:
        return
    assert found.bottleneck == best
    taken = [rows[at] for at in found.options]
    assert [taken[0][0], taken[-1][1]] == [0, num_downsets - 1]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(taken))
    behind = 0
    for row in reversed(taken):
        assert behind <= row[4], "no more replicas behind than the option allows"
        behind += row[3]
    assert behind <= limits[1]
    assert found.devices == sum(row[2] * row[3] for row in taken) <= limits[0]
    lower = [row[5] for row in rows if row[5] < best]
    assert found.infeasible == (max(lower) if lower else None)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_the_bottleneck_is_the_best_of_all_paths(block):
    for seed in range(block * 500, block * 500 + 500):
        check(seed)


@pytest.mark.slow
@given(st.integers(0, 2**63))
def test_the_bottleneck_is_the_best_of_all_paths_whatever_the_options(seed):
    check(seed)


def test_more_replicas_behind_can_be_worth_more_devices():
    """The stage ahead is quick only with one replica behind it; two replicas take fewer devices."""
    rows = [
        (1, 2, 1, 2, 9, 3.0),
        (1, 2, 3, 1, 9, 3.0),
        (0, 1, 1, 1, 1, 2.0),
        (0, 1, 1, 1, 9, 5.0),
    ]
    found = fewest_devices.solve(options(*rows), np.arange(3), np.zeros(3), 4, 4)
    assert found == (3.0, (2, 1), 4, 2.0)
    fewer = fewest_devices.solve(options(*rows), np.arange(3), np.zeros(3), 3, 4)
    assert fewer == (5.0, (3, 0), 3, 3.0)
    assert fewest_devices.solve(options(*rows), np.arange(3), np.zeros(3), 2, 4) is None


def test_work_known_to_be_ahead_never_changes_the_answer():
    """Ten layers of equal work: whatever is ahead of a downset needs its share of the devices."""
    n, total = 10, 40
    rows = [
        (i, j, 1, d, 99, (j - i) / d)
        for i in range(n)
        for j in range(i + 1, n + 1)
        for d in range(1, 30)
    ]
    work = np.arange(n + 1) * 1.0
    with_work = fewest_devices.solve(options(*rows), np.arange(n + 1), work, total, total)
    without = fewest_devices.solve(options(*rows), np.arange(n + 1), np.zeros(n + 1), total, total)
    assert with_work is not None and without is not None
    assert with_work.bottleneck == without.bottleneck == 0.25


def test_there_is_no_path_without_options():
    nothing = StageOptions(*(np.zeros(0, dtype=np.int64) for _ in StageOptions._fields))
    assert fewest_devices.solve(nothing, np.arange(2), np.zeros(2), 4, 4) is None
