import torch

from autopart.runtime.update.gradient_sum import Holders, holders_of
from tests.support.runtime.on_ranks import summed_gradients
from tests.support.runtime.rank_pool import RankPool


def test_replicas_share_their_stage_and_all_stages_with_a_tied_parameter_share_it():
    parameters = [("tokens", "a"), ("b",), ("c", "tokens")]
    assert holders_of(parameters, [(0, 1), (2, 3), (4, 5)]) == (
        Holders((0, 1), ("a",)),
        Holders((2, 3), ("b",)),
        Holders((4, 5), ("c",)),
        # Ranks 4 and 5 do not wait for the first stage before they sum their own.
        Holders((0, 1, 4, 5), ("tokens",)),
    )


def test_without_replicas_and_ties_nothing_is_summed():
    assert holders_of([("a",), ("b",)], [(0,), (1,)]) == ()


def test_gradients_become_their_sum_on_every_holder(two_ranks: RankPool):
    of = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([10.0, 20.0])}]
    for rank in two_ranks.call(summed_gradients, [Holders((0, 1), ("a",))], of):
        assert rank["a"].tolist() == [11.0, 22.0]


def test_gradients_are_summed_in_their_own_dtype(two_ranks: RankPool):
    whole = torch.tensor([0.1], dtype=torch.float64)
    half = torch.tensor([1.0, 3.0], dtype=torch.bfloat16)
    of = [{"a": whole, "b": half, "c": whole.clone()}] * 2
    for rank in two_ranks.call(summed_gradients, [Holders((0, 1), ("a", "b", "c"))], of):
        assert rank["a"].tolist() == [0.2] and rank["c"].tolist() == [0.2]
        assert rank["b"].dtype == torch.bfloat16 and rank["b"].tolist() == [2.0, 6.0]


def test_a_gradient_that_one_holder_lacks_counts_as_zero(two_ranks: RankPool):
    of = [{"a": None}, {"a": torch.tensor([4.0, 5.0])}]
    for rank in two_ranks.call(summed_gradients, [Holders((0, 1), ("a",))], of):
        assert rank["a"].tolist() == [4.0, 5.0]


def test_a_parameter_without_any_gradient_keeps_none_so_that_no_optimizer_decays_it(
    two_ranks: RankPool,
):
    of = [{"a": torch.tensor([1.0]), "b": None}, {"a": torch.tensor([1.0]), "b": None}]
    for rank in two_ranks.call(summed_gradients, [Holders((0, 1), ("a", "b"))], of):
        assert rank["a"].tolist() == [2.0] and rank["b"] is None
