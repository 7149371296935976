"""The first gather of each action beneath the action before it: where it fits, and when it really starts."""

from collections import Counter

import pytest

from autopart.runtime.engine.gathers_ahead import gathers_ahead
from autopart.schedules.actions import parse_order
from tests.support.runtime.gather_starts import gather_starts
from tests.support.runtime.rank_pool import RankPool

SIZES = {"a": 5, "b": 5, "c": 5, "d": 5}
MIDDLE = {1: ["b", "c"]}


def found(order: str, layers: dict[int, list[str]], **sizes: int) -> dict[str, str]:
    ahead = gathers_ahead(parse_order(order), layers, SIZES | sizes)
    return {str(action): layer for action, (_, layer) in ahead.items()}


def test_the_last_layer_of_an_action_gathers_the_first_layer_of_the_next_one():
    assert found("1F0 1F1 1F2", MIDDLE) == {"1F0": "b", "1F1": "b"}
    assert found("1B0 1B1", MIDDLE) == {"1B0": "c"}


def test_the_layer_at_the_turn_from_forward_to_backward_stays():
    assert found("1F0 1B0 1F1 1B1", MIDDLE) == {"1F0": "c", "1B0": "b", "1F1": "c"}
    assert found("3F0 3B0", {3: ["d"]}) == {"3F0": "d"}


def test_stages_of_a_rank_gather_for_each_other():
    layers = {0: ["a"], 2: ["c", "d"]}
    assert found("0F0 2F0 0F1 2F1", layers) == {"0F0": "c", "0F1": "c"}
    assert found("2B0 0B0 2B1 0B1", layers) == {"2B0": "a", "2B1": "a"}


def test_a_gather_ahead_takes_no_more_than_the_model_s_nearest_layer():
    assert found("1F0 1F1", MIDDLE, d=4) == {}
    assert found("1B0 1B1", MIDDLE, a=4) == {}
    assert found("1B0 1B1", MIDDLE, b=4) == {"1B0": "c"}
    # The model's last layer has none behind it, and the first one none before.
    assert found("1F0 1F1", {1: ["c", "d"]}) == {}
    assert found("1B0 1B1", {1: ["a", "b"]}) == {}


def test_actions_that_need_no_weights_and_pairs_stay_out():
    assert found("1F0 1I0 1W0 1F1", MIDDLE) == {"1F0": "c"}
    assert found("1F0 (1F1;1B0)OVERLAP_F_B 1B1", MIDDLE) == {}
    assert found("1F0 1F1", {1: []}) == {}


@pytest.mark.slow
def test_a_step_starts_gathers_ahead_and_each_as_often_as_before(two_ranks: RankPool):
    order = "0F0 1F0 1B0 0B0 0F1 1F1 1B1 0B1"
    events, others = two_ranks.call(gather_starts, "zoo:mlp-tiny", order)
    assert events == others

    def within(action: str) -> list[str]:
        return events[events.index(f"{action}(") + 1 : events.index(f"){action}")]

    up, down = [str(at) for at in range(16)], [str(at) for at in range(15, -1, -1)]
    for m in (0, 1):
        # Layer 8 is the first of stage 1: it comes beneath 0F, and layer 7 beneath 1B. Layer 15 stays from 1F to 1B, and
        # layer 0 from 0B0 to 0F1.
        assert within(f"0F{m}") == up[m:9] and within(f"1F{m}") == up[9:]
        assert within(f"1B{m}") == down[1:9] and within(f"0B{m}") == down[9:]
    counts = Counter(event for event in events if event.isdigit())
    assert counts == {name: {"0": 3, "15": 2}.get(name, 4) for name in up}
