"""The network record in a cluster file: loaded, refused, and carried to other counts of GPUs."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.errors import ClusterError, FileError
from autopart.records.cluster import Cluster, check_cluster, load_cluster, save_cluster
from autopart.records.network import Network, with_gpus
from tests.support.problems import cluster

PLAIN = Network(rails=4, rail_bandwidth=10.0, ring_bandwidth=100.0)


def networked(nodes: int = 2, per_node: int = 8, **fields: Any) -> Cluster:
    return cluster(nodes, per_node, network=msgspec.structs.replace(PLAIN, **fields))


def test_a_network_survives_its_file(tmp_path: Path):
    machine = networked(switch_bandwidth=200.0, off_rail=0.5)
    save_cluster(machine, tmp_path / "cluster.json")
    assert load_cluster(tmp_path / "cluster.json") == machine


def test_a_file_from_before_networks_loads_without_one(tmp_path: Path):
    file = tmp_path / "cluster.json"
    save_cluster(cluster(2, 2), file)
    content = json.loads(file.read_bytes())
    del content["network"]
    file.write_text(json.dumps(content))
    assert load_cluster(file) == cluster(2, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rails": 0}, r"Expected `int` >= 1.*\$\.network\.rails"),
        ({"rails": 33}, "network.rails is 33, but a node of 8 GPUs has at most 32"),
        ({"rail_bandwidth": 0.0}, r"Expected `float` >= .*\$\.network\.rail_bandwidth"),
        ({"ring_bandwidth": 1e300}, r"Expected `float` <= .*\$\.network\.ring_bandwidth"),
        ({"tree_efficiency": 1.5}, r"Expected `float` <= 1.*\$\.network\.tree_efficiency"),
        ({"hop": -1.0}, r"Expected `float` >= 0.*\$\.network\.hop"),
        ({"switch_bandwidth": 9.0, "switch_ranks": 9}, "switch_ranks is 9, but a node has 8 GPUs"),
        ({"lanes": 3}, "unknown field `lanes`"),
    ],
)
def test_a_network_that_cannot_be_is_refused_in_one_line(
    fields: dict[str, Any], message: str, tmp_path: Path
):
    file = tmp_path / "cluster.json"
    save_cluster(networked(), file)
    content = json.loads(file.read_bytes())
    content["network"] |= fields
    file.write_text(json.dumps(content))
    with pytest.raises((ClusterError, FileError), match=message) as refused:
        load_cluster(file)
    assert "\n" not in str(refused.value)


def test_a_cluster_made_in_python_is_checked_too():
    with pytest.raises(ClusterError, match=r"network\.rails is 40"):
        check_cluster(networked(rails=40))


@pytest.mark.parametrize(
    ("rails", "after", "expected"),
    [
        (8, 4, (4, 10.0)),
        (8, 16, (16, 10.0)),
        (4, 6, (3, 10.0)),
        (4, 1, (1, 5.0)),
        (16, 2, (4, 10.0)),
    ],
)
def test_each_gpu_keeps_its_share_of_the_rails(rails: int, after: int, expected: tuple[int, float]):
    made = with_gpus(msgspec.structs.replace(PLAIN, rails=rails), 8, after)
    assert made is not None
    assert (made.rails, made.rail_bandwidth) == expected
    assert made.rails * made.rail_bandwidth / after == pytest.approx(rails * 10.0 / 8)
