"""The dynamic program over downsets, with charges from a table: no planner's charges are in it."""

import itertools
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopart.downsets import enumerate_downsets
from autopart.peers.dnn_partitioning import downset_dp
from autopart.peers.dnn_partitioning.downset_dp import (
    DeviceKind,
    RowStage,
    TimeIsUp,
    fewest_devices,
)
from autopart.peers.dnn_partitioning.downset_neighbourhood import downsets_near
from autopart.peers.dnn_partitioning.downset_rows import DownsetRows, undominated


def random_order(rng: random.Random, size: int) -> list[list[int]]:
    return [[u for u in range(e) if rng.random() < 0.3] for e in range(size)]


def all_downsets(before: list[list[int]]) -> set[int]:
    """Every downset as the bits of a whole number, from a look at every subset."""
    closed = [sum(1 << u for u in row) for row in before]
    return {
        s
        for s in range(1 << len(before))
        if all(s & need == need for e, need in enumerate(closed) if s >> e & 1)
    }


def as_numbers(rows: np.ndarray) -> list[int]:
    return [sum(int(word) << 64 * at for at, word in enumerate(row)) for row in rows]


class TableCharges:
    """Any charge at all for each pair of rows."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def towards(self, targets: np.ndarray):
        return lambda sources, places: self.table[np.ix_(sources, targets[places])].copy()


def fewest_by_trying(sets: list[int], a: np.ndarray, b: np.ndarray, devices: int, m: int, tau: int):
    """The fewest first-kind devices over every chain of downsets; None above `devices`."""

    def fewest(row: int, m: int) -> float:
        if not sets[row]:
            return 0
        options = [math.inf]
        for source, smaller in enumerate(sets):
            if smaller != sets[row] and smaller & sets[row] == smaller:
                if a[source, row] < tau:
                    options.append(fewest(source, m) + 1)
                if m and b[source, row] < tau:
                    options.append(fewest(source, m - 1))
        return min(options)

    found = fewest(len(sets) - 1, m)
    return None if found > devices else found


def rows_of(before: list[list[int]], second: int) -> tuple[DownsetRows, list[int]]:
    found = np.concatenate(list(enumerate_downsets(before, 100)))
    order = np.argsort([number.bit_count() for number in as_numbers(found)], kind="stable")
    found = found[order]
    size = len(found)
    rows = DownsetRows(
        bits=found.T.copy(),
        weight=np.zeros(size, dtype=np.int64),
        needs=np.zeros((second + 1, size), dtype=np.int64),
        before=before,
        heavy=np.zeros(len(before), dtype=bool),
    )
    return rows, as_numbers(found)


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(0, 9), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_every_downset_is_enumerated_once_in_pieces_of_any_size(size: int, chunk: int, seed: int):
    before = random_order(random.Random(seed), size)
    found = [n for rows in enumerate_downsets(before, chunk) for n in as_numbers(rows)]
    assert len(set(found)) == len(found)
    assert set(found) == all_downsets(before)


def test_elements_beyond_a_word_are_kept_apart():
    chain = [[e - 1] if e else [] for e in range(150)]
    found = {n for rows in enumerate_downsets(chain, 10) for n in as_numbers(rows)}
    assert found == {(1 << e) - 1 for e in range(151)}


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2), st.integers(0, 2**32 - 1))
def test_the_fewest_devices_are_those_of_trying_every_chain(
    size: int, devices: int, second: int, seed: int
):
    rng = random.Random(seed)
    rows, sets = rows_of(random_order(rng, size), second)
    draw = np.random.default_rng(seed)
    a, b = (draw.integers(0, 9, (len(sets), len(sets))).astype(float) for _ in range(2))
    tau = rng.randint(1, 9)
    kinds = DeviceKind(devices, TableCharges(a), 0), DeviceKind(second, TableCharges(b), 0)
    found = fewest_devices(rows, *kinds, tau, math.inf)
    expected = fewest_by_trying(sets, a, b, devices, second, tau)
    if found is None:
        assert expected is None
        return
    assert sum(not piece.second for piece in found) == expected
    assert sum(piece.second for piece in found) <= second
    assert [found[0].source, found[-1].target] == [0, len(sets) - 1]
    assert all(one.target == other.source for one, other in itertools.pairwise(found))
    assert all((b if p.second else a)[p.source, p.target] < tau for p in found)


def test_rows_that_cannot_end_in_time_are_not_needed():
    """With the number of devices that the rest really needs as the bound, the answer is the same."""
    rng, draw = random.Random(3), np.random.default_rng(3)
    for _ in range(60):
        rows, sets = rows_of(random_order(rng, 5), 0)
        a = draw.integers(0, 6, (len(sets), len(sets))).astype(float)
        kind, none = DeviceKind(3, TableCharges(a), 0), DeviceKind(0, TableCharges(a), 0)
        plain = fewest_devices(rows, kind, none, 4, math.inf)
        rest = [
            fewest_by_trying([s & ~sets[row] for s in sets[row:]], a[row:, row:], a, 99, 0, 4)
            if all(s & sets[row] == sets[row] for s in sets[row:])
            else 0
            for row in range(len(sets))
        ]
        needs = np.array([[99 if n is None else n for n in rest]])
        bounded = fewest_devices(rows._replace(needs=needs), kind, none, 4, math.inf)
        assert (plain is None) == (bounded is None)
        if plain is not None and bounded is not None:
            assert len(plain) == len(bounded)


def test_on_equally_few_devices_the_smaller_largest_charge_is_kept():
    rows, sets = rows_of([[], []], 0)
    assert sets == [0, 1, 2, 3]
    charges = np.full((4, 4), 9.0)
    charges[0, 1] = charges[1, 3] = 5.0
    charges[0, 2] = charges[2, 3] = 4.0
    kind, none = DeviceKind(2, TableCharges(charges), 0), DeviceKind(0, TableCharges(charges), 0)
    found = fewest_devices(rows, kind, none, 6, math.inf)
    assert found == (RowStage(False, 0, 2), RowStage(False, 2, 3))
    assert fewest_devices(rows, kind, none, 4, math.inf) is None


def test_a_deadline_that_has_passed_ends_the_search():
    rows, sets = rows_of([[]] * 4, 0)
    ones = np.ones((len(sets), len(sets)))
    kind = DeviceKind(2, TableCharges(ones), 0)
    with pytest.raises(TimeIsUp):
        fewest_devices(rows, kind, kind._replace(devices=0), 2, time.perf_counter() - 1)


def test_a_source_is_beaten_by_a_known_row_with_a_heavy_element_more():
    rows, sets = rows_of([[], [0], []], 0)
    heavy = rows._replace(heavy=np.array([True, True, False]))
    everything = np.arange(len(sets))
    left = undominated(heavy, everything, everything)
    assert sorted(sets[row] for row in left) == [0b011, 0b111]
    unknown = np.array([row for row in everything if sets[row] != 0b011])
    left = undominated(heavy, everything, unknown)
    assert sorted(sets[row] for row in left) == [0b001, 0b011, 0b111]


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_downsets_nearby_are_downsets_and_all_of_them_if_asked(
    size: int, count: int, seed: int
):
    rng = random.Random(seed)
    before = random_order(rng, size)
    every = all_downsets(before)
    start = rng.choice(sorted(every))
    centre = np.array([[bool(start >> e & 1) for e in range(size)]])
    found = as_numbers(downsets_near(before, centre, count))
    assert start in found
    assert set(found) <= every and len(set(found)) == len(found)
    assert len(found) >= min(count, len(every))
    assert set(as_numbers(downsets_near(before, centre, 1 << size))) == every


def test_pieces_of_sources_and_targets_change_nothing(monkeypatch: pytest.MonkeyPatch):
    rng, draw = random.Random(8), np.random.default_rng(8)
    for _ in range(30):
        rows, sets = rows_of(random_order(rng, 5), 1)
        a, b = (draw.integers(0, 9, (len(sets), len(sets))).astype(float) for _ in range(2))
        kinds = DeviceKind(2, TableCharges(a), 0), DeviceKind(1, TableCharges(b), 0)
        whole = fewest_devices(rows, *kinds, 6, math.inf)
        with monkeypatch.context() as patch:
            patch.setattr(downset_dp, "BLOCK", 2)
            patch.setattr(downset_dp, "TILE", 3)
            assert fewest_devices(rows, *kinds, 6, math.inf) == whole
