"""`autopart clusters`, and `--cluster` with a name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.records.cluster import Cluster, cluster_of, load_cluster, num_gpus, save_cluster
from autopart.records.known_clusters import PRESETS, find_preset, preset_cluster
from autopart.records.plan import load_plan
from tests.support.samples import sample_cluster

Cli = Callable[..., Any]


def solved(cli: Cli, *words: str) -> Cluster:
    assert cli("solve", *words).code == 0
    return load_plan("plan.json").cluster


def test_all_known_clusters_are_listed(cli: Cli, folder: Path) -> None:
    outcome = cli("clusters")
    assert outcome.code == 0
    assert all(name in outcome.out for name in PRESETS)
    document = cli("clusters", "--json").document
    assert [one["name"] for one in document["clusters"]] == list(PRESETS)


def test_a_named_cluster_shows_its_sources_and_becomes_a_file(cli: Cli, folder: Path) -> None:
    outcome = cli("clusters", "p5", "--nodes", "4", "-o", "cluster.json")
    assert outcome.code == 0
    assert "crazyguitar/aws-gpu-communication-benchmark" in outcome.out.replace("\n", "")
    assert load_cluster("cluster.json") == preset_cluster(find_preset("p5"), 4)
    assert "name it" in cli("clusters", "-o", "other.json").err


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        ("", (1, 8)),
        ("--nodes 2", (2, 8)),
        ("--gpus 16", (2, 8)),
        ("--gpus 4", (1, 4)),
        ("--gpus 8 --nodes 2", (2, 4)),
        ("--nodes 2 --gpus-per-node 1", (2, 1)),
        ("--gpus 12", (2, 6)),
        ("--gpu h100-sxm --nodes 2", (2, 8)),
    ],
)
def test_a_known_cluster_is_planned_for_by_its_name(
    cli: Cli, profile_file: Path, words: str, counts: tuple[int, int]
) -> None:
    cluster = solved(cli, "--cluster", "dgx-h100", *words.split())
    assert (cluster.num_nodes, cluster.gpus_per_node) == counts
    assert cluster.network is not None
    assert cluster.network.rails == counts[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--cluster dgx-h10",
            "no known cluster 'dgx-h10'; did you mean dgx-h100? known: dgx-h100, dgx-a100",
        ),
        ("--cluster P5", "known: p5, p5en"),
        ("--cluster none.json", "none.json: there is no such file"),
        ("--cluster dgx-h100 --gpu a100-sxm-80gb", "dgx-h100 has h100-sxm, not a100-sxm-80gb"),
        ("--cluster p5 --gpus 16 --nodes 1", "has 8 GPUs per node, not 16; 16 GPUs need --nodes 2"),
        ("--cluster p5 --inter-bandwidth 5GB/s", "for clusters without a network record"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_in_one_line(
    cli: Cli, profile_file: Path, words: str, message: str
) -> None:
    outcome = cli("solve", *words.split())
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert outcome.err.count("error:") == 1


def test_a_file_called_like_a_known_cluster_is_the_file(
    cli: Cli, folder: Path, profile_file: Path
) -> None:
    save_cluster(sample_cluster(1, 2), folder / "p5")
    assert solved(cli, "--cluster", "p5") == sample_cluster(1, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_every_known_cluster_names_its_source_and_survives_its_file(
    name: str, tmp_path: Path
) -> None:
    made = preset_cluster(find_preset(name), 2)
    save_cluster(made, tmp_path / "cluster.json")
    assert load_cluster(tmp_path / "cluster.json") == made
    assert num_gpus(made) == 2 * PRESETS[name].gpus_per_node
    assert PRESETS[name].source in made.source


@pytest.mark.parametrize(
    ("words", "name", "counts"),
    [
        ("--gpu h100-sxm --nodes 8", "dgx-h100", (8, 8)),
        ("--gpu h100-sxm --gpus 16 --nodes 2", "dgx-h100", (2, 8)),
        ("--gpu h100-sxm --gpus 8 --nodes 2", "dgx-h100", (2, 4)),
        ("--gpu h100-sxm --gpus 4", "dgx-h100", (1, 4)),
        ("--gpu a100-sxm-40gb --nodes 2 --gpus-per-node 2", "p4d", (2, 2)),
        ("--gpu v100-sxm-32gb --gpus 8", "dgx-1v", (1, 8)),
        ("--gpu v100-sxm-32gb --gpus 32 --nodes 2", "dgx-2", (2, 16)),
    ],
)
def test_gpus_come_in_a_known_node_and_one_line_says_which(
    cli: Cli, profile_file: Path, words: str, name: str, counts: tuple[int, int]
) -> None:
    outcome = cli("solve", *words.split(), "--global-batch", "128")
    assert outcome.code == 0
    assert load_plan("plan.json").cluster == preset_cluster(find_preset(name), *counts)
    said = [line for line in outcome.err.splitlines() if line.startswith("assumed: ")]
    assert len(said) == 1 and f"of kind {name}" in said[0]
    part = counts[1] < PRESETS[name].gpus_per_node
    assert (f"{counts[1]} of {PRESETS[name].gpus_per_node} GPUs are used" in said[0]) == part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--gpu rtx-4090 --gpus 4", "links of 32 GB/s inside the node, as no known node has rtx"),
        ("--gpu rtx-4090 --gpus 4 --nodes 2", "one link of 25 GB/s between nodes, as no known"),
        ("--gpu h100-sxm --gpus 16", "as no known node has 16 h100-sxm; dgx-h100 has 8 per node"),
        ("--gpu h100-sxm:2,l40s:2 --nodes 2", "one link of 25 GB/s between nodes, as no known"),
        ("--gpu h100-sxm --gpus 4 --nodes 2 --intra-bandwidth 9GB/s", "--inter-bandwidth"),
        ("--gpu h100-sxm --gpus 4 --nodes 2 --inter-bandwidth 9GB/s", ""),
        ("--gpu h100-sxm --gpus 1", ""),
        ("--gpus 4", ""),
        ("--cluster dgx-h100 --nodes 2", ""),
    ],
)
def test_links_that_stand_in_for_a_known_node_are_told_in_one_line(
    cli: Cli, profile_file: Path, words: str, said: str
) -> None:
    outcome = cli("solve", *words.split(), "--global-batch", "64")
    assert outcome.code == 0
    lines = [line for line in outcome.err.splitlines() if line.startswith("assumed: ")]
    assert len(lines) == bool(said)
    assert said in "".join(lines)
    one_link = "--cluster" not in words and words != "--gpu h100-sxm --gpus 1"
    assert (load_plan("plan.json").cluster.network is None) == one_link


def test_a_bandwidth_keeps_the_links_of_the_data_sheet(cli: Cli, profile_file: Path) -> None:
    words = "--gpu h100-sxm --gpus 4 --nodes 2 --inter-bandwidth 9GB/s"
    plain = cluster_of("h100-sxm", 4, 2)
    slower = msgspec.structs.replace(plain.inter_node, bandwidth=9e9)
    assert solved(cli, *words.split()) == msgspec.structs.replace(plain, inter_node=slower)
    assert cli("solve", "--nodes", "2", "--gpu", "rtx-4090").code == 2
