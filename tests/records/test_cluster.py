import pytest

from autopart.certificate.verify import verify
from autopart.errors import ClusterError, FileError
from autopart.records.cluster import (
    cluster_of,
    fastest_speed,
    load_cluster,
    num_gpus,
    save_cluster,
    slowest_link,
    slowest_speed,
)
from autopart.records.known_gpus import GPUS
from autopart.records.mixed_cluster import mixed_cluster
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile


def test_gpus_count_all_nodes_together():
    machine = cluster_of("h100-sxm", gpus=8, nodes=2)
    assert (machine.num_nodes, machine.gpus_per_node, num_gpus(machine)) == (2, 4, 8)


@pytest.mark.parametrize(
    ("gpus", "nodes", "per_node", "message"),
    [
        (7, 2, None, "7 GPUs do not divide evenly over 2 nodes.*try --gpus 6 or --gpus 8"),
        (8, 2, 8, "2 nodes of 8 GPUs make 16 GPUs, not 8"),
        (0, 1, None, "both must be at least 1"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(
    gpus: int, nodes: int, per_node: int | None, message: str
):
    with pytest.raises(ClusterError, match=message):
        cluster_of("h100-sxm", gpus, nodes, per_node)


def test_an_unknown_gpu_lists_the_known():
    with pytest.raises(ClusterError, match=r"unknown GPU 'abacus'; known: .*h100-sxm"):
        cluster_of("abacus", 1)


def test_ranks_of_one_node_use_the_fast_link():
    machine = cluster_of("h100-sxm", 8, 2)
    assert slowest_link(machine, (0, 3)) == machine.intra_node
    assert slowest_link(machine, (3, 4)) == machine.inter_node
    assert slowest_link(machine, (0, 1)) == machine.intra_node
    assert slowest_link(machine, (0, 7)) == machine.inter_node


@pytest.mark.parametrize("name", GPUS)
def test_every_known_gpu_names_its_source_and_makes_a_cluster(name: str):
    machine = cluster_of(name, 2)
    assert GPUS[name].source in machine.source
    assert 0 < machine.reserve_bytes < machine.memory_bytes


def test_a_cluster_survives_its_file(tmp_path):
    path = tmp_path / "cluster.json"
    save_cluster(cluster_of("cpu", 2), path)
    assert load_cluster(path) == cluster_of("cpu", 2)


@pytest.mark.parametrize("name", GPUS)
def test_every_known_gpu_reaches_its_host_over_pcie_or_memory(name: str):
    link = cluster_of(name, 2).host_link
    assert link is not None
    assert link.overlaps == (name != "cpu")
    assert link.bandwidth <= GPUS[name].memory_bandwidth / 2


def test_different_gpus_are_as_slow_to_their_host_as_the_slowest():
    both = mixed_cluster([("h100-sxm", 1), ("l40s", 1)], "h100-sxm", "bfloat16")
    assert both.host_link == cluster_of("l40s", 1).host_link


def test_a_cluster_file_with_a_bandwidth_of_nothing_names_the_place(tmp_path):
    path = tmp_path / "cluster.json"
    save_cluster(cluster_of("cpu", 2), path)
    path.write_text(path.read_text().replace("3700000000.0", "0.0", 1))
    with pytest.raises(FileError, match=r"Expected `float` >= 0.001.*\$\.intra_node\.bandwidth"):
        load_cluster(path)


def test_neighbours_that_compute_slow_every_layer_and_bound_alike():
    row = profile(chain_graph(*(layer(f"l{i}") for i in range(5))))
    alone, together = (cluster(compute_slowdown=factor) for factor in (1.0, 1.25))
    assert slowest_speed(together, (0, 1)) == fastest_speed(together) == 0.8
    quick, slow = (solve(row, machine, num_microbatches=4) for machine in (alone, together))
    assert slow.prediction.stages[0].forward_time == pytest.approx(
        1.25 * quick.prediction.stages[0].forward_time
    )
    assert slow.certificate.gap == 0.0
    assert all(check.passed for check in verify(slow, row))


def test_a_cluster_whose_neighbours_speed_up_is_refused(tmp_path):
    path = tmp_path / "cluster.json"
    save_cluster(cluster_of("cpu", 2), path)
    path.write_text(path.read_text().replace('"compute_slowdown": 1.0', '"compute_slowdown": 0.9'))
    with pytest.raises(FileError, match=r"\$\.compute_slowdown"):
        load_cluster(path)
