import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from autopart.cost.probed_cluster import cluster_of_probe
from autopart.records.calibration import load_calibration
from autopart.records.cluster import load_cluster, save_cluster
from autopart.records.network import Network
from autopart.records.probe import Probe
from autopart.runtime.probing import kernels, probe
from tests.calibration.test_from_kernels import readings
from tests.cost.test_probed_cluster import probe_of
from tests.support.drawn_readings import readings_of
from tests.support.places import SCHEMAS

Cli = Callable[..., Any]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Figures that ranks could have measured."""
    found = probe_of()
    monkeypatch.setattr(probe, "probe_cluster", lambda **asked: found)
    return found


def test_the_tables_show_measured_figures_beside_those_in_the_cluster_file(
    cli: Cli, measured: Probe
) -> None:
    outcome = cli("probe", "--ranks", "2", "-o", "found.json")
    assert outcome.code == 0, outcome.err
    assert load_cluster("found.json") == cluster_of_probe(measured)
    for words in (
        "2 nodes x 2 ranks, Some CPU (gloo)",
        "send inside a node",
        "across nodes: 1.00 ms + bytes / 0.01 GB/s",
        "all-reduces 2.00 times the ring",
        "sends overlap with compute (90.0 % of a send is hidden)",
        "fixed cost of an action 200 µs",
        "cluster written to found.json",
    ):
        assert words in " ".join(outcome.out.split()), words
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.slow
def test_solve_plans_for_a_probed_cluster(cli: Cli, measured: Probe, profile_file: Path) -> None:
    assert cli("probe", "--ranks", "2", "--json").document["path"] == "cluster.json"
    assert cli("solve", "--cluster", "cluster.json", "--global-batch", "8").code == 0


@pytest.fixture
def measured_network(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Figures of two nodes that share a rail, one message of which was disturbed."""
    network = Network(
        rails=1, rail_bandwidth=1e7, ring_bandwidth=1e9, trees=False, serial_steps=True
    )
    readings = readings_of(network, 2, 2, 0.0, 0)
    first = readings.collectives[0]
    slow = msgspec.structs.replace(first.readings[-1], time=2 * first.readings[-1].time)
    disturbed = msgspec.structs.replace(first, readings=(*first.readings[:-1], slow))
    readings = msgspec.structs.replace(
        readings, collectives=(disturbed, *readings.collectives[1:]), left_out=("a send",)
    )
    found = probe_of(
        network=readings, environment={"GLOO_SOCKET_IFNAME": "eth1"}, environment_differs=("FI_X",)
    )
    monkeypatch.setattr(probe, "probe_cluster", lambda **asked: found)
    return found


def test_a_probed_network_is_printed_beside_its_predictions_and_planned_for(
    cli: Cli, measured_network: Probe, profile_file: Path
) -> None:
    outcome = cli("probe")
    assert outcome.code == 0, outcome.err
    words = " ".join(outcome.out.split())
    assert "network of a node: ring 0.996 GB/s; 1 rail of 0.01 GB/s" in words
    assert "all-gather, 2 x 2 ranks on 2 nodes" in words
    for warning in (
        "all-reduce, 2 ranks on 1 node: 1.0 GiB take",
        "the time limit left out 1 measurement: a send; raise --limit",
        "2 GPUs of a node share 1 rail",
        "ranks differ in environment variables: FI_X",
    ):
        assert warning in outcome.err, outcome.err
    network = load_cluster("cluster.json").network
    assert network is not None and not network.trees
    assert network.rail_bandwidth == pytest.approx(1e7, rel=0.01)
    assert "GLOO_SOCKET_IFNAME=eth1" in load_cluster("cluster.json").source
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert cli("solve", "--cluster", "cluster.json", "--global-batch", "8").code == 0


def test_the_document_of_a_probed_network_follows_its_schema(
    cli: Cli, measured_network: Probe
) -> None:
    document = cli("probe", "--json").document
    jsonschema.validate(document, json.loads((SCHEMAS / "probe-summary.json").read_text()))
    first = document["comparisons"][0]
    assert set(first) == {"what", "num_bytes", "measured", "predicted", "shares"}
    assert len(document["probe"]["network"]["collectives"]) > 10


def test_rails_of_one_node_are_refused_in_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    outcome = cli("probe", "--ranks", "2", "--network")
    assert (outcome.code, outcome.out) == (2, "")
    assert "has no rails to measure" in outcome.err and outcome.err.count("\n") == 1


def test_a_probe_without_ranks_is_refused_with_the_option_that_starts_them(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    outcome = cli("probe")
    assert (outcome.code, outcome.out) == (2, "")
    assert "--ranks 2" in outcome.err and outcome.err.count("\n") == 1


def test_a_probe_never_replaces_a_file_in_another_format(
    cli: Cli, folder: Path, measured: Probe
) -> None:
    save_cluster(cluster_of_probe(measured), folder / "cluster.json")
    (folder / "notes.json").write_text("mine")
    assert cli("probe", "--ranks", "2", "-o", "notes.json").code == 1
    assert (folder / "notes.json").read_text() == "mine"
    assert cli("probe", "--ranks", "2").code == 0


def test_kernels_become_a_calibration_for_profiles(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(device: str, dtype: str, threads: int, limit: float) -> object:
        assert (device, dtype, threads, limit) == ("cpu", "float32", 1, 120.0)
        return kernels.KernelReadings(tuple(readings()), None)

    monkeypatch.setattr(kernels, "measure_kernels", recorded)
    outcome = cli("probe", "--kernels", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    made = load_calibration("calibration.json")
    assert (made.gpu, made.dtype, made.source) == ("cpu", "float32", "kernels")
    for words in (
        "kernels of cpu, float32",
        "shares are of measured peak rates: 1",
        "range: attention of 1e+06 to 1.7e+07 FLOP",
        "10.0 µs per kernel",
        "calibration written to calibration.json",
    ):
        assert words in " ".join(outcome.out.split()), words
    document = cli("probe", "--kernels", "--device", "cpu", "--json").document
    assert document["path"] == "calibration.json" and document["calibration"]["gpu"] == "cpu"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--kernels", "--ranks", "2"), "--kernels times one device; drop --ranks"),
        (("--kernels", "--no-network"), "--kernels times one device; drop --network"),
        (("--ranks", "2", "--dtype", "float32"), "--dtype goes with --kernels"),
        (("--kernels", "--gpu", "z100"), "unknown GPU 'z100'"),
        (("--kernels", "--target", "jax"), "no kernels are known for target 'jax'"),
        (("--kernels", "--device", "cpu", "--gpu", "h100-sxm"), "make a calibration of 'cpu' only"),
    ],
)
def test_options_that_do_not_go_with_kernels_are_refused(
    cli: Cli, line: tuple[str, ...], message: str
) -> None:
    outcome = cli("probe", *line)
    assert outcome.code in (1, 2) and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and not Path("calibration.json").exists()
