"""A simulated step on the terminal."""

from collections.abc import Sequence

import msgspec
from rich.table import Table

from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.report.labels import ranks_label
from autopart.report.step_summary import NoiseSummary, RankSummary, SimulateSummary
from autopart.simulator.idle import CAUSES, ROUNDING, Cause
from autopart.text import counted
from autopart.units import format_share, format_time


def rank_table(step: SimulateSummary) -> Table:
    """One row for each rank: seconds by use, microbatches in flight, and peak memory."""
    ranks = step.ranks
    columns = [
        ("busy", times([rank.busy_time for rank in ranks])),
        ("sync", times([rank.sync_time for rank in ranks])),
        ("update", times([rank.update_time for rank in ranks])),
        *_message_columns(ranks),
        ("idle", times([rank.idle_time for rank in ranks])),
    ]
    peak_unit, peaks = sizes([rank.peak_bytes for rank in ranks])
    figures = f"makespan {format_time(step.makespan)}, bubble {format_share(step.bubble)}"
    if step.period is not msgspec.UNSET:
        figures += f"; period {format_time(step.period)} back to back"
    table = new_table(f"one step of {step.plan}: {figures}")
    add_number(table, "rank")
    add_text(table, "stage")
    for head, (unit, _) in columns:
        add_number(table, f"{head}\n{unit}")
    add_number(table, "idle\n%")
    add_number(table, "in\nflight")
    add_number(table, f"peak\n{peak_unit}")
    for place, rank in enumerate(ranks):
        table.add_row(
            str(rank.rank),
            ranks_label(rank.stages),
            *(cells[place] for _, (_, cells) in columns),
            f"{100 * rank.idle_time / step.makespan:.1f}" if step.makespan else "0.0",
            str(rank.in_flight),
            peaks[place],
        )
    return table


def _message_columns(ranks: Sequence[RankSummary]) -> list[tuple[str, tuple[str, list[str]]]]:
    """Columns for gathers and reductions that compute does not hide; none without sharded state."""
    gathers = [rank.gather_time for rank in ranks if rank.gather_time is not msgspec.UNSET]
    sums = [rank.reduction_time for rank in ranks if rank.reduction_time is not msgspec.UNSET]
    return [("gather", times(gathers)), ("reduce", times(sums))] if gathers else []


def message_lines(step: SimulateSummary) -> list[str]:
    """A line on gathers and reductions beneath compute; none without sharded state."""
    hidden = [
        (rank.hidden_message_time, rank.rank)
        for rank in step.ranks
        if rank.hidden_message_time is not msgspec.UNSET
    ]
    if not hidden:
        return []
    most, rank = max(hidden)
    said = "gather, reduce: seconds of gathers and reductions that compute does not hide"
    if most <= ROUNDING * step.makespan:
        return [said]
    return [f"{said}; up to {format_time(most)} more run beneath compute, on rank {rank}"]


def asynchronous_table(step: SimulateSummary, samples: int) -> Table:
    """One row for each asynchronous schedule: speed, weight delay, and memory.

    Speed is relative to the plan's own step, which trains `samples` samples.
    """
    rows, own = step.asynchronous, samples / step.makespan if step.makespan else 0.0
    unit, periods = times([row.period for row in rows])
    peak_unit, peaks = sizes([max(row.peak_bytes) for row in rows])
    table = new_table(
        "asynchronous schedules on the same stages; they train with older weights",
        "delay: updates that the first stage's weights are behind, forward and backward",
    )
    add_text(table, "schedule")
    add_number(table, f"period\n{unit}")
    add_number(table, "samples/s\nof the plan's")
    add_number(table, "delay")
    add_number(table, "in\nflight")
    add_number(table, "copies of\nweights")
    add_number(table, f"peak\n{peak_unit}")
    add_text(table, "fits")
    for place, row in enumerate(rows):
        table.add_row(
            row.schedule,
            periods[place],
            f"{row.samples_per_second / own:.3f}" if own else "–",
            f"{row.forward_delay:.3g} {row.backward_delay:.3g}",
            str(max(row.in_flight)),
            str(max(row.extra_copies)),
            peaks[place],
            "yes" if row.fits else "no",
        )
    return table


def idle_table(step: SimulateSummary) -> Table:
    """One row for each rank: idle time by cause. Causes that no rank has are left out."""
    found: list[Cause] = [
        cause for cause in CAUSES if any(rank.idle_times.get(cause) for rank in step.ranks)
    ]
    unit, totals = times([rank.idle_time for rank in step.ranks])
    table = new_table(f"idle time by cause, {unit}" if found else "no rank is ever idle")
    add_number(table, "rank")
    columns: list[list[str]] = []
    for cause in found:
        add_number(table, cause.replace(" ", "\n"))
        # The totals decide the unit, so all columns have the same one.
        own = [rank.idle_times[cause] for rank in step.ranks]
        _, cells = times([*own, *(rank.idle_time for rank in step.ranks)])
        columns.append(cells)
    add_number(table, "total")
    for place, rank in enumerate(step.ranks):
        table.add_row(str(rank.rank), *(cells[place] for cells in columns), totals[place])
    return table


def fill_lines(step: SimulateSummary) -> list[str]:
    """One or two lines on the work in idle time; none without it."""
    fill = step.fill
    if fill is None:
        return []
    work = format_time(fill.work)
    bubbles = f"bubble {format_share(step.bubble)} before, {format_share(fill.bubble)} after"
    least = min(range(len(step.ranks)), key=fill.filled_times.__getitem__)
    if fill.makespan <= step.makespan:
        return [f"fill: every rank has idle time for {work} of work: {bubbles}"]
    longer = format_time(fill.makespan - step.makespan)
    return [
        f"fill: rank {step.ranks[least].rank} has idle time for {format_time(fill.filled_times[least])} of the {work}: "
        f"the step takes {longer} longer, {format_time(fill.makespan)}",
        bubbles,
    ]


def noise_lines(noise: NoiseSummary, makespan: float) -> list[str]:
    """Two lines on how the makespan varies."""
    shift = noise.mean / makespan - 1 if makespan else 0.0
    return [
        f"under noise ({noise.noise}; {counted(noise.draws, 'step')}, seed {noise.seed}): "
        f"mean {format_time(noise.mean)} ({100 * shift:+.1f} %), "
        f"deviation {format_time(noise.deviation)}",
        f"median {format_time(noise.median)}; 90 % of steps take {format_time(noise.percentile_5)} "
        f"to {format_time(noise.percentile_95)}, all {format_time(noise.smallest)} "
        f"to {format_time(noise.largest)}",
    ]
