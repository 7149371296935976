from collections.abc import Sequence

import pytest

from autopart.runtime.profiling.convergence import (
    converged_rounds,
    notes_on_rounds,
    scattered_layers,
    spread_of,
    trend,
)
from autopart.runtime.profiling.rounds import LayerTimes, Round

NAMES = ("embed", "block", "head")


def rounds_of(*layers: Sequence[float]) -> list[Round]:
    """Return rounds with the given seconds for each layer, half of them forward."""
    return [
        Round(tuple(LayerTimes(t / 2, t / 2, t / 2, t / 2, 0.0) for t in column), 1.0, 1.0)
        for column in zip(*layers, strict=True)
    ]


def even(times: Sequence[float]) -> list[Round]:
    """Return rounds in which three layers share the step times equally."""
    return rounds_of(*([t / 3 for t in times] for _ in NAMES))


def notes(counted: list[Round], all_rounds: list[Round], waiting: float = 0.0) -> str:
    return "; ".join(notes_on_rounds(counted, all_rounds, NAMES, waiting, 0.1))


def test_the_trend_follows_the_order_and_not_the_sizes() -> None:
    assert (trend([1, 2, 30]), trend([3, 2, 1]), trend([2, 2, 2]), trend([1])) == (1, -1, 0, 0)
    assert trend([1, 3, 2, 4]) == pytest.approx(4 / 6)


def test_rounds_that_agree_give_no_notes() -> None:
    agreeing = even([1.0, 1.02, 0.99, 1.01])
    assert converged_rounds(agreeing, 4, 0.1) == agreeing
    assert converged_rounds(agreeing, 5, 0.1) is None, "there are not enough of them"
    assert notes(agreeing, agreeing) == ""


def test_a_step_that_grows_points_to_a_device_that_grows_warm() -> None:
    warm = even([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    said = notes(warm, warm)
    assert "scattered by 20.0 %" in said and "in 6 rounds, embed by 20.0 %" in said
    assert "it grew by 38.1 % from first to last, as on a device that grows warm" in said
    assert "more --warmup" in said


def test_rounds_with_first_touches_of_memory_do_not_count_and_are_reported() -> None:
    settled = even([3.0, 2.5, 2.0, 1.5, 1.01, 1.0, 1.02, 1.0])
    counted = converged_rounds(settled, 4, 0.1)
    assert counted is not None
    said = notes(list(counted), settled)
    assert said.startswith("the first 4 of 8 rounds do not count: it fell by 63.3 %")
    assert "touched for the first time" in said


def test_scatter_without_a_trend_points_to_other_processes() -> None:
    busy = even([1.0, 1.6, 1.0, 1.7, 1.1, 1.5])
    assert "with other processes on the machine" in notes(busy, busy, waiting=0.3)
    assert "others use caches, memory or the device" in notes(busy, busy)
    assert "an idle machine" in notes(busy, busy)


def test_a_large_layer_that_scatters_alone_is_named_and_a_small_one_is_not() -> None:
    wild = [1.0, 1.5, 1.0, 1.5, 1.0, 1.5]
    agreeing = rounds_of([t / 100 for t in wild], wild, [20.0 - t for t in wild])
    assert spread_of(agreeing) < 0.01
    assert scattered_layers(agreeing, NAMES, 0.1) == []
    large = rounds_of([t / 100 for t in wild], wild, [5.0 - t for t in wild])
    (found,) = scattered_layers(large, NAMES, 0.3)
    assert (found.name, found.spread) == ("block", pytest.approx(0.4))
    assert "the step has converged, but some of its layers scatter: block by 40.0 %" in notes(
        large, large
    )
