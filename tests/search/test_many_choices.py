"""A search that takes many problems one by one, the least bound first, finds what a search side by side finds."""

import pytest

from autopart.search import many_choices, microbatch_sizes
from tests.support.seeds import seeds
from tests.support.witness.cases import draw_case
from tests.support.witness.claims import judge


@pytest.mark.parametrize("kind", ["sharded state", "groups on several nodes", "sizes"])
@pytest.mark.parametrize("seed", seeds(0, 10, slow=6))
def test_no_claim_is_false_where_problems_are_searched_one_by_one(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbatch_sizes, "MOST_SIDE_BY_SIDE", 1)
    assert judge(draw_case(kind, seed)).broken == ()


@pytest.mark.parametrize("kind", ["sharded state", "groups on several nodes", "sizes"])
@pytest.mark.parametrize("seed", [*range(100, 104), *seeds(0, 40, slow=4)[4:]])
def test_no_claim_is_false_where_the_least_layout_is_visited_at_once(
    kind: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without patience each layout is visited as soon as it has a bound, until there is a plan."""
    monkeypatch.setattr(microbatch_sizes, "MOST_SIDE_BY_SIDE", 1)
    monkeypatch.setattr(many_choices, "SHARE_WITHOUT_PLAN", -1.0)
    assert judge(draw_case(kind, seed)).broken == ()


@pytest.mark.slow
def test_a_choice_without_a_layout_has_no_bound() -> None:
    """Its turn never came, and it got the best value as its bound."""
    assert judge(draw_case("groups on several nodes", 1178)).broken == ()
