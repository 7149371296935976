"""The check behind the tables of hostile and real models: an entry that ends otherwise than its table says is found."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from tests.support.runtime.rank_pool import RankPool
from tests.support.tried import trial
from tests.support.tried.trial import Outcome, Tried

PASSED = Outcome("passed", "", 3)
WHOLE = Outcome("cannot be cut", "one layer", 1, ("the loop in forward",))
REFUSED = Outcome("refused by profile", "the model writes into its weights")
TWO_LINES = Outcome("refused by run", "the model writes\ninto its weights")


def entry(**words: str) -> Tried:
    def inputs(size: int) -> Any:
        return torch.zeros(size)

    return Tried(build=nn.Identity, inputs=inputs, **cast("dict[str, Any]", words))


CUTS, LOOPS, WRITES = entry(), entry(one_layer="loop in"), entry(refused="writes")


@pytest.mark.parametrize(
    ("tried", "outcome", "holds"),
    [
        (CUTS, PASSED, True),
        (CUTS, WHOLE, False),
        (CUTS, REFUSED, False),
        (LOOPS, WHOLE, True),
        (LOOPS, PASSED, False),
        (LOOPS, WHOLE._replace(verdict="passed"), False),
        (LOOPS, WHOLE._replace(warnings=("another reason",)), False),
        (WRITES, REFUSED, True),
        (WRITES, PASSED, False),
        (WRITES, REFUSED._replace(verdict="passed"), False),
        (WRITES, REFUSED._replace(line="another reason"), False),
        (WRITES, TWO_LINES, False),
    ],
)
def test_an_entry_that_ends_otherwise_than_its_table_says_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tried: Tried, outcome: Outcome, holds: bool
) -> None:
    def ended(*_: object) -> Outcome:
        return outcome

    monkeypatch.setattr(trial, "trial", ended)
    found = False
    try:
        trial.check("table", "name", tried, tmp_path, cast("RankPool", None))
    except AssertionError:
        found = True
    assert found != holds


@pytest.mark.slow
def test_a_plan_that_verify_refuses_is_found(
    monkeypatch: pytest.MonkeyPatch, two_ranks: RankPool
) -> None:
    class Refused:
        passed = False

    def refuse(*_: object) -> list[Refused]:
        return [Refused()]

    monkeypatch.setattr(trial, "verify", refuse)
    with pytest.raises(AssertionError):
        trial.trial("zoo:mlp-tiny", two_ranks)
