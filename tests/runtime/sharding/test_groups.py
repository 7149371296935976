"""Groups of ranks: threads exchange, a lone rank does not, and an unknown group is told."""

import threading

import pytest
import torch

from autopart.errors import RunError
from autopart.runtime.sharding.collectives import copy, gather, reduce, scatter, take
from autopart.runtime.sharding.groups import LoneRank, group_named, registered
from autopart.runtime.sharding.thread_ranks import ThreadRanks


def test_threads_sum_and_gather_in_the_order_of_ranks() -> None:
    group, found = ThreadRanks(3), dict[int, tuple[torch.Tensor, ...]]()

    def work(rank: int) -> None:
        x = torch.full((2, 3), 10.0**rank)
        found[rank] = (
            reduce(x, "some"),
            scatter(x, 1, 3, "some"),
            gather(x[:, :1], 1, True, 3, "some"),
            take(torch.arange(6.0), 0, (3, 3), 3, "some"),
        )

    with registered("some", group):
        group.run(work)
    for rank, (total, part, joined, own) in found.items():
        assert total.tolist() == [[111.0] * 3] * 2
        assert part.tolist() == [[111.0]] * 2
        assert joined.tolist() == [[1.0, 10.0, 100.0]] * 2
        assert own.tolist() == [rank, 3.0 + rank]


def test_each_backward_is_the_transpose_of_its_forward() -> None:
    group, found = ThreadRanks(2), dict[int, list[list[float]]]()

    def work(rank: int) -> None:
        gradients: list[list[float]] = []
        for function in (
            lambda x: copy(x, "some"),
            lambda x: reduce(x, "some"),
            lambda x: scatter(x, 0, 2, "some"),
            lambda x: gather(x, 0, True, 2, "some"),
            lambda x: gather(x, 0, False, 2, "some"),
            lambda x: take(x, 0, (), 2, "some"),
        ):
            x = torch.zeros(2, requires_grad=True)
            out = function(x)
            out.backward(torch.arange(1.0, out.numel() + 1) * 10**rank)
            assert x.grad is not None
            gradients.append(x.grad.tolist())
        found[rank] = gradients

    with registered("some", group):
        group.run(work)
    assert found[0] == [[11, 22], [1, 2], [1, 10], [11, 22], [1, 2], [1, 10]]
    assert found[1] == [[11, 22], [10, 20], [1, 10], [33, 44], [30, 40], [1, 10]]


def test_the_error_of_one_thread_ends_all_of_them() -> None:
    group = ThreadRanks(2)

    def work(rank: int) -> None:
        if rank == 1:
            raise ValueError("rank 1 has had enough")
        group.all_reduce(torch.zeros(1), "sum")

    before = threading.active_count()
    with pytest.raises(ValueError, match="rank 1 has had enough"):
        group.run(work)
    assert threading.active_count() == before


def test_a_lone_rank_makes_the_shapes_of_all_and_copies_nothing() -> None:
    with registered("some", LoneRank(4)):
        x = torch.ones(8, 2)
        assert reduce(x, "some").data_ptr() == x.data_ptr()
        assert scatter(x, 0, 4, "some").shape == (2, 2)
        assert gather(x, 0, True, 4, "some").shape == (32, 2)
        assert gather(x.to("meta"), 0, True, 4, "some").shape == (32, 2)


def test_a_group_that_is_not_registered_is_an_error() -> None:
    with pytest.raises(RunError, match="no group of ranks is registered as 'nobody'"):
        group_named("nobody")
