"""Under ZeRO-1 each rank gets the sums of the elements that it steps."""

import math
from typing import Any

import msgspec
import pytest

from autopart.runtime.engine.run_settings import RunSettings
from tests.support.runtime.on_ranks import run
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.scattered_sums import Scattered, scattered_sums

GPT2 = "zoo:gpt2-tiny"


def check(found: list[Scattered]) -> None:
    factor = sum(10.0**rank for rank in range(len(found)))
    sums = {"a": [factor] * 3, "b": [2 * factor] * 3, "late": [3 * 10.0 ** (len(found) - 1)] * 3}
    for rank in found:
        assert rank.whole == {**sums, "unused": None, "across": [5 * factor] * 6}
        # Only the parameter whose elements lie in another order goes through an all-reduce.
        assert rank.all_reduced == 6 and rank.own["unused"] is None
    for name, wanted in sums.items():
        owners = [rank.own[name] or [] for rank in found]
        for element, want in enumerate(wanted):
            stepped = [own[element] for own in owners if not math.isnan(own[element])]
            assert stepped == [want], "exactly one rank steps each element, with its whole sum"


@pytest.mark.slow
def test_two_ranks_sum_each_element_where_it_is_stepped(two_ranks: RankPool) -> None:
    check(two_ranks.call(scattered_sums))


@pytest.mark.slow
def test_four_ranks_sum_each_element_where_it_is_stepped(four_ranks: RankPool) -> None:
    check(four_ranks.call(scattered_sums))


def checked(pool: RankPool, model: str, cuts: list[float], **options: Any) -> None:
    plan = plan_for(model, capture(model), cuts, replicas=2, **options)
    plan = msgspec.structs.replace(
        plan, training=msgspec.structs.replace(plan.training, zero1=True)
    )
    settings = RunSettings(model=model, steps=3, check=True)
    result = pool.call(run, plan, settings)[0]
    assert result.check is not None and result.check.gradients <= 1e-5


@pytest.mark.slow
def test_two_replicas_with_zero1_train_as_the_plain_model(two_ranks: RankPool) -> None:
    checked(two_ranks, GPT2, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "schedule"),
    [
        (GPT2, "zb-h1"),
        ("zoo:encdec-tiny", "1f1b"),
        pytest.param(GPT2, "1f1b", marks=pytest.mark.long),
        pytest.param("zoo:encdec-tiny", "zb-h1", marks=pytest.mark.long),
    ],
)
def test_tied_weights_with_zero1_train_as_the_plain_model(
    four_ranks: RankPool, schedule: str, model: str
) -> None:
    checked(four_ranks, model, [0.5], schedule=schedule)
