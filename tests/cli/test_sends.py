"""`--sends`: solve, verify, simulate and export with sends that wait for their receiver."""

import json
from pathlib import Path

import msgspec
import pytest

from autopart.records.frameworks import FRAMEWORKS
from autopart.records.plan import Plan, load_plan, save_plan
from autopart.simulator.timeline import simulate_plan
from tests.cli.conftest import Cli

ASKED = (
    *("solve", "--gpu", "rtx-4090", "--gpus", "4", "--nodes", "4", "--stages", "4"),
    *("--schedule", "1f1b", "--global-batch", "16", "--inter-bandwidth", "0.5GB/s"),
)


def with_sends(plan: Plan, sends: str) -> Plan:
    cluster = msgspec.structs.replace(plan.cluster, sends=sends)
    return msgspec.structs.replace(plan, cluster=cluster)


@pytest.mark.slow
def test_a_plan_says_its_sends_and_is_verified_with_them(cli: Cli, profile_file: Path) -> None:
    steps: dict[str, float] = {}
    for sends in ("buffered", "rendezvous"):
        assert cli(*ASKED, "--sends", sends).code == 0
        plan = load_plan("plan.json")
        assert plan.cluster.sends == sends
        assert plan.certificate.lower_bound <= plan.prediction.step_time
        assert simulate_plan(plan).makespan == plan.prediction.step_time
        assert cli("verify", "plan.json", "--profile", "profile.json").code == 0
        assert cli("simulate", "plan.json", "--noise", "5%", "--draws", "20").code == 0
        steps[sends] = plan.prediction.step_time
    assert steps["rendezvous"] > 1.02 * steps["buffered"]


def test_a_false_claim_about_sends_is_found(cli: Cli, profile_file: Path) -> None:
    assert cli(*ASKED, "--sends", "rendezvous").code == 0
    save_plan(with_sends(load_plan("plan.json"), "buffered"), Path("plan.json"))
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 1


def test_buffered_is_the_default_and_an_older_plan_keeps_its_step(
    cli: Cli, profile_file: Path
) -> None:
    assert cli(*ASKED).code == 0
    plan = json.loads(Path("plan.json").read_text())
    assert plan["cluster"].pop("sends") == "buffered"
    Path("plan.json").write_text(json.dumps(plan))
    older = load_plan("plan.json")
    assert simulate_plan(older).makespan == plan["prediction"]["step_time"]
    assert cli("verify", "plan.json", "--profile", "profile.json").code == 0


@pytest.mark.slow
def test_sends_that_deadlock_are_refused_in_one_line(cli: Cli, profile_file: Path) -> None:
    asked = ("solve", "--gpus", "4", "--stages", "4", "--sends", "rendezvous")
    outcome = cli(*asked, "--schedule", "1f1b")
    assert outcome.code == 1 and outcome.err.count("\n") == 1
    assert "rank 2 sends 2F1 to rank 3 and rank 3 sends 3B0 to rank 2" in outcome.err
    # GPipe's ranks take turns. Its plan with 1F1B's orders is refused when it is read.
    assert cli(*asked, "--schedule", "gpipe").code == 0
    assert cli("solve", "--gpus", "4", "--stages", "4", "--schedule", "1f1b").code == 0
    text = Path("plan.json").read_text()
    assert '"sends": "buffered"' in text
    Path("plan.json").write_text(text.replace('"sends": "buffered"', '"sends": "rendezvous"'))
    shown = cli("show", "plan.json")
    assert shown.code == 1 and shown.err.count("\n") == 1
    assert "plan.json: sends that wait for their receiver deadlock: rank 2" in shown.err


@pytest.mark.parametrize(("sends", "noted"), [("buffered", True), ("rendezvous", False)])
def test_an_export_says_what_its_framework_does(
    cli: Cli, profile_file: Path, sends: str, noted: bool
) -> None:
    assert FRAMEWORKS["torch"].sends == "rendezvous"
    assert cli(*ASKED, "--sends", sends).code == 0
    outcome = cli("export", "plan.json", "--to", "torch", "--json")
    assert outcome.code == 0
    said = "sends are rendezvous in torch.distributed.pipelining: the step then takes"
    assert (said in outcome.err) == noted
    assert any(said in note for note in outcome.document["notes"]) == noted
