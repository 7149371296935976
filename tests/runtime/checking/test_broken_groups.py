"""The check finds each way of breaking the exchanges of a rank group: no false pass."""

from functools import cache

import pytest

from autopart.records.plan import Plan
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.long_tests import long_except
from tests.support.runtime.broken_groups import GROUP_FAULTS, complaint_of_groups_with
from tests.support.runtime.grids import CHOICES, DENSE, MIXTURE, Choice, plan_of_choices
from tests.support.runtime.rank_pool import RankPool

pytestmark = pytest.mark.slow

GROUPS = {
    "tensor": (DENSE, CHOICES["tensor"]),
    "clipped gradients": (DENSE, CHOICES["tensor"]),
    "sequence parallel": (DENSE, CHOICES["sequence parallel"]),
    "context": (DENSE, CHOICES["context"]),
    "ring": (DENSE, Choice("context", context=2, ring=True)),
    "expert": (MIXTURE, CHOICES["expert"]),
    "zero2": (DENSE, CHOICES["zero2"]),
    "zero3": (DENSE, CHOICES["zero3"]),
}
"""Plans for one rank of two processes: a model, and their choice."""

BREAKS = {
    "missing sum of partial results": "tensor",
    "missing sum of gradients of a layer s input": "tensor",
    "missing sum of partial gradients": "context",
    "norm of gradients that counts copies twice": "clipped gradients",
    "sequence parts that are not summed": "sequence parallel",
    "sequence parts in another order": "sequence parallel",
    "chunks of positions in another order": "context",
    "gradients of gathered positions that are not summed": "context",
    "mean of the turns of a ring": "ring",
    "block of keys that stays": "ring",
    "lost gradients of a block of keys": "ring",
    "mask of another rank in a ring": "ring",
    "entries for another expert": "expert",
    "entries that come back in another order": "expert",
    "gradients of entries that do not come back": "expert",
    "weights of before the update": "zero3",
    "updates that are not gathered": "zero2",
    "parts of the weights in another order": "zero3",
    "state s gradients that are not summed": "zero2",
    "last sum in place of all": "zero3",
}
"""The group that each fault breaks."""

FAULTS_IN_CI = (
    "missing sum of partial results",
    "norm of gradients that counts copies twice",
    "sequence parts in another order",
    "gradients of gathered positions that are not summed",
    "lost gradients of a block of keys",
    "entries that come back in another order",
    "weights of before the update",
    "updates that are not gathered",
)
"""One fault of each group. Slow tests elsewhere train working groups of these kinds."""


@cache
def plan(group: str) -> Plan:
    model, choice = GROUPS[group]
    return plan_of_choices(model, [choice])


def complaint(pool: RankPool, group: str, fault: str) -> str:
    of = plan(group)
    norm = 0.1 if group == "clipped gradients" else None
    settings = RunSettings(model=of.origin.model, check=True, steps=2, clip_norm=norm)
    said = pool.call(complaint_of_groups_with, of, settings, fault)[0]
    assert isinstance(said, str)
    return said


@pytest.mark.parametrize("group", long_except(GROUPS, ()))
def test_a_group_that_works_passes(two_ranks: RankPool, group: str) -> None:
    assert complaint(two_ranks, group, "") == ""


@pytest.mark.parametrize("fault", long_except(GROUP_FAULTS, FAULTS_IN_CI))
def test_the_check_finds_a_broken_group(two_ranks: RankPool, fault: str) -> None:
    said = complaint(two_ranks, BREAKS[fault], fault)
    assert "the pipeline differs from the plain model" in said, said
