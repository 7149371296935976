import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.support.places import SCHEMAS

Cli = Callable[..., object]
SCHEMA = SCHEMAS / "validate-summary.json"


@pytest.mark.slow
def test_each_rank_alone_is_compared_with_the_plan(cli: Cli, folder: Path, two_ranks: Path) -> None:
    asked = ("--one-device", "--device", "cpu", "--steps", "2", "--trace", "both.json", "--json")
    outcome = cli("validate", "plan.json", "model.py", *asked)
    assert outcome.code == 0, outcome.err
    jsonschema.validate(outcome.document, json.loads(SCHEMA.read_text()))
    assert outcome.document["step_time"] is None
    assert [rank["rank"] for rank in outcome.document["ranks"]] == [0, 1]
    # The model is so small that the optimizer's counters (4 bytes per parameter) are visible.
    assert all(abs(rank["error"]) < 0.05 for rank in outcome.document["ranks"])
    assert {(one["stage"], one["op"]) for one in outcome.document["actions"]} == {
        (stage, op) for stage in (0, 1) for op in "FB"
    }
    trace = json.loads((folder / "both.json").read_text())
    assert trace["otherData"]["format"] == "autopart-trace"
    assert "trace written to both.json" in outcome.err
    assert max(map(len, outcome.err.splitlines())) <= 80
    strict = cli("validate", "plan.json", "model.py", *asked[:5], "--tolerance", "0.0001")
    assert strict.code == 1
    assert strict.err.startswith("error: the prediction of ") and strict.err.count("\n") == 1
    assert "tensor bytes at the peak" in strict.out, "the tables are printed all the same"


@pytest.mark.slow
def test_validate_without_ranks_or_with_contradicting_options_is_refused(
    cli: Cli, folder: Path, plan_file: Path
) -> None:
    outcome = cli("validate", "plan.json", "model.py")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "torchrun --nproc-per-node 4 -m autopart validate plan.json model.py" in outcome.err
    both = cli("validate", "plan.json", "model.py", "--local", "--one-device")
    assert (both.code, both.out) == (2, "") and "choose one" in both.err
    (folder / "mine.txt").write_text("mine")
    kept = cli("validate", "plan.json", "model.py", "--one-device", "--trace", "mine.txt")
    assert kept.code == 1 and (folder / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_run_on_all_ranks_is_compared_with_the_plan(cli: Cli, two_ranks: Path) -> None:
    outcome = cli("validate", "plan.json", "model.py", "--local", "--steps", "4", "--json")
    assert outcome.code == 0, outcome.err
    jsonschema.validate(outcome.document, json.loads(SCHEMA.read_text()))
    found = outcome.document
    assert sum(one["seconds"] for one in found["causes"]) == pytest.approx(
        found["step_time"] - found["predicted_step_time"]
    )
    for rank in found["ranks"]:
        assert sum(rank["measured"].values()) == pytest.approx(found["step_time"])
        assert rank["measured_bytes"] > 0
    assert {one["op"] for one in found["sends"]} <= {"F", "B"}


@pytest.fixture
def tensor_groups(cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`plan.json` in `folder`: Llama in two stages of two GPUs each."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = "profile zoo:llama-tiny --warmup 0 --repeats 1 --tensor 2 --sequence-parallel"
    assert cli(*asked.split()).code == 0
    asked = "solve --gpus 4 --tensor 2 --sequence-parallel on --stages 2 --global-batch 4"
    assert cli(*asked.split()).code == 0
    return folder / "plan.json"


@pytest.mark.long
def test_tensor_groups_are_compared_with_the_plan(cli: Cli, tensor_groups: Path) -> None:
    outcome = cli("validate", "plan.json", "zoo:llama-tiny", "--local", "--steps", "2", "--json")
    assert outcome.code == 0, outcome.err
    found, plan = outcome.document, json.loads(tensor_groups.read_text())
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    stages = plan["prediction"]["stages"]
    times = {(one["stage"], one["op"]): one["predicted"] for one in found["actions"]}
    assert times[0, "F"] == stages[0]["forward_time"], "collectives are part of it"
    assert [rank["rank"] for rank in found["ranks"]] == [0, 1]
    for rank in found["ranks"]:
        assert 0.0 <= rank["error"] <= 0.05
        assert sum(rank["measured"].values()) == pytest.approx(found["step_time"])
    assert "each rank is a tensor group of 2 processes" in found["notes"][0]

    alone = cli("validate", "plan.json", "zoo:llama-tiny", "--one-device", "--steps", "1", "--json")
    assert alone.code == 0, alone.err
    without = {(one["stage"], one["op"]): one["predicted"] for one in alone.document["actions"]}
    assert all(without[action] < times[action] for action in times)
    assert alone.document["predicted_step_time"] < found["predicted_step_time"]
    assert "without the group's collectives" in alone.document["notes"][0]
