"""V-Half and V-Min against the orders that their authors' generator makes.

The steps are those of `zbv_greedy.py` in sail-sg/zero-bubble-pipeline-parallelism (revision 39f2c186),
in unit slots and for one set of measured seconds.
"""

import pytest

from autopart.schedules.actions import parse_order
from autopart.schedules.catalogue import KINDS
from autopart.schedules.pipeline import Pipeline
from autopart.schedules.squeezing import squeezed
from tests.support.pictures import slots

ALIKE = {"F": 1, "I": 1, "W": 1}
MEASURED = {"F": 1850, "I": 1810, "W": 930}


def step(name: str, k: int, m: int, lengths: dict[str, int]) -> int:
    start = slots(KINDS[name].generate(Pipeline(k, 2, m)), 2 * k, lengths=lengths)
    return max(at + lengths[action.op] for action, at in start.items())


@pytest.mark.parametrize(
    ("name", "k", "m", "alike", "measured"),
    [
        ("v-half", 2, 8, 49, 76290),
        ("v-half", 3, 3, 23, 39430),
        ("v-half", 4, 16, 101, 160770),
        ("v-half", 5, 20, 131, 208430),
        ("v-half", 8, 8, 65, 116250),
        ("v-half", 8, 32, 209, 333330),
        ("v-min", 3, 12, 77, None),
        ("v-min", 6, 24, 161, None),
        ("v-min", 8, 32, 219, None),
        ("v-min", 12, 48, 329, None),
    ],
)
def test_a_v_takes_the_slots_of_its_authors(
    name: str, k: int, m: int, alike: int, measured: int | None
):
    assert step(name, k, m, ALIKE) == alike
    assert measured is None or step(name, k, m, MEASURED) == measured


def test_warm_up_and_drain_of_v_half_stand_as_the_authors_have_them():
    orders = KINDS["v-half"].generate(Pipeline(3, 2, 4))
    assert orders[0] == parse_order(
        "0F0 0F1 0F2 5F0 5I0 5W0 5F1 5I1 5W1 0I0 0W0 0F3 "
        "5F2 5I2 5W2 0I1 0W1 5F3 5I3 0I2 5W3 0W2 0I3 0W3"
    )


def test_squeezing_never_adds_microbatches_in_flight():
    """A block whose microbatches run one by one keeps one on each stage."""
    block = [(0, 3, 4, 7), (1, 2, 5, 6)]
    slow = [tuple(6 * slot for slot in own) for own in block]
    for order in squeezed(slow, 1):
        level = most = 0
        for _, op, _ in order:
            level += {"F": 1, "I": 0, "W": -1}[op]
            most = max(most, level)
        assert most == 2
