from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.scripts.test_compare_pipedream import CHAIN


@pytest.fixture
def graph(folder: Path) -> str:
    (folder / "graph.txt").write_text(CHAIN)
    return "graph.txt"


def test_the_bottleneck_of_a_pipedream_profile_is_printed_with_its_bound(cli: Cli, graph: str):
    done = cli(
        "bottleneck",
        "pipedream",
        graph,
        "--gpus",
        "2",
        "--bandwidth",
        "1MB/s",
        "--one-gpu-per-stage",
    )
    assert done.code == 0, done.err
    assert "2 stages, as pipedream counts" in done.out
    assert "objective 0.006, lower bound 0.006, gap 0.0 %" in done.out


def test_two_levels_take_two_bandwidths(cli: Cli, graph: str):
    asked = ["bottleneck", "pipedream", graph, "--gpus", "4", "--nodes", "2"]
    done = cli(*asked, "--bandwidth", "10MB/s", "--bandwidth", "1MB/s", "--json")
    assert done.code == 0, done.err
    assert done.document["objective"] == done.document["lower_bound"]
    assert done.document["gap"] == 0
    assert all("outer_replicas" in stage for stage in done.document["stages"])
    short = cli(*asked, "--bandwidth", "1MB/s")
    assert short.code == 2 and "give one of each" in short.err


def test_gpus_that_do_not_divide_over_nodes_are_refused(cli: Cli, graph: str):
    done = cli(
        "bottleneck", "pipedream", graph, "--gpus", "3", "--nodes", "2", "--bandwidth", "1e6"
    )
    assert done.code == 2 and "3 GPUs on 2 nodes" in done.err
