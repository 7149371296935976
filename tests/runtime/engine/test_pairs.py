"""Overlapped pairs in the executor: both parts in one action, equal to the plain model."""

import itertools

import pytest

from autopart.records.plan import Plan, schedule_of
from autopart.runtime.measuring.side_by_side import InTurn
from autopart.schedules.actions import has_pairs, parse_order
from tests.runtime.engine.test_placements import LOOP, checked, named, plan
from tests.support.long_tests import long_tests
from tests.support.runtime.rank_pool import RankPool


def own_orders() -> Plan:
    """Pairs of a forward on one stage and a backward on another, and of both on one stage."""
    orders = (
        parse_order(
            "0F0 0F1 2F0 (2F1;2B0)OVERLAP_F_B (0F2;0B0)OVERLAP_F_B (2F2;2B1)OVERLAP_F_B 0B1 2B2 0B2"
        ),
        parse_order("1F0 1F1 3F0 3B0 1B0 3F1 3B1 1F2 (3F2;1B1)OVERLAP_F_B 3B2 1B2"),
    )
    return plan("zoo:mlp-tiny", LOOP, orders=orders, num_microbatches=3)


@pytest.mark.slow
def test_pairs_over_several_stages_train_as_the_plain_model(two_ranks: RankPool):
    of = own_orders()
    assert has_pairs(schedule_of(of))
    checked(two_ranks, of)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["paired-dualpipev", *long_tests("paired-1f1b", "paired-interleaved-1f1b")]
)
def test_schedules_with_pairs_train_as_the_plain_model(two_ranks: RankPool, name: str):
    of = named(name, 2, 4)
    assert has_pairs(schedule_of(of))
    result = checked(two_ranks, of)
    # Each action of a pair has a time of its own, and they do not overlap.
    for ran in result.trace:
        for before, after in itertools.pairwise(ran):
            assert after.start >= before.end


def test_both_parts_of_a_pair_run_once_and_in_turn_on_a_cpu():
    ran: list[str] = []

    def backward() -> tuple[()]:
        ran.append("B")
        return ()

    assert InTurn().run(lambda: ran.append("F") or 7, backward, "made", "used") == 7
    assert ran == ["F", "B"]
