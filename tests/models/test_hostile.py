"""The zoo of hostile models: each trains in a pipeline, cannot be cut, or is refused in one line."""

from pathlib import Path

import pytest

from autopart.runtime.engine.plan_match import Backend
from autopart.runtime.engine.run_settings import RunSettings
from tests.support.runtime.rank_pool import RankPool
from tests.support.tried import hostile_control, hostile_gradients, hostile_structure
from tests.support.tried.trial import check

pytestmark = pytest.mark.filterwarnings("ignore")  # some of these models warn

TABLES = {
    "tests.support.tried.hostile_gradients": hostile_gradients.MODELS,
    "tests.support.tried.hostile_control": hostile_control.MODELS,
    "tests.support.tried.hostile_structure": hostile_structure.MODELS,
}
EACH = 24
"""Every so-manieth model is a slow test, the others are long ones."""


def entries() -> list[object]:
    """Every entry's table and name, with its mark."""
    return [
        pytest.param(table, name, id=name, marks=pytest.mark.long if number % EACH else ())
        for table, models in TABLES.items()
        for number, name in enumerate(models)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("table", "name"), entries())
def test_a_hostile_model_ends_as_the_table_says(
    table: str, name: str, tmp_path: Path, two_ranks: RankPool
) -> None:
    check(table, name, TABLES[table][name], tmp_path, two_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["autopart", "torch"])
@pytest.mark.parametrize(("table", "name"), entries())
def test_it_ends_so_with_adamw_too(
    table: str, name: str, backend: Backend, tmp_path: Path, two_ranks: RankPool
) -> None:
    """AdamW moves a weight whose gradient is zero, and leaves one without a gradient alone."""
    asked = RunSettings(model="", steps=3, check=True, optimizer="adamw", backend=backend)
    check(table, name, TABLES[table][name], tmp_path, two_ranks, asked)
