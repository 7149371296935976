"""A prediction beside its measurement, on the terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from autopart.fidelity.compare import ActionFidelity, Fidelity, RankFidelity, RankParts
from autopart.report.columns import add_number, add_text, new_table, plain, sizes, times
from autopart.report.labels import ranks_label
from autopart.report.pace_lines import pace_lines, step_error
from autopart.units import format_time

PARTS = ("compute", "overhead", "waiting", "sync", "update", "rest")
"""Columns for the parts that a step has on one rank: the fields in `RankParts`."""


def fidelity_report(found: Fidelity) -> RenderableType:
    """Tables for actions, bytes and ranks; lines for the step and the causes behind its error."""
    parts: list[RenderableType] = [action_table(found), byte_table(found)]
    if found.step_time is not None:
        parts.append(rank_table(found))
    return Group(*parts, *(plain(line) for line in [*step_lines(found), *found.notes]))


def action_table(found: Fidelity) -> Table:
    """One row for each kind of action or send, in seconds per microbatch."""
    rows = [
        *((str(one.stage), one.op, one) for one in found.actions),
        *((str(one.stage), _direction(one.op), one) for one in found.sends),
    ]
    largest = [max(one.predicted, one.measured) for _, _, one in rows]
    unit, _ = times(largest)
    table = new_table(f"{found.model} on {_where(found)}: time per microbatch, in {unit}")
    add_number(table, "stage")
    add_text(table, "action")
    for head in ("predicted", "measured", "spread", "error"):
        add_number(table, head)
    at_pace = any(one.error_at_pace is not None for one in found.actions)
    if at_pace:
        add_number(table, "at the\nrun's pace")
    # All three columns have one unit, so their cells are made together and then split.
    count = len(rows)
    cells = times([
        *(one.predicted for _, _, one in rows),
        *(one.measured for _, _, one in rows),
        *(one.spread for _, _, one in rows),
    ])[1]  # fmt: skip
    for place, (stage, action, one) in enumerate(rows):
        three = (cells[place + column * count] for column in range(3))
        paced = one.error_at_pace if isinstance(one, ActionFidelity) else None
        last = ["" if paced is None else f"{paced:+.1%}"] if at_pace else []
        table.add_row(stage, action, *three, f"{one.error:+.1%}", *last)
    return table


def byte_table(found: Fidelity) -> Table:
    """One row for each rank: tensor bytes at its peak."""
    ranks = found.ranks
    unit, cells = sizes([size for rank in ranks for size in _sizes(rank)])
    table = new_table(f"tensor bytes at the peak, in {unit}")
    add_number(table, "rank")
    add_text(table, "stage")
    for head in ("predicted", "measured", "error"):
        add_number(table, head)
    for place, rank in enumerate(ranks):
        measured = "–" if rank.measured_bytes is None else cells[2 * place + 1]
        error = "–" if rank.error is None else f"{rank.error:+.1%}"
        table.add_row(str(rank.rank), ranks_label(rank.stages), cells[2 * place], measured, error)
    return table


def rank_table(found: Fidelity) -> Table:
    """Two rows for each rank: seconds by part, predicted and measured."""
    rows = [
        (rank.rank, kind, parts)
        for rank in found.ranks
        for kind, parts in (("predicted", rank.predicted), ("measured", rank.measured))
        if parts is not None
    ]
    unit, cells = times([value for _, _, parts in rows for value in _values(parts)])
    table = new_table(f"parts of a step on each rank, in {unit}")
    add_number(table, "rank")
    add_text(table, "")
    for head in PARTS:
        add_number(table, head)
    for place, (rank, kind, _) in enumerate(rows):
        own = cells[place * len(PARTS) : (place + 1) * len(PARTS)]
        table.add_row(str(rank) if kind == "predicted" else "", kind, *own)
    return table


def step_lines(found: Fidelity) -> list[str]:
    """Lines for the predicted and the measured step, and why they differ."""
    predicted = format_time(found.predicted_step_time)
    if found.step_time is None or found.error is None:
        again = format_time(found.resimulated_step_time)
        return [
            f"step {predicted} predicted, {again} simulated with the measured times",
            *pace_lines(found.pace),
        ]
    measured = format_time(found.step_time)
    spread = format_time(found.step_spread or 0.0)
    causes = ", ".join(f"{one.cause} {_signed(one.seconds)}" for one in found.causes)
    return [
        f"step {predicted} predicted, {measured} measured (spread {spread}): "
        f"{step_error(found.error, found.pace)}",
        *pace_lines(found.pace),
        f"measured minus predicted: {causes}",
    ]


def _signed(seconds: float) -> str:
    return ("-" if seconds < 0 else "+") + format_time(abs(seconds))


def _direction(op: str) -> str:
    return "send on" if op == "F" else "send back"


def _where(found: Fidelity) -> str:
    return f"{found.device}, each rank alone" if found.one_device else found.device


def _sizes(rank: RankFidelity) -> tuple[int, int]:
    return rank.predicted_bytes, rank.measured_bytes or 0


def _values(parts: RankParts) -> Sequence[float]:
    return [getattr(parts, name) for name in PARTS]
