"""Recompute on the command line: solve, verify, show and refused options."""

from pathlib import Path

import msgspec
import pytest

from autopart.records.layer_graph import Recompute
from autopart.records.profile import save_profile
from tests.cli.conftest import Cli
from tests.support.problems import chain_graph, layer, profile

ASKED = ("solve", "--gpus", "2", "--gpu", "h100-sxm", "--stages", "2", "--replicas", "1")
MEMORY = ("--global-batch", "8", "--schedule", "1f1b", "--memory")
GIB = 1 << 30


@pytest.fixture
def blocks(folder: Path) -> Path:
    """`profile.json` with six identical blocks that keep 10 GiB each, and a head that keeps 1 GiB."""
    again = Recompute(extra_time=1e-3, stash_bytes=0)
    times = {"forward_time": 1e-3, "input_grad_time": 1e-3, "weight_grad_time": 1e-3}
    layers = [layer(f"h.{i}", **times, stash_bytes=10 * GIB, workspace_bytes=GIB) for i in range(6)]
    layers = [msgspec.structs.replace(la, recompute=again) for la in layers]
    graph = chain_graph(*layers, layer("head", **times, stash_bytes=GIB), num_bytes=GIB)
    kept = tuple(msgspec.structs.replace(v, kept_by=v.consumers) for v in graph.values)
    whole = profile(msgspec.structs.replace(graph, values=kept))
    save_profile(whole, folder / "profile.json")
    return folder / "profile.json"


@pytest.mark.slow
def test_auto_recomputes_as_few_layers_as_fit_and_verify_agrees(cli: Cli, blocks: Path) -> None:
    steps = []
    for memory, count in (("200GiB", 0), ("61GiB", 1), ("45GiB", 2)):
        solved = cli(*ASKED, *MEMORY, memory, "--recompute", "auto")
        assert solved.code == 0, solved.err
        plan = msgspec.json.decode((blocks.parent / "plan.json").read_bytes())
        assert sum(len(stage["recompute"]) for stage in plan["stages"]) >= count
        assert (sum(len(stage["recompute"]) for stage in plan["stages"]) == 0) == (count == 0)
        assert cli("verify", "plan.json", "--profile", "profile.json").code == 0
        assert ("recomputes" in cli("show", "plan.json").out) == (count > 0)
        steps.append(plan["prediction"]["step_time"])
    assert steps == sorted(steps) and steps[0] < steps[-1]


def test_verify_refuses_a_plan_that_recomputes_other_layers(cli: Cli, blocks: Path) -> None:
    assert cli(*ASKED, *MEMORY, "61GiB", "--recompute", "auto").code == 0
    path = blocks.parent / "plan.json"
    plan = msgspec.json.decode(path.read_bytes())
    changed = next(stage for stage in plan["stages"] if stage["recompute"])
    changed["recompute"] = []
    path.write_bytes(msgspec.json.encode(plan))
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 1
    changed["recompute"] = ["head"] if "head" in changed["layers"] else []
    plan["stages"][-1]["recompute"] = ["head"]
    path.write_bytes(msgspec.json.encode(plan))
    told = cli("verify", "plan.json", "--profile", "profile.json")
    assert told.code == 1 and "the policy of layer 'head' is recompute" in " ".join(
        told.out.split()
    )


@pytest.mark.slow
def test_named_layers_are_recomputed_and_always_recomputes_all_except_kept_layers(
    cli: Cli, blocks: Path
) -> None:
    done = cli(*ASKED, *MEMORY, "200GiB", "--recompute-layer", "h.2")
    assert done.code == 0, done.err
    assert "recomputes 1 of" in done.out
    done = cli(*ASKED, *MEMORY, "200GiB", "--recompute", "always", "--keep-layer", "h.2")
    assert done.code == 0, done.err
    plan = msgspec.json.decode((blocks.parent / "plan.json").read_bytes())
    named = {name for stage in plan["stages"] for name in stage["recompute"]}
    assert named == {f"h.{i}" for i in range(6)} - {"h.2"}
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0


@pytest.mark.slow
def test_the_infeasible_message_names_the_least_memory_with_and_without_recompute(
    cli: Cli, blocks: Path
) -> None:
    kept = cli(*ASKED, *MEMORY, "12GiB")
    assert kept.code == 3 and "--recompute auto" not in kept.err
    told = cli(*ASKED, *MEMORY, "12GiB", "--recompute", "auto")
    assert told.code == 3 and "--recompute auto" not in told.err
    least = int(told.err.split(" bytes")[0].rpartition("(")[2])
    assert "--recompute auto" in cli(*ASKED, *MEMORY, f"{least}B").err
    assert "--recompute auto" not in cli(*ASKED, *MEMORY, f"{least - 1}B").err
    assert cli(*ASKED, *MEMORY, f"{least}B", "--recompute", "auto").code == 0
    assert cli(*ASKED, *MEMORY, f"{least - 1}B", "--recompute", "auto").code == 3
    assert least < int(kept.err.split(" bytes")[0].rpartition("(")[2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--recompute-layer", "nowhere"), "no layer 'nowhere'"),
        (("--keep-layer", "h.9"), "no layer 'h.9'"),
        (("--recompute-layer", "head"), "layer 'head' cannot be recomputed"),
        (("--recompute-layer", "h.1", "--keep-layer", "h.1"), "name it once"),
        (("--offload", "always", "--schedule", "chimera"), "offloaded under chimera"),
    ],
)
def test_impossible_options_are_refused(
    options: tuple[str, ...], words: str, cli: Cli, blocks: Path
) -> None:
    done = cli(*ASKED, *MEMORY, "200GiB", *options)
    assert done.code == 1 and words in " ".join(done.err.split())


@pytest.mark.slow
def test_a_memory_sweep_ends_where_nothing_fits_and_more_memory_is_never_slower(
    cli: Cli, blocks: Path
) -> None:
    asked = (*ASKED, "--global-batch", "8", "--schedule", "1f1b", "--recompute", "auto")
    done = cli(*asked, "--memory-sweep", "8", "--json")
    assert done.code == 0, done.err
    points = done.document["points"]
    assert not (blocks.parent / "plan.json").exists()
    memories = [point["memory_bytes"] for point in points]
    assert len(points) == 9 and memories == sorted(memories, reverse=True)
    assert points[-1]["step_time"] is None and memories[-1] == memories[-2] - 1
    steps = [point["step_time"] for point in points[:-1]]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    assert points[0]["recomputed"] == [] and len(points[-2]["recomputed"]) >= 5
    for point in points[:-1]:
        alone = cli(*asked, "--memory", f"{point['memory_bytes']}B", "--json")
        assert alone.document["step_time"] == pytest.approx(point["step_time"])
    assert cli(*asked, "--memory", f"{memories[-1]}B").code == 3
    table = cli(*asked, "--memory-sweep", "3").out
    assert "nothing fits" in table and "recomputed" in table


def test_a_sweep_of_one_size_or_of_different_gpus_is_refused(cli: Cli, blocks: Path) -> None:
    assert cli(*ASKED, "--memory-sweep", "1").code == 2
    mixed = ("solve", "--gpu", "h100-sxm:1,l40s:1", "--memory-sweep", "3")
    done = cli(*mixed)
    assert done.code == 1 and "equal GPUs" in done.err
