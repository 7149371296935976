"""State actions of orders, against those that torch writes into its own schedules."""

# pyright: reportPrivateUsage=false

import random
from typing import Any

import pytest
from torch.distributed.pipelining import schedules as pipelining

from autopart.schedules.actions import Order, parse_order, words_of
from autopart.schedules.catalogue import KINDS
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.state_actions import (
    TORCHS_ACTIVE_STAGES,
    StateRules,
    state_words,
    with_state_actions,
)

EACH = StateRules(shares_weights=True, sums_each_microbatch=True)
WHOLE = StateRules(shares_weights=False, sums_each_microbatch=True)
ONCE = StateRules(shares_weights=False, sums_each_microbatch=False)
TORCHS = ONCE._replace(active_stages=TORCHS_ACTIVE_STAGES)


def torchs_words(order: Order, most: int) -> list[str]:
    """What torch's schedules run in place of an order that computes alone."""
    actions: Any = [pipelining._Action.from_str(word) for word in words_of(order)]
    gathered: Any = pipelining._add_unshard_reshard(actions, most)
    own = max(len([a for a in order if a.stage == s and a.op in "BW"]) for s, _, _ in order)
    return [str(one) for one in pipelining._add_reduce_grad(gathered, own)]


def releases_sorted(words: list[str]) -> list[str]:
    """The words with neighbouring releases in ascending order: torch takes them from a set."""
    found: list[str] = []
    waiting: list[str] = []
    for word in words:
        if word.endswith("RESHARD") and not word.endswith("UNSHARD"):
            waiting.append(word)
            continue
        found += sorted(waiting, key=lambda one: int(one.removesuffix("RESHARD")))
        waiting.clear()
        found.append(word)
    return found + waiting


def compare(order: Order, most: int) -> int:
    """Compare an order with torch's; returns how many releases it has."""
    theirs = releases_sorted(torchs_words(order, most))
    ours = state_words(order, ONCE._replace(active_stages=most)).split()
    assert ours == theirs
    return sum("RESHARD" in word for word in theirs)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "bpipe"])
def test_one_sum_per_step_has_the_state_actions_that_torch_writes(name: str):
    kind, compared = KINDS[name], 0
    for ranks in (1, 2, 4):
        for v in (1, 2, 4, 5):
            for microbatches in (1, 2, 4, 8):
                pipeline = Pipeline(ranks, v, microbatches)
                if not kind.takes(pipeline):
                    continue
                for order in kind.generate(pipeline):
                    for most in (1, 2, TORCHS_ACTIVE_STAGES):
                        compare(order, most)
                        compared += 1
    assert compared >= 6


def test_drawn_orders_have_the_state_actions_that_torch_writes():
    rng, released = random.Random(1), 0
    for _ in range(60):
        stages, microbatches = rng.randint(1, 6), rng.randint(1, 4)
        left = [[f"{s}F{m}", f"{s}B{m}"] for s in range(stages) for m in range(microbatches)]
        words: list[str] = []
        while left:
            own = rng.choice(left)
            words.append(own.pop(0))
            left = [one for one in left if one]
        order = parse_order(" ".join(words))
        released += compare(order, rng.randint(1, 4))
    assert released > 100


def test_pairs_count_both_of_their_stages():
    order = parse_order("0F0 1F0 2F0 (3F0;2B9)OVERLAP_F_B (1F1;0B9)OVERLAP_F_B 3B0 1B0")
    assert compare(order, 3) > 0
    assert compare(order, 2) > 0


def test_shared_weights_are_gathered_around_each_action_that_needs_them():
    order = parse_order("0F0 0I0 (0F1;1B0)OVERLAP_F_B 0W0")
    assert state_words(order, EACH) == (
        "0UNSHARD 0F0 0RESHARD 0UNSHARD 0I0 0RESHARD 0UNSHARD 1UNSHARD (0F1;1B0)OVERLAP_F_B "
        "0RESHARD 1RESHARD 1REDUCE_GRAD 0W0 0REDUCE_GRAD"
    )
    same = parse_order("(0F1;0B0)OVERLAP_F_B")
    assert state_words(same, EACH) == "0UNSHARD (0F1;0B0)OVERLAP_F_B 0RESHARD 0REDUCE_GRAD"


def test_whole_weights_are_gathered_once_per_step():
    order = parse_order("0F0 2F0 4F0 6F0 6B0 4B0 2B0 0B0")
    assert state_words(order, WHOLE) == (
        "0UNSHARD 2UNSHARD 4UNSHARD 6UNSHARD 0F0 2F0 4F0 6F0 6B0 6REDUCE_GRAD 4B0 4REDUCE_GRAD "
        "2B0 2REDUCE_GRAD 0B0 0REDUCE_GRAD"
    )
    # Torch keeps three stages, so the first two are gathered again.
    torchs = state_words(order, TORCHS).split()
    assert sum("UNSHARD" in word for word in torchs) == 5
    assert torchs[:8] == [
        "0UNSHARD",
        "2UNSHARD",
        "4UNSHARD",
        "0F0",
        "0RESHARD",
        "6UNSHARD",
        "2F0",
        "4F0",
    ]


def test_moves_of_stash_need_no_weights():
    order = parse_order("0F0 0F1 0L1 0F2 0T1 0B0 0B1 0B2")
    for rules in (EACH, WHOLE):
        assert tuple(e for e in with_state_actions(order, rules) if e in order) == order
    assert state_words(order, WHOLE).count("UNSHARD") == 1
