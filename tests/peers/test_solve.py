"""Other planners' files under their own objectives: the same answers as the solvers', and as everything."""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart import PeerLimits, solve_peer
from autopart.errors import FileError, InfeasibleError, UsageError
from autopart.peers.dnn_partitioning.charges import DeviceStage, check_split
from autopart.peers.dnn_partitioning.file import read
from autopart.peers.formats import import_profile
from autopart.peers.pipedream.charges import Network
from autopart.peers.pipedream.solve import solve
from tests.scripts.test_compare_pipedream import CHAIN
from tests.support.peers.dnn_instances import as_document, random_instance, smallest_largest_charge
from tests.support.seeds import seeds
from tests.support.shared_data import DATA, needs_data, published


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    path = tmp_path / "graph.txt"
    path.write_text(CHAIN)
    return path


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("seed", seeds(6, 15))
def test_a_split_is_no_worse_than_any_and_its_charge_follows_from_the_file(
    seed: int, contiguous: bool, tmp_path: Path
):
    path = tmp_path / "net.json"
    instance = random_instance(random.Random(seed))
    path.write_text(json.dumps(as_document(instance)))
    best = smallest_largest_charge(instance, contiguous=contiguous)
    limits = PeerLimits(contiguous=contiguous)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve_peer("dnn-partitioning", path, limits)
        return
    found = solve_peer("dnn-partitioning", path, limits)
    stages = [DeviceStage(stage.kind, stage.nodes) for stage in found.stages]  # pyright: ignore
    assert check_split(read(path), stages, contiguous=contiguous) == found.objective
    assert found.objective >= best * (1 - 1e-9)
    assert found.lower_bound <= best * (1 + 1e-9)
    if contiguous:
        assert found.objective == pytest.approx(best, rel=1e-9) and found.gap == 0


def test_a_network_of_one_level_and_of_two_is_solved_as_the_solver_does(graph_file: Path):
    graph = import_profile("pipedream", graph_file).graph
    for gpus, bandwidths in (((2,), (1e6,)), ((2, 2), (1e7, 1e6))):
        found = solve_peer("pipedream", graph_file, PeerLimits(gpus=gpus, bandwidths=bandwidths))
        own = solve(graph, Network(machines=gpus, bandwidths=bandwidths))
        assert (found.objective, found.lower_bound) == (own.objective, own.lower_bound)
        assert sorted(name for stage in found.stages for name in stage.nodes) == [
            layer.name for layer in graph.layers
        ]
    assert all(stage.outer_stage is not None for stage in found.stages)


def test_one_gpu_per_stage_takes_no_replicas(graph_file: Path):
    limits = PeerLimits(gpus=(3,), bandwidths=(1e9,), one_gpu_per_stage=True)
    assert {s.replicas for s in solve_peer("pipedream", graph_file, limits).stages} == {1}


@pytest.mark.parametrize(
    ("convention", "limits", "words"),
    [
        ("dapple", PeerLimits(), "there is no objective 'dapple'"),
        ("pipedream", PeerLimits(gpus=(4,)), "give GPUs and a bandwidth"),
        ("pipedream", PeerLimits(contiguous=False), "takes no choice of contiguity"),
        ("dnn-partitioning", PeerLimits(gpus=(4,)), "takes no gpus"),
        ("piper", PeerLimits(time_limit=1.0), "takes no time limit"),
        ("piper", PeerLimits(gpus=(4, 2)), "one level"),
    ],
)
def test_a_limit_that_a_convention_does_not_take_is_refused(
    convention: str, limits: PeerLimits, words: str, graph_file: Path
):
    with pytest.raises(UsageError, match=words):
        solve_peer(convention, graph_file, limits)


def test_a_file_of_another_format_is_refused(graph_file: Path):
    with pytest.raises(FileError):
        solve_peer("piper", graph_file)


@needs_data
def test_pipers_own_answer_is_met():
    run = next(
        run for run in published("piper") if not run.get("transformer_layers") and run["TPS"]
    )
    found = solve_peer(
        "piper",
        next(DATA.glob(f"piper/**/{run['input']}.json")),
        PeerLimits(
            gpus=(run["maxDevices"],),
            bandwidths=(run["bandwidth"],),
            memory_bytes=run["maxMemoryPerDevice"],
            num_microbatches=run["mbsInBatch"],
        ),
    )
    assert found.objective == pytest.approx(run["TPS"], rel=1e-9)
    assert found.lower_bound == found.objective
    used = sum(s.replicas * (s.tensor_parallel or 0) for s in found.stages)
    assert 0 < used <= run["maxDevices"]


def test_fields_that_a_convention_does_not_know_are_not_in_the_document(graph_file: Path):
    found = solve_peer("pipedream", graph_file, PeerLimits(gpus=(2,), bandwidths=(1e6,)))
    stages = msgspec.to_builtins(found)["stages"]
    assert all(set(stage) == {"nodes", "replicas", "kind"} for stage in stages)


@pytest.mark.parametrize(
    ("convention", "limits", "message"),
    [
        ("pipedream", {"gpus": (10**6,)}, "1000000 GPUs are too many for pipedream"),
        ("pipedream", {"gpus": (64, 64)}, "4096 GPUs are too many for pipedream"),
        ("piper", {"gpus": (10**6,)}, "1000000 GPUs are too many for piper"),
        ("piper", {"num_microbatches": 10**9}, "1000000000 microbatches are too many"),
    ],
)
def test_absurd_counts_are_refused_before_memory_is_taken(
    graph_file: Path, convention: str, limits: dict[str, Any], message: str
):
    with pytest.raises(UsageError, match=message):
        solve_peer(convention, graph_file, PeerLimits(**limits))
