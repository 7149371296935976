"""The table of steps with sends, for a small pipeline."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.places import SCRIPTS

SCRIPT = SCRIPTS / "measure_schedules.py"


@pytest.mark.long
def test_more_memory_is_never_slower_and_no_step_is_below_its_bound():
    command = [sys.executable, str(SCRIPT), "--stages", "3", "--microbatches", "12"]
    ran = subprocess.run(
        [*command, "--sends", "0.3", "--json"],
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(rows) == 1 + 2 * 5 and rows[0]["schedule"] == "1f1b"
    assert all(row["step"] >= row["bound"] * (1 - 1e-9) for row in rows)
    for backward in ("whole", "split"):
        steps = [row["step"] for row in rows[1:] if row["backward"] == backward]
        assert steps == sorted(steps, reverse=True)
        assert steps[-1] < rows[0]["step"]
    assert all(row["most_gib"] <= 3 * (row["room"] or 9) for row in rows[1:])
