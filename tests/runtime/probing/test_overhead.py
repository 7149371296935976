"""Overhead per action: what remains of a step without its layer times, never below zero."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import distributed

from autopart.runtime.probing import overhead
from autopart.runtime.probing.ranks import Ranks


@dataclass
class OneRank:
    """The only rank of a probe: it gathers its own values."""

    device: torch.device
    size: int = 1

    def gather(self, value: object, _what: str) -> list[object]:
        return [value]


def _measured(device: str = "cpu") -> float | None:
    return overhead.measure_overhead(cast(Ranks, OneRank(torch.device(device))))


@pytest.fixture
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("per_layer", "sign"), [(0.0, 1), (100.0, 0)])
def test_layer_times_are_taken_off_down_to_zero(
    monkeypatch: pytest.MonkeyPatch, per_layer: float, sign: int
) -> None:
    monkeypatch.setattr(overhead, "_layer_time", lambda _profile: per_layer)
    measured = _measured()
    assert measured is not None and (measured > 0.0) == (sign == 1) and measured >= 0.0


def test_a_gpu_s_overhead_is_not_measured() -> None:
    assert _measured("cuda") is None
