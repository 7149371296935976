"""`verify` on the command line, and gaps that are unknown wherever a gap is shown."""

import json
from pathlib import Path

import jsonschema
import pytest

from autopart.records.cluster import save_cluster
from autopart.records.profile import save_profile
from tests.cli.conftest import Cli
from tests.support.places import SCHEMAS
from tests.support.problems import chain_graph, cluster, layer, profile
from tests.support.shared_data import CASES, needs_cases

NOTHING = {"forward_time": 0.0, "input_grad_time": 0.0, "weight_grad_time": 0.0}
ASKED = ("solve", "--profile", "odd.json", "--cluster", "cluster.json", "--global-batch", "4")


@pytest.fixture
def odd_names(folder: Path) -> Path:
    """A profile whose layers take no time and have markup in their names, and a cluster."""
    layers = (layer(f"l[/b]:smile:{at}", **NOTHING) for at in range(3))
    save_profile(profile(chain_graph(*layers, num_bytes=0)), folder / "odd.json")
    save_cluster(cluster(1, 2), folder / "cluster.json")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["step", "bottleneck"])
def test_a_gap_over_a_bound_of_0_is_unknown_in_every_output(
    cli: Cli, odd_names: Path, objective: str
):
    asked = (*ASKED, "--stages", "2", "--objective", objective)
    solved = cli(*asked)
    assert solved.code == 0, solved.err
    assert "lower bound 0.00 µs, gap unknown" in " ".join(solved.out.split())
    for name, arguments in (("solve", asked), ("show", ("show", "plan.json"))):
        document = cli(*arguments, "--json").document
        jsonschema.validate(document, json.loads((SCHEMAS / f"{name}-summary.json").read_text()))
        assert document["lower_bound"] == 0 and document["gap"] is None
    assert "gap unknown" in " ".join(cli("show", "plan.json").out.split())
    verified = cli("verify", "plan.json", "--profile", "odd.json")
    assert verified.code == 0 and "gap unknown" in " ".join(verified.out.split())
    assert json.loads(Path("plan.json").read_text())["certificate"]["gap"] is None


@pytest.mark.slow
def test_a_memory_sweep_over_bounds_of_0_shows_unknown_gaps(cli: Cli, odd_names: Path):
    done = cli(*ASKED, "--memory-sweep", "3", "--json")
    assert done.code == 0, done.err
    steps = [point for point in done.document["points"] if point["step_time"] is not None]
    assert steps and all(point["gap"] is None for point in steps)
    assert "unknown" in cli(*ASKED, "--memory-sweep", "3").out


@pytest.mark.slow
def test_names_that_look_like_markup_are_printed_as_they_are(cli: Cli, odd_names: Path):
    assert cli(*ASKED).code == 0
    assert "l[/b]:smile:0" in cli("show", "plan.json").out
    tree = json.loads(Path("plan.json").read_text())
    tree["stages"][0]["layers"][0] = "[bold]zz[/b]"
    Path("other.json").write_text(json.dumps(tree))
    done = cli("verify", "other.json", "--profile", "odd.json")
    assert done.code == 1 and "layer '[bold]zz[/b]'" in " ".join(done.out.split())


@needs_cases
def test_the_shared_case_with_markup_in_a_name_is_shown(cli: Cli, folder: Path):
    done = cli("show", str(CASES / "inputs" / "layer_name_markup.json"))
    assert done.code == 0 and "[/b]" in done.out
