import json
import os
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from autopart.records.cluster import save_cluster
from autopart.records.plan import load_plan
from autopart.records.profile import Device, save_profile
from tests.support.places import SCHEMAS
from tests.support.samples import sample_cluster, sample_profile

Cli = Callable[..., object]


def _schema(name: str) -> object:
    folder = SCHEMAS
    return json.loads((folder / f"{name}.json").read_text())


def test_gpus_count_all_gpus_of_all_nodes(cli: Cli, profile_file: Path) -> None:
    document = cli("solve", "--gpus", "8", "--nodes", "2", "--json").document
    assert document["reading"].startswith("8 GPUs in all: 2 nodes x 4")
    plan = load_plan("plan.json")
    assert (plan.cluster.num_nodes, plan.cluster.gpus_per_node) == (2, 4)


@pytest.mark.parametrize(
    ("counts", "reading"),
    [
        ("--gpus 4", "4 GPUs in all: 1 node x 4"),
        ("--gpus 4 --gpus-per-node 2", "4 GPUs in all: 2 nodes x 2"),
        ("--nodes 2 --gpus-per-node 2", "4 GPUs in all: 2 nodes x 2"),
        ("--gpus-per-node 2", "2 GPUs in all: 1 node x 2"),
        ("--gpus 4 --nodes 2 --gpus-per-node 2", "4 GPUs in all: 2 nodes x 2"),
    ],
)
def test_gpus_nodes_and_gpus_per_node_may_be_given_in_any_combination(
    cli: Cli, profile_file: Path, counts: str, reading: str
) -> None:
    assert cli("solve", *counts.split(), "--json").document["reading"].startswith(reading)


def test_the_document_follows_its_schema_and_nothing_else_is_on_stdout(
    cli: Cli, profile_file: Path
) -> None:
    outcome = cli("solve", "--gpus", "4", "--nodes", "2", "--stages", "2", "--json")
    document = outcome.document
    jsonschema.validate(document, _schema("solve-summary"))
    plan = load_plan("plan.json")
    assert document["step_time"] == plan.prediction.step_time
    assert document["lower_bound"] <= document["step_time"]
    assert document["gap"] == pytest.approx(document["step_time"] / document["lower_bound"] - 1)
    assert document["num_microbatches"] == plan.num_microbatches
    for said, stage, predicted in zip(
        document["stages"], plan.stages, plan.prediction.stages, strict=True
    ):
        assert (tuple(said["layers"]), tuple(said["ranks"])) == (stage.layers, stage.ranks)
        assert said["busy_time"] == predicted.busy_time
        assert said["peak_bytes"] == predicted.peak_bytes
    assert "compared with the baselines" in outcome.err


def test_tables_go_to_stdout_and_compare_the_plan_with_the_baselines(
    cli: Cli, profile_file: Path
) -> None:
    outcome = cli("solve", "--gpus", "4", "--stages", "4")
    assert outcome.code == 0
    for words in ("profile profile.json", "this plan", "uniform", "parameters", "lower bound"):
        assert words in outcome.out
    assert "plan written to plan.json" in outcome.out


def test_the_newest_profile_of_the_folder_is_taken_and_named(
    cli: Cli, folder: Path, profile_file: Path
) -> None:
    save_profile(sample_profile(microbatch_size=7), folder / "newer.json")
    os.utime(folder / "newer.json", (2e9, 2e9))
    (folder / "other.json").write_text("{}")
    document = cli("solve", "--gpus", "2", "--json").document
    assert (document["profile"], document["microbatch_size"]) == ("newer.json", 7)


def test_options_replace_single_figures_of_a_known_gpu(cli: Cli, profile_file: Path) -> None:
    typed = "--memory 3GiB --intra-bandwidth 40GB/s --inter-bandwidth 80Gbit/s --gpu a100-sxm-40gb"
    assert cli("solve", "--gpus", "4", "--nodes", "2", *typed.split()).code == 0
    cluster = load_plan("plan.json").cluster
    assert cluster.gpu == "a100-sxm-40gb"
    assert cluster.memory_bytes == 3 << 30
    assert (cluster.intra_node.bandwidth, cluster.inter_node.bandwidth) == (40e9, 10e9)


