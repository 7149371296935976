"""The GPU session, tested on a CPU with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autopart.records.profile import load_profile
from tests.support.places import SCRIPTS

SCRIPT = SCRIPTS / "gpu_session.py"


@pytest.mark.slow
def test_a_session_profiles_a_model_and_validates_it_under_each_policy(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--steps", "1"]
    subprocess.run(
        [*command, "--out", str(tmp_path), "--models", "gpt2-tiny", "--seconds", "590"],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    rows = json.loads((tmp_path / "gpu-session.json").read_text())
    link, profiled, *rest = rows
    by_policy = {row["treatment"]: row for row in rest if row["step"] == "validate"}
    assert link["step"] == "host link" and min(link["out_bandwidth"], link["back_bandwidth"]) > 0
    assert load_profile(tmp_path / profiled["file"]).dtype == "float32"
    assert {"kept", "recomputed", "offloaded"} <= by_policy.keys()
    kept, recomputed = by_policy["kept"], by_policy["recomputed"]
    for row in (kept, recomputed):
        assert all(-0.01 <= rank["error"] <= 0.1 for rank in row["fidelity"]["ranks"])
    first = [row["fidelity"]["ranks"][0]["measured_bytes"] for row in (kept, recomputed)]
    assert first[1] < first[0]
    assert "| gpt2-tiny | kept |" in (tmp_path / "gpu-session.md").read_text()


@pytest.mark.slow
def test_a_session_without_time_names_the_models_that_it_left_out(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--seconds", "1"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path), "--models", "gpt2-tiny"],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert "- gpt2-tiny: not done: 1 s were left" in ran.stdout or (
        "- gpt2-tiny: not done: 0 s were left" in ran.stdout
    )
