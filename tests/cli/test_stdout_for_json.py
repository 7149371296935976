"""Under --json stdout holds one document, whatever the model prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import MODELS

MODEL = f"{MODELS / 'odd_forwards.py'}:printing"


@pytest.mark.slow
def test_prints_of_the_model_and_its_child_processes_do_not_reach_stdout(tmp_path: Path):
    words = [
        *("profile", MODEL, "--microbatch-size", "2", "--repeats", "1", "--warmup", "0"),
        *("--json", "-o", str(tmp_path / "profile.json")),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "autopart", *words], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["model"] == MODEL
    assert {"build", "forward", "child"} <= set(done.stderr.split())
