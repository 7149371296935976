"""Bubble rates in Table 5 of Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024, from the times in its Table 9."""

import json
from typing import NamedTuple

import pytest

from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.simulator.period import period_of
from autopart.simulator.timeline import simulate
from tests.support.shared_data import DATA, needs_data
from tests.support.steps import stage

pytestmark = needs_data

NAMES = {"1F1B": "1f1b", "ZB-H1": "zb-h1", "ZB-H2": "zb-h2", "1F1B-I": "interleaved-1f1b"}


class Cell(NamedTuple):
    ranks: int
    stages_per_rank: int
    microbatches: int
    times: list[float]
    """F, I, W and a send, in milliseconds for all stages of a rank."""
    rate: float


def cells(column: str) -> list[Cell]:
    table = json.loads((DATA / "published" / "zero_bubble.json").read_text("utf-8"))
    rates, at = table["table5_bubble_rate"], table["table5_bubble_rate"]["columns"].index(column)
    found: list[Cell] = []
    for model, shape in table["models"].items():
        # Layers, embedding and head are dealt evenly, one block per stage.
        per_rank = (shape["layers"] + 2) // shape["p"] if column == "1F1B-I" else 1
        for count, row in rates[model].items():
            times = table["table9_ms"][model][count]
            found.append(Cell(shape["p"], per_rank, int(count), times, row[at]))
    return found


def longest_span(name: str, cell: Cell) -> float:
    """The longest time from a rank's first action to the end of its last one."""
    v, (forward, gradient, weights, send) = cell.stages_per_rank, cell.times
    ranks = [(rank,) for rank in KINDS[name].placement(cell.ranks, v)]
    own = stage(
        forward / v,
        (gradient + weights) / v,
        weight_grad_time=weights / v,
        send_time=send,
        send_back_time=send,
    )
    schedule = make_schedule(name, ranks, cell.microbatches)
    stages = [own] * len(ranks)
    timeline = simulate(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)
    longest = max(order[-1].end - order[0].start for order in timeline.slices)
    # Updates take no time here. So this span is the seconds from step to step, too.
    period = period_of(schedule, ranks, stages, (), action_overhead=0.0, sends_overlap=True)
    assert period == pytest.approx(longest, rel=1e-12)
    return longest


def rate_of(cost: float, cell: Cell) -> float:
    return 1 - cell.microbatches * sum(cell.times[:3]) / cost


@pytest.mark.slow
@pytest.mark.parametrize("column", ["1F1B", "ZB-H1", "ZB-H2"])
def test_rates_with_one_stage_per_rank_are_the_published_ones(column: str):
    for cell in cells(column):
        assert rate_of(longest_span(NAMES[column], cell), cell) == pytest.approx(
            cell.rate, abs=1e-4
        )


@pytest.mark.slow
def test_the_published_interleaved_rates_leave_out_one_round_of_sends():
    """Their steps are shorter by one send for each rank, in all 12 cells."""
    for cell in cells("1F1B-I"):
        cost = longest_span("interleaved-1f1b", cell)
        assert cell.rate - 1e-4 <= rate_of(cost, cell) <= cell.rate + 0.0036
        fewer = cost - cell.ranks * cell.times[3]
        assert rate_of(fewer, cell) == pytest.approx(cell.rate, abs=1e-4)
