"""The scripts of docs/trainers.md run as printed, on ranks with a plan for their model."""

import re
from pathlib import Path

import pytest

from autopart.records.plan import save_plan
from tests.support.places import ROOT
from tests.support.runtime.plans import capture, plan_for
from tests.support.runtime.rank_pool import RankPool
from tests.support.runtime.trainers import script_run

pytestmark = pytest.mark.slow

_BLOCK = re.compile(r"```py\n# (\w+\.py)\n(.*?)```", re.DOTALL)
SCRIPTS = dict(_BLOCK.findall((ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("train.py", "trained/model.safetensors"),
        ("train_accelerate.py", "state/optimizer.bin"),
    ],
)
def test_a_script_of_the_page_runs(
    two_ranks: RankPool, tmp_path: Path, name: str, made: str
) -> None:
    (tmp_path / "model.py").write_text(SCRIPTS["model.py"])
    plan = plan_for(str(tmp_path / "model.py"), capture(str(tmp_path / "model.py")), [0.5])
    save_plan(plan, tmp_path / "plan.json")
    two_ranks.call(script_run, tmp_path, SCRIPTS[name])
    assert (tmp_path / made).is_file()


def test_the_page_has_no_other_script() -> None:
    assert set(SCRIPTS) == {"model.py", "train.py", "train_accelerate.py"}
