import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from autopart.records.plan import load_plan, save_plan
from autopart.records.prediction import ON_DEVICE
from autopart.records.profile import save_profile
from autopart.records.rank_group import Shard
from tests.support.places import SCHEMAS
from tests.support.samples import sample_profile
from tests.support.sharded_plans import sample_sharded_plan

Cli = Callable[..., object]


def _schema(name: str) -> object:
    folder = SCHEMAS
    return json.loads((folder / f"{name}.json").read_text())


def test_show_prints_stages_memory_and_a_timeline(cli: Cli, plan_file: Path) -> None:
    outcome = cli("show", "plan.json")
    assert outcome.code == 0
    for words in ("2 stages x 2 replicas", "memory of one rank", "rank 3  ", "one column is"):
        assert words in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80


@pytest.mark.slow
def test_show_memory_names_every_byte_of_every_rank(cli: Cli, plan_file: Path) -> None:
    outcome = cli("show", "plan.json", "--memory", "--json")
    jsonschema.validate(outcome.document, _schema("memory-summary"))
    peaks = load_plan("plan.json").prediction.rank_peak_bytes
    for group in outcome.document["ranks"]:
        assert sum(group["memory"].get(kind, 0) for kind in ON_DEVICE) == group["peak_bytes"]
        assert {peaks[rank] for rank in group["ranks"]} == {group["peak_bytes"]}
    shown = {rank for group in outcome.document["ranks"] for rank in group["ranks"]}
    assert shown == {rank for rank, peak in enumerate(peaks) if peak}
    for words in ("optimizer state", "stash of all microbatches in flight", "peak"):
        assert words in outcome.err and words in cli("show", "plan.json", "--memory").out


