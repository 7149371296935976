"""Models from transformers, torchvision, timm and peft: `scripts/check_models` installs these."""

import importlib
import importlib.util
from pathlib import Path

import pytest

from tests.support.runtime.rank_pool import RankPool
from tests.support.tried.trial import Tried, check

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

FOLDER = "tests.support.tried"
TABLES = ("torchvision_timm_peft", "transformers_other", "transformers_text")
PACKAGES = ("transformers", "torchvision", "timm", "peft")

if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
    pytest.skip(f"no {', '.join(missing)}: bash scripts/check_models", allow_module_level=True)


def table(name: str) -> dict[str, Tried]:
    """A table's entries. Its import needs the packages."""
    return importlib.import_module(f"{FOLDER}.{name}").MODELS


@pytest.mark.parametrize(("of", "name"), [(of, name) for of in TABLES for name in table(of)])
def test_a_real_model_ends_as_the_table_says(
    of: str, name: str, tmp_path: Path, two_ranks: RankPool
) -> None:
    check(f"{FOLDER}.{of}", name, table(of)[name], tmp_path, two_ranks)
