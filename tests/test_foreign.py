"""Other planners' files under their own objectives: the same answers as the solvers', and as everything."""

import json
import random
from pathlib import Path

import msgspec
import pytest

from autopart import ForeignLimits, solve_foreign
from autopart.errors import FileError, InfeasibleError, UsageError
from autopart.importers import import_profile
from autopart.importers.dnn_partitioning import read
from autopart.loads.dnn_partitioning import Stage, check_split
from autopart.loads.pipedream import Network
from autopart.solvers.replication.network import solve
from tests.dnn_instances import as_document, best_load, random_instance
from tests.seeds import seeds
from tests.shared_data import DATA, needs_data, published
from tests.test_compare_pipedream import CHAIN


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    path = tmp_path / "graph.txt"
    path.write_text(CHAIN)
    return path


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("seed", seeds(6, 15))
def test_a_split_is_no_worse_than_any_and_its_load_is_that_of_the_file(
    seed: int, contiguous: bool, tmp_path: Path
):
    path = tmp_path / "net.json"
    instance = random_instance(random.Random(seed))
    path.write_text(json.dumps(as_document(instance)))
    best = best_load(instance, contiguous=contiguous)
    limits = ForeignLimits(contiguous=contiguous)
    if best is None:
        with pytest.raises(InfeasibleError):
            solve_foreign("dnn-partitioning", path, limits)
        return
    found = solve_foreign("dnn-partitioning", path, limits)
    stages = [Stage(stage.kind, stage.nodes) for stage in found.stages]  # pyright: ignore
    assert check_split(read(path), stages, contiguous=contiguous) == found.objective
    assert found.objective >= best * (1 - 1e-9)
    assert found.lower_bound <= best * (1 + 1e-9)
    if contiguous:
        assert found.objective == pytest.approx(best, rel=1e-9) and found.gap == 0


def test_a_network_of_one_level_and_of_two_is_solved_as_the_solver_does(graph_file: Path):
    graph = import_profile("pipedream", graph_file).graph
    for gpus, bandwidths in (((2,), (1e6,)), ((2, 2), (1e7, 1e6))):
        found = solve_foreign(
            "pipedream", graph_file, ForeignLimits(gpus=gpus, bandwidths=bandwidths)
        )
        own = solve(graph, Network(machines=gpus, bandwidths=bandwidths))
        assert (found.objective, found.lower_bound) == (own.objective, own.lower_bound)
        assert sorted(name for stage in found.stages for name in stage.nodes) == [
            layer.name for layer in graph.layers
        ]
    assert all(stage.outer_stage is not None for stage in found.stages)


def test_one_gpu_a_stage_takes_no_replicas(graph_file: Path):
    limits = ForeignLimits(gpus=(3,), bandwidths=(1e9,), one_gpu_a_stage=True)
    assert {s.replicas for s in solve_foreign("pipedream", graph_file, limits).stages} == {1}


@pytest.mark.parametrize(
    ("convention", "limits", "words"),
    [
        ("dapple", ForeignLimits(), "no objective of 'dapple' is known"),
        ("pipedream", ForeignLimits(gpus=(4,)), "say how many GPUs, and a bandwidth"),
        ("pipedream", ForeignLimits(contiguous=False), "knows no choice of contiguity"),
        ("dnn-partitioning", ForeignLimits(gpus=(4,)), "knows no gpus"),
        ("piper", ForeignLimits(time_limit=1.0), "knows no time limit"),
        ("piper", ForeignLimits(gpus=(4, 2)), "one level"),
    ],
)
def test_a_limit_that_a_convention_does_not_know_is_refused(
    convention: str, limits: ForeignLimits, words: str, graph_file: Path
):
    with pytest.raises(UsageError, match=words):
        solve_foreign(convention, graph_file, limits)


def test_a_file_of_another_format_is_refused(graph_file: Path):
    with pytest.raises(FileError):
        solve_foreign("piper", graph_file)


@needs_data
def test_pipers_own_answer_is_met():
    run = next(
        run for run in published("piper") if not run.get("transformer_layers") and run["TPS"]
    )
    found = solve_foreign(
        "piper",
        next(DATA.glob(f"piper/**/{run['input']}.json")),
        ForeignLimits(
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


def test_what_a_convention_does_not_know_is_not_in_the_document(graph_file: Path):
    found = solve_foreign("pipedream", graph_file, ForeignLimits(gpus=(2,), bandwidths=(1e6,)))
    stages = msgspec.to_builtins(found)["stages"]
    assert all(set(stage) == {"nodes", "replicas", "kind"} for stage in stages)
