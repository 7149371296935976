"""Offload on the command line: solve, verify, show and refused options."""

from pathlib import Path

import msgspec
import pytest

from autopart.records.profile import save_profile
from tests.cli.conftest import Cli
from tests.support.problems import chain_graph, layer, profile

ASKED = ("solve", "--gpus", "2", "--gpu", "h100-sxm", "--stages", "2", "--replicas", "1")
MEMORY = ("--global-batch", "8", "--schedule", "1f1b", "--memory")
GIB = 1 << 30


@pytest.fixture
def blocks(folder: Path) -> Path:
    """`profile.json` with six blocks; each computes for 1 s and keeps 10 GiB, so copies are hidden."""
    times = {"forward_time": 1.0, "input_grad_time": 1.0, "weight_grad_time": 1.0}
    layers = [layer(f"h.{i}", **times, stash_bytes=10 * GIB, workspace_bytes=GIB) for i in range(6)]
    graph = chain_graph(*layers, layer("head", **times), num_bytes=GIB)
    kept = tuple(msgspec.structs.replace(v, kept_by=v.consumers) for v in graph.values)
    save_profile(profile(msgspec.structs.replace(graph, values=kept)), folder / "profile.json")
    return folder / "profile.json"


def step_time(folder: Path) -> float:
    return msgspec.json.decode((folder / "plan.json").read_bytes())["prediction"]["step_time"]


@pytest.mark.slow
def test_offload_gives_a_faster_step_in_the_same_memory_and_verify_agrees(
    cli: Cli, blocks: Path
) -> None:
    steps: list[float] = []
    for memory, offload in (("200GiB", "never"), ("50GiB", "auto"), ("50GiB", "never")):
        assert cli(*ASKED, *MEMORY, memory, "--offload", offload).code == 0
        steps.append(step_time(blocks.parent))
        assert cli("verify", "plan.json", "--profile", "profile.json").code == 0
        assert ("offloads" in cli("show", "plan.json").out) == (offload == "auto")
    assert steps[0] <= steps[1] < steps[2]
    # The difference is less than one block's copies, out and back, for each microbatch.
    assert steps[1] - steps[0] < 8 * 2 * 10 * GIB / 64e9


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["interleaved-1f1b", "zbv", "zb-h1"])
def test_offload_goes_with_several_stages_per_rank_and_split_backwards(
    schedule: str, cli: Cli, blocks: Path
) -> None:
    asked = ("solve", "--gpus", "2", "--gpu", "h100-sxm", "--replicas", "1", "--global-batch", "4")
    asked = (*asked, "--schedule", schedule, "--memory")
    least = int(cli(*asked, "1GiB").err.split(" bytes")[0].rpartition("(")[2])
    kept = cli(*asked, f"{least - 1}B")
    assert kept.code == 3 and "--offload auto" in " ".join(kept.err.split()), kept.err
    done = cli(*asked, f"{least - 1}B", "--offload", "auto")
    assert done.code == 0 and "offloads" in done.out, done.err
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0


def test_the_infeasible_message_names_offload(cli: Cli, blocks: Path) -> None:
    kept = cli(*ASKED, *MEMORY, "35GiB")
    assert kept.code == 3 and "--offload auto" in " ".join(kept.err.split()), kept.err
    assert cli(*ASKED, *MEMORY, "35GiB", "--offload", "auto").code == 0


def test_verify_refuses_a_plan_that_offloads_other_layers(cli: Cli, blocks: Path) -> None:
    assert cli(*ASKED, *MEMORY, "50GiB", "--offload", "auto").code == 0
    path = blocks.parent / "plan.json"
    plan = msgspec.json.decode(path.read_bytes())
    changed = next(stage for stage in plan["stages"] if stage["offload"])
    changed["offload"] = changed["offload"][1:]
    path.write_bytes(msgspec.json.encode(plan))
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 1


@pytest.mark.slow
def test_named_layers_are_offloaded_and_always_offloads_all_except_kept_layers(
    cli: Cli, blocks: Path
) -> None:
    done = cli(*ASKED, *MEMORY, "200GiB", "--offload-layer", "h.2")
    assert done.code == 0 and "offloads 1 of" in done.out, done.err
    done = cli(*ASKED, *MEMORY, "200GiB", "--offload", "always", "--keep-layer", "h.2")
    assert done.code == 0, done.err
    plan = msgspec.json.decode((blocks.parent / "plan.json").read_bytes())
    named = {name for stage in plan["stages"] for name in stage["offload"]}
    assert named == {f"h.{i}" for i in range(6)} - {"h.2"}
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--offload-layer", "nowhere"), "no layer 'nowhere'"),
        (("--offload-layer", "head"), "layer 'head' cannot be offloaded"),
        (("--offload-layer", "h.1", "--keep-layer", "h.1"), "name it once"),
        (("--offload", "always", "--schedule", "chimera"), "nothing is offloaded under chimera"),
    ],
)
def test_impossible_options_are_refused(
    options: tuple[str, ...], words: str, cli: Cli, blocks: Path
) -> None:
    done = cli(*ASKED, *MEMORY, "200GiB", *options)
    assert done.code == 1 and words in " ".join(done.err.split()), done.err


def test_offload_without_a_host_link_is_refused_with_the_missing_option(
    cli: Cli, blocks: Path
) -> None:
    assert cli(*ASKED, *MEMORY, "200GiB").code == 0
    plan = msgspec.json.decode((blocks.parent / "plan.json").read_bytes())
    cluster = {**plan["cluster"], "host_link": None}
    (blocks.parent / "cluster.json").write_bytes(msgspec.json.encode(cluster))
    asked = ("solve", "--cluster", "cluster.json", "--stages", "2", "--offload", "always")
    done = cli(*asked, "--replicas", "1", "--global-batch", "8", "--schedule", "1f1b")
    assert done.code == 1 and "--host-bandwidth" in done.err, done.err
