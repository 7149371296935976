"""Recompute chosen for each layer, against all layers or none, on an analytic model."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.places import SCRIPTS

SCRIPT = SCRIPTS / "measure_recompute.py"


@pytest.mark.slow
def test_a_policy_for_each_layer_is_faster_than_one_for_all_layers() -> None:
    command = [sys.executable, str(SCRIPT), "--models", "llama-8b", "--gpus", "8"]
    ran = subprocess.run(
        [*command, "--sequence", "32768"],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    (row,) = [json.loads(line) for line in ran.stdout.splitlines()]
    assert row["uniform_kept"] is None
    alone, offloading = row["offload_never"], row["offload_auto"]
    assert alone["offloaded"] == 0 < alone["recomputed"] + alone["selective"] < row["layers"]
    assert alone["step"] < row["uniform_recomputed"]
    assert offloading["offloaded"] > 0 and offloading["step"] <= alone["step"] * (1 + 1e-9)
    assert alone["gain"] > 0.05
