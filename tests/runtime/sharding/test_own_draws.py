"""Slices draw the plain model's numbers in a check, and numbers of their own otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from autopart.runtime.sharding.collectives import joined_slices, own_slices
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.own_draws import Cut, own_draws
from autopart.runtime.transforms.seeded_draws import SeededDraws, starts

aten = torch.ops.aten
GROUP, DEGREE, P = "draws", 4, 0.5


class OneOf(LoneRank):
    """One rank of several, which needs no others here."""

    is_alone = False

    def __init__(self, rank: int) -> None:
        super().__init__(DEGREE)
        self._rank = rank

    def rank(self) -> int:
        """Return its number."""
        return self._rank


def on_each_rank(work: Callable[[int], Any]) -> list[Any]:
    """The results of the ranks, each from the same random state."""
    found: list[Any] = []
    for rank in range(DEGREE):
        with registered(GROUP, OneOf(rank)), torch.random.fork_rng():
            torch.manual_seed(3)
            found.append(work(rank))
    return found


def own(x: torch.Tensor, cut: Cut, rank: int) -> torch.Tensor:
    dim, parts, copies = cut
    return torch.cat(own_slices(x, dim, parts, DEGREE // copies, rank // copies), dim)


def dropped(x: torch.Tensor, cut: Cut) -> torch.Tensor:
    cuts = (cut, None, None)
    return own_draws(aten.dropout.default, cuts, cut, DEGREE, GROUP, x, P, True)


def as_in_a_check(work: Callable[[], torch.Tensor]) -> torch.Tensor:
    with SeededDraws():
        starts(7)
        return work()


@pytest.mark.parametrize("cut", [(0, (), 1), (1, (), 1), (1, (16, 8), 1), (1, (), 2)])
def test_in_a_check_slices_of_a_dropout_are_those_of_the_plain_model(cut: Cut) -> None:
    whole = torch.randn(8, 24)
    plain = as_in_a_check(lambda: aten.dropout.default(whole, P, True))
    found = on_each_rank(lambda r: as_in_a_check(lambda: dropped(own(whole, cut, r), cut)))
    for rank, part in enumerate(found):
        torch.testing.assert_close(part, own(plain, cut, rank), rtol=0, atol=0)


def test_in_a_check_heads_attend_with_the_plain_model_s_dropout() -> None:
    """With a mask by heads, and gradients that reach the rank's own slices only."""
    query, key, value = (torch.randn(2, 8, 6, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.randn(8, 6, 6, dtype=torch.float64)
    heads, of_mask = (1, (), 1), (0, (), 1)
    attention = aten.scaled_dot_product_attention.default

    def gradient(x: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        as_in_a_check(lambda: work(leaf)).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    plain = gradient(query, lambda q: attention(q, key, value, attn_mask=mask, dropout_p=P))

    def of_rank(rank: int) -> torch.Tensor:
        k, v = (own(x, heads, rank) for x in (key, value))
        named = {"attn_mask": own(mask, of_mask, rank), "dropout_p": P}
        cuts = (heads, heads, heads, of_mask, None)
        return gradient(
            own(query, heads, rank),
            lambda q: own_draws(attention, cuts, heads, DEGREE, GROUP, q, k, v, **named),
        )

    torch.testing.assert_close(joined_slices(on_each_rank(of_rank), 1, ()), plain)


def test_otherwise_slices_draw_their_own_numbers_and_whole_values_equal_ones() -> None:
    ones = torch.ones(64)

    def work(_: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first, second = dropped(ones, (0, (), 1)), dropped(ones, (0, (), 1))
        return first, second, aten.dropout.default(ones, P, True)

    firsts, seconds, wholes = zip(*on_each_rank(work), strict=True)
    every = [*firsts, *seconds]
    assert all(not torch.equal(x, y) for i, x in enumerate(every) for y in every[:i])
    assert all(torch.equal(whole, wholes[0]) for whole in wholes)


def test_ranks_with_the_same_slice_draw_equal_numbers() -> None:
    ones = torch.ones(64)
    found = on_each_rank(lambda _: dropped(ones, (0, (), 2)))
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3])
    assert not torch.equal(found[0], found[2])


def test_a_second_run_in_backward_draws_the_same_numbers() -> None:
    def difference(_: int) -> float:
        x, masks = torch.ones(64, requires_grad=True), list[torch.Tensor]()

        def run(given: torch.Tensor) -> torch.Tensor:
            made = dropped(given, (0, (), 1))
            masks.append(made.detach())
            return made**2

        checkpoint(run, x, use_reentrant=False).sum().backward()
        first, second = masks
        return float((first - second).abs().max())

    assert on_each_rank(difference) == [0.0] * DEGREE
