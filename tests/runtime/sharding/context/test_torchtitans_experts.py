"""The pass's experts beside torchtitan's, on two processes with gloo. `scripts/check_exports` has torchtitan."""

import pytest
import torch

from autopart.records.rank_group import Group
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import graphs_of
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.sharded_models import known_model
from tests.support.runtime.titan_experts import TitansExperts, mixture, titans_experts

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

pytest.importorskip("torchtitan.models.common.token_dispatcher")

MIXTRAL = "tests/support/models/hf_mixtral.py"
SHAPE = (4, 32, 64)
"""Samples, positions and width of the model's microbatch."""
ENTRIES = 2 * 32 * 2 * 64 * 4
"""Bytes of a rank's entries: two for each token of two samples, in float32."""
COUNTS = 4 * 8
"""Bytes of one number of entries for each expert."""


@pytest.fixture(scope="module")
def whole() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens, weights = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    return tokens, weights


@pytest.fixture
def titans(two_ranks: RankPool, whole: tuple[torch.Tensor, torch.Tensor]) -> list[TitansExperts]:
    return two_ranks.call(titans_experts, *whole)


def test_torchtitans_processes_compute_the_same_mixture(
    titans: list[TitansExperts], whole: tuple[torch.Tensor, torch.Tensor]
) -> None:
    tokens, weights = whole
    given = tokens.clone().requires_grad_()
    output = mixture()(given)
    (gradient,) = torch.autograd.grad((output * weights).sum(), (given,))
    for wanted, found in (
        (output.detach(), [one.output for one in titans]),
        (gradient, [one.gradient for one in titans]),
    ):
        torch.testing.assert_close(torch.cat(found), wanted.flatten(0, 1), rtol=0, atol=1e-5)


def test_the_collectives_are_torchtitans_in_kind_bytes_and_number(
    titans: list[TitansExperts],
) -> None:
    """A rank sends its entries and gets as many results back; backward has the same two messages.

    torchtitan exchanges numbers of entries by an all-to-all, in which a rank gets those of its own experts. Here an all-gather
    brings all of them: they give the sizes of the way back too.
    """
    graphs = graphs_of(known_model(MIXTRAL, 4).captured, Group(expert=2))
    listed = count_collectives(graphs, graphs.local(0))["model.layers.1"]
    forward = [(one.kind, one.bytes) for one in listed if one.phase == "forward"]
    backward = [(one.kind, one.bytes) for one in listed if one.phase == "input_grad"]
    assert forward == [("all_gather", 2 * COUNTS), *[("all_to_all", ENTRIES)] * 2]
    assert backward == [("all_to_all", ENTRIES)] * 2
    for theirs in titans:
        numbers, there, back = theirs.forward
        assert (numbers.given, numbers.found) == (COUNTS, COUNTS)
        assert there.given == back.found == ENTRIES and there.found == back.given
        first, second = theirs.backward
        assert (first.given, first.found) == (ENTRIES, there.found)
        assert (second.given, second.found) == (there.found, ENTRIES)
        assert {one.kind for one in theirs.forward + theirs.backward} == {"all_to_all_single"}
        assert theirs.counted == {"forward all_to_all_single": 3, "backward all_to_all_single": 2}
    # Which experts the tokens choose says how many entries a rank gets. In all they are as many as were sent.
    assert sum(one.forward[1].found for one in titans) == 2 * ENTRIES
