import io
import re

import msgspec
import pytest
from rich.console import Console, RenderableType

from autopart.certificate.verify import verify
from autopart.report.check_table import check_table
from autopart.report.memory_table import rank_memory_report
from autopart.report.plan_summary import plan_summary
from autopart.report.plan_table import comparison_table, figures, plan_report, reading_of
from autopart.report.profile_table import folded_rows, profile_report
from autopart.report.step_summary import simulate_summary
from autopart.report.step_table import rank_table
from autopart.report.sweep_table import sweep_summary, sweep_table
from autopart.search.memory_sweep import SweepPoint
from autopart.simulator.timeline import simulate_plan
from tests.support.samples import NAMES, sample_graph, sample_plan, sample_profile


def _printed(part: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _row(text: str, start: str) -> list[str]:
    """The cells of the row that opens with `start`."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return re.split(r"\s{2,}", line.strip())


def test_the_profile_table_has_a_row_for_every_kind_of_layer_and_folds_the_blocks() -> None:
    text = _printed(profile_report(sample_profile()))
    total = 3 * (6 * 4.0 + 0.5 + 4.0) + 2 * 0.5
    share = f"{100 * 6 * 12.0 / total:.1f}"
    cells = ["4.00", "4.00", "4.00", "8.00", "8.0", "1.00", share]
    assert _row(text, "h.0 … h.5 (x6)")[1:] == ["Block", *cells]
    embed = ["Embedding", "0.50", "0.50", "0.50", "1.00", "16.0", "1.00", "1.7"]
    assert _row(text, "embed") == ["embed", *embed]
    assert len(folded_rows(sample_graph().layers)) == 5


def test_layers_measured_one_by_one_stay_apart_in_the_table() -> None:
    graph = sample_graph()
    slower = tuple(
        msgspec.structs.replace(layer, forward_time=0.005) if layer.name == "h.3" else layer
        for layer in graph.layers
    )
    rows = [len(row) for row in folded_rows(slower)]
    assert rows == [1, 3, 1, 2, 1, 1, 1]


def test_the_profile_says_how_far_it_is_from_the_whole_model() -> None:
    text = _printed(profile_report(sample_profile()), width=200)
    assert "time -3.3% (87.0 ms of 90.0 ms), stash +0.0% (40.0 MiB of 40.0 MiB)" in text
    assert "10 layers" in text and "9,000,000 parameters in 64.0 MiB" in text


def test_an_analytic_profile_is_marked_in_the_tables_made_from_it() -> None:
    profile = sample_profile(method="analytic", whole=None)
    assert "analytic" in _printed(profile_report(profile)).splitlines()[0]
    assert "nothing was run" in _printed(profile_report(profile))
    plan = sample_plan()
    origin = msgspec.structs.replace(plan.origin, method="analytic")
    shown = _printed(plan_report(msgspec.structs.replace(plan, origin=origin)))
    assert "(analytic)" in shown.splitlines()[0]


def test_the_stage_table_names_layers_ranks_and_nodes() -> None:
    plan = sample_plan(num_stages=2, num_replicas=2)
    text = _printed(plan_report(plan), width=120)
    for place, (stage, predicted) in enumerate(
        zip(plan.stages, plan.prediction.stages, strict=True)
    ):
        cells = _row(text, f"{place}  ")
        assert cells[1].startswith(stage.layers[0])
        assert cells[2] == ",".join(map(str, stage.ranks))
        assert cells[4] == f"{predicted.forward_time * 1e3:.1f}"
        assert cells[7] == str(predicted.in_flight)
    loads = [int(_row(text, f"{place}  ")[-1]) for place in range(2)]
    assert max(loads) == 100


def test_the_memory_table_adds_up_to_the_peak() -> None:
    plan = sample_plan()
    memory = _printed(plan_report(plan)).split("memory of one rank")[1]
    for place, stage in enumerate(plan.prediction.stages):
        numbers = [float(cell) for cell in _row(memory, f"{place}  ")[1:9]]
        assert sum(numbers[:7]) == pytest.approx(numbers[7], abs=0.5)
        assert numbers[7] == pytest.approx(stage.peak_bytes / (1 << 20), abs=0.05)


@pytest.mark.slow
def test_tables_fit_into_80_columns_without_losing_a_number() -> None:
    plan = sample_plan(num_stages=4, num_replicas=2, num_microbatches=64)
    step = simulate_summary(plan, simulate_plan(plan), "plan.json")
    tables = [
        profile_report(sample_profile()),
        plan_report(plan),
        rank_memory_report(plan),
        comparison_table(plan, {"uniform": plan, "parameters": "too large by 3.0 GiB"}),
        rank_table(step),
        check_table(verify(plan, sample_profile()), "plan.json against profile.json"),
    ]
    for table in tables:
        text = _printed(table, width=80)
        assert max(map(len, text.splitlines())) <= 80
        table_lines = [line for line in text.splitlines() if not line.startswith("the bound")]
        assert not any(line.rstrip().endswith("…") for line in table_lines)


def test_a_baseline_that_cannot_be_made_says_why() -> None:
    plan = sample_plan()
    slow = msgspec.structs.replace(
        plan,
        prediction=msgspec.structs.replace(
            plan.prediction, step_time=2 * plan.prediction.step_time
        ),
    )
    text = _printed(comparison_table(plan, {"uniform": slow, "parameters": "too large"}))
    assert _row(text, "uniform")[2] == "100.0 %"
    assert _row(text, "parameters")[-1] == "too large"


@pytest.mark.slow
def test_the_reading_says_all_gpus_and_the_batch() -> None:
    plan = sample_plan(num_stages=4, num_replicas=2, num_microbatches=32)
    assert reading_of(plan, batch_given=True) == (
        "8 GPUs in all: 2 nodes x 4, each test-gpu with 1.0 GiB; "
        "a step of 64 samples: 32 microbatches of 2"
    )
    assert "4 for each GPU" in reading_of(plan, batch_given=False)


def test_the_figures_hold_step_bound_gap_and_bubble() -> None:
    lines = figures(sample_plan())
    for word in ("step ", "lower bound ", "gap ", "bubble "):
        assert word in lines[0]
    assert "embed.weight" in lines[-1]


@pytest.mark.slow
def test_the_figures_hold_the_share_that_other_orders_could_save() -> None:
    plan = sample_plan(num_stages=4, num_replicas=2, num_microbatches=16)
    bound, step = plan.certificate.any_order_bound, plan.prediction.step_time
    line = next(line for line in figures(plan) if "over every order" in line)
    assert f"at most {100 * (1 - bound / step):.1f} % of the step: --schedule auto" in line


def test_a_failed_check_stands_out() -> None:
    broken = msgspec.structs.replace(sample_profile(), microbatch_size=3)
    text = _printed(check_table(verify(sample_plan(), broken), "plan"))
    assert "FAILED" in text


@pytest.mark.slow
def test_idle_times_of_the_ranks_add_up_to_the_bubble() -> None:
    plan = sample_plan(num_stages=4, num_replicas=2, num_microbatches=16)
    step = simulate_summary(plan, simulate_plan(plan), "plan.json")
    idle = sum(rank.idle_time for rank in step.ranks)
    assert idle / (step.makespan * len(step.ranks)) == pytest.approx(step.bubble)
    assert [rank.rank for rank in step.ranks] == list(range(8))


def test_the_sample_names_stand_in_the_order_of_its_graph() -> None:
    assert tuple(layer.name for layer in sample_graph().layers) == NAMES


@pytest.mark.parametrize("objective", ["step", "bottleneck"])
def test_an_unknown_gap_is_called_unknown_everywhere(objective: str) -> None:
    plan = sample_plan()
    certificate = msgspec.structs.replace(plan.certificate, lower_bound=0.0, gap=None)
    plan = msgspec.structs.replace(plan, certificate=certificate, objective=objective)
    assert "lower bound 0.00 µs, gap unknown" in " ".join(figures(plan))
    assert plan_summary(plan, "plan.json").gap is None
    points = (SweepPoint(1 << 30, plan), SweepPoint(1 << 20, None))
    summary = sweep_summary("profile.json", len(NAMES), points)
    text = _printed(sweep_table(summary))
    assert _row(text, "1.0")[2] == "unknown"
    assert "nothing fits" in text.splitlines()[-1]
