from collections.abc import Callable
from pathlib import Path

import pytest

from autopart.cost.probed_cluster import cluster_of_probe
from autopart.records.cluster import load_cluster, save_cluster
from autopart.records.probe import Probe
from autopart.runtime.probing import probe
from tests.cost.test_probed_cluster import probe_of

Cli = Callable[..., object]


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


def test_solve_plans_for_a_probed_cluster(cli: Cli, measured: Probe, profile_file: Path) -> None:
    assert cli("probe", "--ranks", "2", "--json").document["path"] == "cluster.json"
    assert cli("solve", "--cluster", "cluster.json", "--global-batch", "8").code == 0


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
