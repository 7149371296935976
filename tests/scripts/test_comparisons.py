"""Scripts that compare our answers with other planners'."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from tests.support.places import SCRIPTS
from tests.support.shared_data import DATA, needs_data, published

CHOICE = {
    "id": "vanilla",
    "timePerSample": 2.0,
    "parameterSize": 0.0,
    "memoryUsageA": 10.0,
    "memoryUsageB": 1.0,
}
PIPER = {
    "maxMemoryPerDevice": 100.0,
    "maxDevices": 1,
    "bandwidth": 1e9,
    "mbsInBatch": 12,
    "nodes": [
        {
            "id": 5,
            "name": "a",
            "TMPCs": {"1": [CHOICE | {"syncTimeFw": {}, "syncTimeBw": {"3": 0.0}}]},
        },
        {
            "id": 3,
            "name": "b",
            "TMPCs": {
                "1": [
                    CHOICE | {"syncTimeFw": {"5": 0.0}, "syncTimeBw": {}},
                    CHOICE
                    | {"id": "activation recomp", "timePerSample": 3.0, "memoryUsageA": 1.0}
                    | {"syncTimeFw": {"5": 0.0}, "syncTimeBw": {}},
                ]
            },
        },
    ],
    "edges": [{"sourceId": 5, "destId": 3, "communicationCost": 0.0}],
}

PIPEDREAM = """\
node1 -- Input0 -- forward_compute_time=0.000, backward_compute_time=0.000, activation_size=8.0, parameter_size=0.000
node3 -- Linear(b) -- forward_compute_time=1.000, backward_compute_time=2.000, activation_size=8.0, parameter_size=4.000
node2 -- Linear(a) -- forward_compute_time=2.000, backward_compute_time=3.000, activation_size=8.0, parameter_size=4.000
node4 -- Linear(c) -- forward_compute_time=0.500, backward_compute_time=1.000, activation_size=8.0, parameter_size=4.000
\tnode1 -- node2
\tnode2 -- node3
\tnode3 -- node4
"""

FAKE_PEER = """\
def solve(sequence, partitions):
    return [sequence[:1], sequence[1:]]
"""


def run(script, *arguments, python_path=""):
    paths = [str(SCRIPTS.parent), python_path]
    ran = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
    )
    return ran, [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture
def piper_file(tmp_path):
    path = tmp_path / "net.json"
    path.write_text(json.dumps(PIPER))
    return path


@pytest.fixture
def pipedream_file(tmp_path):
    path = tmp_path / "graph.txt"
    path.write_text(PIPEDREAM)
    return path


@pytest.mark.slow
def test_a_comparison_with_piper_gives_one_line_with_the_file_s_ids(piper_file):
    ran, (line,) = run("compare_piper.py", piper_file, "--devices", 2, "--memory", 21)
    assert ran.returncode == 0, ran.stderr
    assert (line["objective"], line["lower_bound"]) == (2.0, 2.0)
    first, last = line["stages"]
    assert (first["nodes"], first["in_flight"], first["memory_bytes"]) == ([5], 2, 21.0)
    assert (last["nodes"], last["replicas"], last["tensor_parallel"]) == ([3], 1, 1)
    assert line["solve_seconds"] >= 0 and "peer_objective" not in line


@pytest.mark.slow
def test_a_stage_names_the_nodes_that_recompute(piper_file):
    _, (line,) = run("compare_piper.py", piper_file, "--memory", 13)
    assert [stage["recompute"] for stage in line["stages"]] == [[3]]
    assert line["objective"] == 5.0


@pytest.mark.slow
def test_an_infeasible_file_gives_a_line_with_the_least_memory(piper_file):
    ran, (line,) = run("compare_piper.py", piper_file, "--memory", 12)
    assert ran.returncode == 0 and line["objective"] is None
    assert "13 would do" in line["infeasible"]


@pytest.mark.slow
def test_a_missing_file_gives_one_line_without_traceback(tmp_path):
    ran, lines = run("compare_piper.py", tmp_path / "none.json")
    assert (ran.returncode, lines) == (1, [])
    assert ran.stderr == f"{tmp_path / 'none.json'}: there is no such file\n"


@pytest.mark.slow
@needs_data
def test_the_line_has_piper_s_own_answer():
    asked = published("piper")[0]
    _, (line,) = run(
        "compare_piper.py",
        DATA / "piper" / "inputs" / f"{asked['input']}.json",
        "--devices", asked["maxDevices"],
        "--microbatches", asked["mbsInBatch"],
        "--memory", asked["maxMemoryPerDevice"],
        "--bandwidth", asked["bandwidth"],
    )  # fmt: skip
    assert line["peer_objective"] == asked["TPS"]
    assert line["objective"] == pytest.approx(asked["TPS"], rel=1e-9)


@pytest.mark.slow
def test_balanced_stages_have_the_file_s_nodes_in_pipeline_order(pipedream_file):
    ran, (line,) = run("compare_balancers.py", pipedream_file, "--stages", 2)
    assert ran.returncode == 0, ran.stderr
    assert line["objective"] == pytest.approx(5.0, rel=1e-12)
    assert line["lower_bound"] == line["objective"]
    assert [stage["nodes"] for stage in line["stages"]] == [["node2"], ["node3", "node4"]]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchgpipe") is not None, reason="torchgpipe is installed")
def test_a_missing_balancer_is_named_and_left_out(pipedream_file):
    ran, (line,) = run("compare_balancers.py", pipedream_file, "--stages", 2)
    assert "torchgpipe: left out" in ran.stderr and "peers" not in line


@pytest.mark.slow
def test_the_line_has_the_answer_of_an_installed_balancer(pipedream_file, tmp_path):
    package = tmp_path / "peer" / "torchgpipe" / "balance"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "blockpartition.py").write_text(FAKE_PEER)
    _, (line,) = run(
        "compare_balancers.py", pipedream_file, "--stages", 2, python_path=str(tmp_path / "peer")
    )
    assert line["peers"]["torchgpipe"]["objective"] == pytest.approx(5.0)
    assert line["peer_objective"] == line["peers"]["torchgpipe"]["objective"]


@pytest.mark.slow
def test_more_stages_than_layers_gives_an_infeasible_line_after_other_files(
    pipedream_file, piper_file
):
    _, lines = run("compare_balancers.py", pipedream_file, piper_file, "--stages", 3)
    assert lines[0]["objective"] == pytest.approx(5.0)
    assert lines[1]["objective"] is None and "at most 2" in lines[1]["infeasible"]


@pytest.mark.slow
def test_the_benchmark_measures_chains_and_the_exponent_of_growth(pipedream_file):
    ran, lines = run(
        "bench_solvers.py", pipedream_file,
        "--layers", 64, 128, "--stages", 2, 3, "--kinds", "uniform", "--repeats", 1,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    sizes = [(line["layers"], line["stages"]) for line in lines if "layers" in line]
    assert sizes == [(64, 2), (64, 3), (128, 2), (128, 3), (3, 2), (3, 3)]
    assert "exponent_of_layers" in lines[4]
    assert all(line["infeasible"] < line["bottleneck"] for line in lines if "layers" in line)
