"""Imbalances of exchanges that a block notes."""

import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autopart.records.expert_load import LayerLoad
from autopart.runtime.sharding.context.expert_loads import (
    ExpertLoads,
    imbalance_of,
    loads_of,
    note_counts,
    noted_loads,
)

FIRST = torch.tensor([[3, 1, 0, 0], [1, 1, 1, 1]])
"""Entries of two ranks for four experts: 6 for the first two, and 2 for the others."""
SECOND = torch.tensor([[2, 2, 2, 2], [2, 2, 2, 2]])


def test_the_imbalance_is_the_fullest_rank_divided_by_the_mean() -> None:
    assert imbalance_of([4, 2, 1, 1], 2) == 1.5
    assert imbalance_of([4, 2, 1, 1], 4) == 2.0
    assert imbalance_of([0, 0, 5, 0], 4) == 4.0
    assert imbalance_of([0, 0], 2) == 1.0


def test_a_block_notes_each_layer_at_every_degree_that_divides_the_experts() -> None:
    with noted_loads() as noted:
        note_counts("a", FIRST)
        note_counts("a", SECOND)
        note_counts("b", SECOND)
    note_counts("a", FIRST)
    assert loads_of(noted.sums()) == (
        LayerLoad(layer="a", expert=2, imbalance=1.25, largest=1.5),
        LayerLoad(layer="a", expert=4, imbalance=1.5, largest=2.0),
        LayerLoad(layer="b", expert=2, imbalance=1.0, largest=1.0),
        LayerLoad(layer="b", expert=4, imbalance=1.0, largest=1.0),
    )
    assert [one.layer for one in loads_of(noted.sums(), (2,))] == ["a", "b"]


def test_ranks_add_up_what_they_noted() -> None:
    with noted_loads() as one, noted_loads() as other:
        note_counts("a", FIRST)
    with noted_loads() as more:
        note_counts("a", SECOND)
    together = ExpertLoads()
    for own in (one, more):
        together.add(own.sums())
    assert one.sums() == other.sums()
    assert loads_of(together.sums())[0].imbalance == pytest.approx(1.25)


def test_threads_lose_no_note() -> None:
    with noted_loads() as noted:
        threads = [
            threading.Thread(target=lambda: [note_counts("a", FIRST) for _ in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [one.number for one in noted.sums()] == [200, 200]


def test_tensors_without_numbers_are_not_noted() -> None:
    with noted_loads() as noted:
        note_counts("a", FIRST.to("meta"))
        with FakeTensorMode():
            note_counts("a", torch.ones(2, 4))
    assert noted.sums() == ()
