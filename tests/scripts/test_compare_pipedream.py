"""The script that compares our answers with PipeDream's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

CHAIN = """\
node1 -- Input -- forward_compute_time=1.0, backward_compute_time=0.0, activation_size=8.0, parameter_size=0.0
node2 -- Conv -- forward_compute_time=2.0, backward_compute_time=2.0, activation_size=1000.0, parameter_size=0.0
node3 -- ReLU -- forward_compute_time=1.0, backward_compute_time=1.0, activation_size=10.0, parameter_size=0.0
node4 -- Linear -- forward_compute_time=3.0, backward_compute_time=3.0, activation_size=2.0, parameter_size=0.0
\tnode1 -- node2
\tnode2 -- node3
\tnode3 -- node4
"""


@pytest.fixture
def compare(tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "graph.txt").write_text(CHAIN)
    answer = {
        "profile": "small",
        "num_machines": [2],
        "bandwidths": [1e6],
        "straight_pipeline": True,
        "memory_constraint": False,
        "memory_size": None,
        "activation_compression_ratio": 1.0,
        "use_fewer_machines": False,
        "pipeline_time_s": 0.006,
        "user_s": 0.5,
        "timed_out": False,
    }
    (tmp_path / "baselines.json").write_text(json.dumps({"pipedream": [answer]}))

    def run(*options: str, path: Path = folder / "graph.txt"):
        return subprocess.run(
            [sys.executable, "scripts/compare_pipedream.py", str(path), *options],
            cwd=ROOT,
            env=os.environ | {"AUTOPART_DATA": str(tmp_path), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=600,
        )

    return run


@pytest.mark.slow
def test_the_line_of_a_file_has_our_answer_and_pipedream_s(compare):
    done = compare("--machines", "2", "--bandwidth", "1e6", "--straight")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    row = json.loads(line)
    assert row["objective"] == row["lower_bound"] == pytest.approx(0.006)
    assert row["stages"] == [
        {"nodes": ["node2", "node3"], "replicas": 1, "kind": "accelerator"},
        {"nodes": ["node4"], "replicas": 1, "kind": "accelerator"},
    ]
    assert (row["peer_objective"], row["peer_seconds"]) == (0.006, 0.5)
    assert row["all_sends"] == row["all_sends_optimum"] == row["objective"]
    assert row["instance"].endswith("small/graph.txt")
    assert row["solve_seconds"] >= 0


@pytest.mark.slow
def test_the_answer_with_all_sends_is_printed_separately(compare):
    row = json.loads(compare("--machines", "4", "--bandwidth", "4e5").stdout)
    assert row["all_sends"] >= row["all_sends_optimum"] >= row["objective"]
    assert row["all_sends_lower_bound"] <= row["all_sends_optimum"]
    assert "peer_objective" not in row


@pytest.mark.slow
def test_with_two_levels_each_stage_has_outer_and_inner_replicas(compare):
    row = json.loads(compare("--machines", "2", "2", "--bandwidth", "1e7", "1MB/s").stdout)
    for stage in row["stages"]:
        assert stage["replicas"] == stage["outer_replicas"] * stage["inner_replicas"]
    assert [n for stage in row["stages"] for n in stage["nodes"]] == ["node2", "node3", "node4"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--machines", "2", "2", "--bandwidth", "1e6"), "2 machine counts and 1 bandwidths"),
        (("--machines", "0", "--bandwidth", "1e6"), "0 machines"),
    ],
)
def test_numbers_out_of_range_are_one_line(compare, options, words: str):
    done = compare(*options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and words in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_a_missing_file_gives_one_line_on_stderr(compare, tmp_path: Path):
    done = compare("--machines", "2", "--bandwidth", "1e6", path=tmp_path / "none.txt")
    assert done.returncode == 1
    assert "there is no such file" in done.stderr and done.stderr.count("\n") == 1