@pytest.mark.slow
def test_a_cluster_file_is_enough_and_counts_replace_its_own(
    cli: Cli, folder: Path, profile_file: Path
) -> None:
    save_cluster(sample_cluster(2, 2), folder / "cluster.json")
    assert cli("solve", "--cluster", "cluster.json").code == 0
    assert load_plan("plan.json").cluster == sample_cluster(2, 2)
    assert cli("solve", "--cluster", "cluster.json", "--gpus", "8").code == 0
    assert load_plan("plan.json").cluster == sample_cluster(2, 4)


def test_a_cpu_profile_is_planned_for_a_cpu_unless_another_gpu_is_named(
    cli: Cli, profile_file: Path
) -> None:
    plain = cli("solve", "--gpus", "2", "--json").document
    assert (plain["gpu"], plain["notes"]) == ("cpu", [])
    other = cli("solve", "--gpus", "2", "--gpu", "h100-sxm")
    assert "warning: the times were measured on a CPU (Some CPU), not on h100-sxm" in other.err


def test_a_profile_of_a_known_gpu_is_planned_for_that_gpu(cli: Cli, folder: Path) -> None:
    device = Device(kind="cuda", name="NVIDIA H100 80GB HBM3")
    save_profile(sample_profile(device=device), folder / "p.json")
    assert cli("solve", "--gpus", "2", "--json").document["gpu"] == "h100-sxm"
    save_profile(sample_profile(device=Device(kind="cuda", name="Unheard Of")), folder / "p.json")
    outcome = cli("solve", "--gpus", "2")
    assert outcome.code == 1
    assert "'Unheard Of'" in outcome.err and "--gpu" in outcome.err


def test_a_warning_names_an_analytic_profile(cli: Cli, folder: Path) -> None:
    device = Device(kind="meta", name="h100-sxm")
    save_profile(sample_profile(method="analytic", device=device, whole=None), folder / "p.json")
    outcome = cli("solve", "--gpus", "2")
    assert "warning: the times are analytic" in outcome.err
    assert "(analytic)" in outcome.out


@pytest.mark.slow
def test_the_default_batch_is_named(cli: Cli, profile_file: Path) -> None:
    assert "4 for each GPU" in cli("solve", "--gpus", "4", "--json").document["reading"]
    chosen = cli("solve", "--gpus", "4", "--global-batch", "32", "--json").document
    assert chosen["num_microbatches"] == 16
    assert "4 for each GPU" not in chosen["reading"]


@pytest.mark.parametrize("solver", ["uniform", "parameters", "dp", "ilp"])
def test_the_named_solver_makes_the_plan(cli: Cli, profile_file: Path, solver: str) -> None:
    asked = ["solve", "--gpus", "2", "--stages", "2", "--solver", solver, "--json"]
    assert cli(*asked).document["solver"] == solver


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_the_named_schedule_is_kept(cli: Cli, profile_file: Path, schedule: str) -> None:
    asked = ["solve", "--gpus", "2", "--stages", "2", "--schedule", schedule, "--json"]
    assert cli(*asked).document["schedule"] == schedule


@pytest.mark.slow
def test_all_stages_have_equal_replicas_or_each_has_its_own(cli: Cli, profile_file: Path) -> None:
    assert cli("solve", "--gpus", "3", "--replicas", "per-stage").code == 0
    assert load_plan("plan.json").demands.replicas_per_stage
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0
    assert cli("solve", "--gpus", "4", "--replicas", "2").code == 0
    assert {len(stage.ranks) for stage in load_plan("plan.json").stages} == {2}
    refused = cli("solve", "--gpus", "4", "--replicas", "some")
    assert refused.code == 2 and "write auto, 4 or per-stage" in refused.err


@pytest.mark.slow
def test_gpus_of_several_kinds_are_read_in_the_order_of_the_ranks(
    cli: Cli, profile_file: Path
) -> None:
    document = cli("solve", "--gpu", "h100-sxm:1,cpu:1", "--json").document
    assert "1 x h100-sxm" in document["reading"] and "1 x cpu" in document["reading"]
    assert [group.name for group in load_plan("plan.json").cluster.gpus] == ["h100-sxm", "cpu"]
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0
    for words, told in [
        (("--gpu", "h100-sxm:1,cpu"), "'cpu' has no count"),
        (("--gpu", "h100-sxm:2,cpu:2", "--gpus", "8"), "names 4 GPUs"),
        (("--gpu", "h100-sxm:1,cpu:1", "--memory", "8GiB"), "--memory is for equal GPUs"),
    ]:
        refused = cli("solve", *words)
        assert refused.code == 2 and told in " ".join(refused.err.split())
