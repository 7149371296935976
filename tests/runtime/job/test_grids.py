"""Every pair of degrees on four processes trains as the plain model, and its saved state loads under the next one."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from autopart.records.run_result import RunResult
from autopart.runtime.engine.run_settings import RunKeywords, RunSettings
from tests.support.runtime.grids import CHOICES, DENSE, GRIDS, MIXTURE, Grid, pairs, plan_of
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.tensor_runs import run_groups

IN_CI = {
    Grid(DENSE, "sequence parallel", "context"),
    Grid(MIXTURE, "expert", "zero3"),
}
"""The grids of slow tests. All others are long ones."""


def run(pool: RankPool, grid: Grid, **options: object) -> RunResult:
    keywords: RunKeywords = {"steps": 1, "optimizer": "adamw", **options}  # pyright: ignore
    result = pool.call(run_groups, plan_of(grid), RunSettings(model=grid.model, **keywords))[0]
    assert isinstance(result, RunResult)
    return result


_losses: dict[str, Sequence[float | None]] = {}


def losses_of_three_steps(pool: RankPool, model: str) -> Sequence[float | None]:
    """Those of four stages, from one run for each model."""
    if model not in _losses:
        _losses[model] = run(pool, Grid(model, "stages", "stages"), steps=3).losses
    return _losses[model]


def test_no_pair_of_choices_is_left_out() -> None:
    """Of 9 choices, and 3 pairs of them exclude each other; a dense model has no experts."""
    assert len(CHOICES) == 9 and len({choice.option for choice in CHOICES.values()}) == 6
    assert len(pairs(MIXTURE)) == len(set(pairs(MIXTURE))) == 9 + math.comb(9, 2) - 3
    assert len(pairs(DENSE)) == 8 + math.comb(8, 2) - 3
    assert set(GRIDS) > IN_CI


def rounds() -> list[object]:
    """Each grid with the next one of its model, around all of them."""
    return [
        pytest.param(
            before,
            after,
            id=before.name,
            marks=() if before in IN_CI else pytest.mark.long,
        )
        for model in (DENSE, MIXTURE)
        for before, after in pairwise([*pairs(model), pairs(model)[0]])
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), rounds())
def test_a_grid_trains_as_the_plain_model_and_its_state_loads_under_the_next(
    four_ranks: RankPool, tmp_path: Path, before: Grid, after: Grid
) -> None:
    folder = str(tmp_path / "saved")
    first = run(four_ranks, before, steps=2, check=True, save=folder)
    check = first.check
    assert check is not None and check.num_parameters > 5
    assert check.losses <= 1e-5 and check.gradients <= 1e-5
    second = run(four_ranks, after, load=folder)
    whole = losses_of_three_steps(four_ranks, before.model)
    assert [*first.losses, *second.losses] == pytest.approx(whole, rel=1e-5)
