"""Rows under views, beside the positions that tensors have."""

import itertools

import pytest
import torch

from autopart.runtime.sharding.context.exchange import own_chunks, put_chunks
from autopart.runtime.sharding.context.states import CONTEXT, Rows, check_length, viewed

BEFORE = [(3, 8, 5), (3, 8, 10), (24, 5), (8, 15), (1, 8, 1, 6), (3, 8, 2, 5)]
AFTER = [
    *BEFORE,
    (3, 2, 4, 5),
    (120,),
    (3, 40),
    (6, 4, 5),
    (3, 8, 5, 2),
    (48,),
    (3, 16, 5),
    (4, 12),
]


def positions(shape: tuple[int, ...], rows: Rows) -> torch.Tensor:
    """The position of each element of a tensor."""
    inner = shape[rows.dim] // (rows.outer * rows.size)
    own = torch.arange(rows.size).repeat_interleave(inner).repeat(rows.outer)
    return own.view([-1 if d == rows.dim else 1 for d in range(len(shape))]).expand(shape)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(BEFORE, AFTER)))
def test_a_view_keeps_each_elements_position(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    if torch.Size(before).numel() != torch.Size(after).numel():
        return
    dim = before.index(8) if 8 in before else 0
    rows = Rows(dim, 8, outer=before[dim] // 8)
    found = viewed(rows, before, after)
    told = positions(before, rows).reshape(after)
    if found is None:
        # No dimension of the result runs over the positions with samples outside and parts of tokens inside.
        able = [
            torch.equal(positions(after, Rows(d, 8, outer)), told)
            for d, size in enumerate(after)
            for outer in range(1, size // 8 + 1)
            if size % (8 * outer) == 0
        ]
        assert not any(able)
    else:
        assert torch.equal(positions(after, found), told)
        assert viewed(found, after, before) == rows


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_the_ranks_chunks_are_all_of_a_tensor(degree: int) -> None:
    whole = torch.randn(2, 3 * 8 * 2, 5)
    again = torch.zeros_like(whole)
    for rank in range(degree):
        own = own_chunks(whole, (1, 3), degree, rank, CONTEXT)
        assert own.shape == (2, 48 // degree, 5)
        put_chunks(again, own, (1, 3), degree, rank, CONTEXT)
    assert torch.equal(again, whole)


def test_a_rank_has_a_chunk_from_each_end() -> None:
    found = [own_chunks(torch.arange(8), (0, 1), 2, rank, CONTEXT).tolist() for rank in range(2)]
    assert found == [[0, 1, 6, 7], [2, 3, 4, 5]]


def test_a_length_that_chunks_do_not_divide_is_refused_with_degrees_that_do() -> None:
    with pytest.raises(Exception, match=r"6 positions, which is no multiple of 4; .*degree 3"):
        check_length(6, 2, "'ids'")
