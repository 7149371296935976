import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.support.places import SCHEMAS
from tests.support.small_model_file import MODEL

Cli = Callable[..., object]


def test_run_without_torchrun_is_refused_with_the_command_to_type(
    cli: Cli, plan_file: Path
) -> None:
    outcome = cli("run", "plan.json", "model.py")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert "--local" in outcome.err
    assert "torchrun --nproc-per-node 4 -m autopart run plan.json model.py" in outcome.err


def test_a_local_run_with_a_check_equals_the_plain_model(cli: Cli, two_ranks: Path) -> None:
    outcome = cli("run", "plan.json", "model.py", "--local", "--steps", "2", "--check", "--json")
    assert outcome.code == 0, outcome.err
    schema = SCHEMAS / "run-summary.json"
    jsonschema.validate(outcome.document, json.loads(schema.read_text()))
    check = outcome.document["check"]
    assert check["num_parameters"] == 4
    assert max(check["losses"], check["gradients"]) <= check["tolerance"] == 1e-5
    for words in ("measured", "predicted", "equal to the plain model, 4 parameters"):
        assert words in outcome.err
    assert max(map(len, outcome.err.splitlines())) <= 80


@pytest.mark.slow
def test_another_model_than_the_plan_s_is_refused_in_one_line(
    cli: Cli, folder: Path, two_ranks: Path
) -> None:
    (folder / "model.py").write_text(MODEL.replace("nn.ReLU(),", "nn.ReLU(), nn.Tanh(),"))
    outcome = cli("run", "plan.json", "model.py", "--local", "--steps", "1")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1


@pytest.mark.slow
def test_under_torchrun_only_rank_0_prints(folder: Path, two_ranks: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("-m", "autopart", "run", "plan.json", "model.py", "--steps", "2", "--check", "--json"),
    ]
    done = subprocess.run(
        command, cwd=folder, env=os.environ, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_ranks"] == 2
