import json
import subprocess
import sys

import pytest

from tests.support.places import ROOT


@pytest.mark.slow
def test_the_benchmark_of_the_simulator_prints_a_line_for_each_size() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/bench_simulator.py", "--json", "--most", "600"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["actions"] for line in lines] == [128, 512]
    assert all(line["simulate_ms"] > 0 and line["side_by_side_million_per_s"] > 0 for line in lines)