@pytest.mark.parametrize("shard", ["zero2", "zero3"])
def test_gathers_and_reductions_are_shown_by_order_and_by_seconds(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: Shard
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = sample_sharded_plan(shard)
    save_plan(plan, tmp_path / "plan.json")
    orders = cli("show", "plan.json", "--orders", "--json").document
    jsonschema.validate(orders, _schema("orders-summary"))
    assert [one["order"].split()[0] for one in orders["ranks"]] == ["0UNSHARD", "1UNSHARD"]
    said = cli("show", "plan.json").out
    assert "sharded state: gathers" in said and "< gather, > reduction" in said
    step = cli("simulate", "plan.json", "--json").document
    jsonschema.validate(step, _schema("simulate-summary"))
    names = ("busy_time", "sync_time", "update_time", "gather_time", "reduction_time", "idle_time")
    for rank in step["ranks"]:
        assert sum(rank[name] for name in names) == pytest.approx(step["makespan"])
        assert rank["gather_time"] > 0 and rank["reduction_time"] > 0
    assert "gather, reduce: seconds" in cli("simulate", "plan.json").out


def test_show_draws_as_wide_as_the_terminal(
    cli: Cli, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    lines = cli("show", "plan.json").out.splitlines()
    assert {len(line) for line in lines if line.startswith("rank ")} == {160}


def test_simulate_gives_makespan_bubble_and_each_rank_s_peak(cli: Cli, plan_file: Path) -> None:
    outcome = cli("simulate", "plan.json", "--json")
    document, plan = outcome.document, load_plan("plan.json")
    jsonschema.validate(document, _schema("simulate-summary"))
    assert document["makespan"] == pytest.approx(plan.prediction.step_time)
    assert document["bubble"] == pytest.approx(plan.prediction.bubble)
    for stage, predicted in zip(plan.stages, plan.prediction.stages, strict=True):
        peaks = [rank["peak_bytes"] for rank in document["ranks"] if rank["rank"] in stage.ranks]
        # The prediction has room for one more result on its way than this short order needs.
        assert len(peaks) == len(stage.ranks) and predicted.moving is not None
        assert all(0 <= predicted.peak_bytes - p <= predicted.moving.outputs for p in peaks)
    for rank in document["ranks"]:
        order = " ".join(slice_["action"] for slice_ in rank["slices"])
        assert order == plan.orders[rank["rank"]]
    assert "makespan" in outcome.err
    assert "makespan" in cli("simulate", "plan.json").out


@pytest.mark.slow
def test_simulate_gives_every_idle_second_a_cause(cli: Cli, plan_file: Path) -> None:
    document = cli("simulate", "plan.json", "--json").document
    for rank in document["ranks"]:
        spent = rank["busy_time"] + rank["sync_time"] + rank["update_time"]
        assert sum(rank["idle_times"].values()) == pytest.approx(document["makespan"] - spent)
        assert rank["idle_time"] == pytest.approx(sum(p["end"] - p["start"] for p in rank["idle"]))
    assert "idle time by cause" in cli("simulate", "plan.json").out
    assert "of rank-seconds: " in cli("show", "plan.json").out


@pytest.mark.slow
def test_simulate_writes_a_trace_and_replaces_only_a_trace(
    cli: Cli, folder: Path, plan_file: Path
) -> None:
    for _ in range(2):
        outcome = cli("simulate", "plan.json", "--trace", "trace.json")
        assert outcome.code == 0 and "trace written to trace.json" in outcome.out
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    outcome = cli("simulate", "plan.json", "--trace", "plan.json")
    assert outcome.code == 1 and "plan.json" in outcome.err
    assert load_plan("plan.json")


@pytest.mark.parametrize("path", ["profile.json/trace.json", "."])
def test_a_trace_that_cannot_be_written_is_refused_with_its_path(
    cli: Cli, plan_file: Path, path: str
) -> None:
    outcome = cli("simulate", "plan.json", "--trace", path)
    assert outcome.code == 1
    assert path in outcome.err and "Traceback" not in outcome.err


@pytest.mark.slow
def test_noise_depends_on_the_seed_and_can_come_from_the_profile(cli: Cli, plan_file: Path) -> None:
    asked = ("simulate", "plan.json", "--draws", "50", "--json", "--noise")
    first, again, other = (
        cli(*asked, "5%", "--seed", seed).document["noise"] for seed in ("1", "1", "2")
    )
    assert first == again != other
    assert first["smallest"] < first["median"] < first["largest"]
    document = cli(*asked, "profile", "--profile", "profile.json").document
    # The sample profile has no ranges, so every step takes the simulated time.
    assert document["noise"]["mean"] == pytest.approx(document["makespan"])
    assert "under noise (5.0 % of every action" in cli(*asked[:4], "--noise", "5%").out


def test_noise_that_cannot_be_drawn_is_refused(cli: Cli, folder: Path, plan_file: Path) -> None:
    assert cli("simulate", "plan.json", "--noise", "much").code == 2
    outcome = cli("simulate", "plan.json", "--noise", "profile")
    assert outcome.code == 2 and "--profile" in outcome.err
    save_profile(sample_profile(dtype="float64"), folder / "other.json")
    outcome = cli("simulate", "plan.json", "--noise", "profile", "--profile", "other.json")
    assert outcome.code == 1 and "the plan was made from" in outcome.err


def test_verify_passes_a_plan_with_its_profile(cli: Cli, plan_file: Path) -> None:
    outcome = cli("verify", "plan.json", "--profile", "profile.json", "--json")
    assert outcome.code == 0
    jsonschema.validate(outcome.document, _schema("verify-summary"))
    assert outcome.document["passed"] is True
    assert len(outcome.document["checks"]) >= 5


def test_verify_with_another_profile_fails_and_lists_the_failed_check(
    cli: Cli, folder: Path, plan_file: Path
) -> None:
    save_profile(sample_profile(dtype="float64"), folder / "other.json")
    outcome = cli("verify", "plan.json", "--profile", "other.json")
    assert outcome.code == 1
    assert "FAILED" in outcome.out
    document = cli("verify", "plan.json", "--profile", "other.json", "--json").document
    assert document["passed"] is False


def test_verify_fails_a_plan_with_an_altered_prediction(
    cli: Cli, folder: Path, plan_file: Path
) -> None:
    plan = json.loads(plan_file.read_text())
    plan["prediction"]["step_time"] *= 0.9
    plan_file.write_text(json.dumps(plan))
    document = cli("verify", "plan.json", "--profile", "profile.json", "--json").document
    assert {check["name"] for check in document["checks"] if not check["passed"]} >= {"prediction"}


def test_verify_lists_a_layer_that_is_on_two_stages(
    cli: Cli, folder: Path, plan_file: Path
) -> None:
    plan = json.loads(plan_file.read_text())
    plan["stages"][1]["layers"].insert(0, plan["stages"][0]["layers"][-1])
    plan_file.write_text(json.dumps(plan))
    assert cli("show", "plan.json").code == 1
    outcome = cli("verify", "plan.json", "--profile", "profile.json")
    assert outcome.code == 1
    assert "FAILED" in outcome.out


def test_show_as_json_is_the_plan_in_figures(cli: Cli, plan_file: Path) -> None:
    document = cli("show", "plan.json", "--json").document
    jsonschema.validate(document, _schema("show-summary"))
    assert document["plan"] == "plan.json"
    assert sum(len(stage["layers"]) for stage in document["stages"]) == 10


def test_simulate_fills_idle_time_with_work(cli: Cli, plan_file: Path) -> None:
    outcome = cli("simulate", "plan.json", "--fill", "1us", "--json")
    assert outcome.code == 0
    document = outcome.document
    jsonschema.validate(document, _schema("simulate-summary"))
    ranks, fill = document["ranks"], document["fill"]
    idle = [rank["idle_time"] for rank in ranks]
    assert min(idle) > 1e-6 and fill["filled_times"] == pytest.approx([1e-6] * len(ranks))
    assert fill["makespan"] == document["makespan"]
    rest = (sum(idle) - 1e-6 * len(ranks)) / (len(ranks) * document["makespan"])
    assert fill["bubble"] == pytest.approx(rest)
    assert (
        "every rank has idle time for 1.00 µs of work"
        in cli("simulate", "plan.json", "--fill", "1us").out
    )
    # One second more than the busiest rank's idle time makes the step one second longer.
    more = cli("simulate", "plan.json", "--fill", f"{min(idle) + 1}", "--json").document["fill"]
    assert more["makespan"] == pytest.approx(document["makespan"] + 1)
    assert more["filled_times"] == pytest.approx([min(min(idle) + 1, own) for own in idle])
    assert cli("simulate", "plan.json").out.count("fill:") == 0


def test_a_fill_that_is_no_time_is_wrong_usage(cli: Cli, plan_file: Path) -> None:
    for text in ("", "-1ms", "much", "nan"):
        assert cli("simulate", "plan.json", "--fill", text).code == 2, text
