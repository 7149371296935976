"""A run on the terminal: measured beside predicted, and the plain model beside the pipeline."""

from rich.console import Group, RenderableType
from rich.table import Table

from autopart.records.run_result import AsynchronousRun, CheckResult, RunResult
from autopart.report.columns import add_number, add_text, new_table, plain, sizes, times
from autopart.report.labels import ranks_label
from autopart.report.pace_lines import pace_lines, step_error
from autopart.text import counted
from autopart.units import format_bytes, format_share, format_time


def run_report(run: RunResult) -> RenderableType:
    """A stage table, measured and predicted; lines for the step, the losses and the check."""
    lines = [_step_line(run), *pace_lines(run.pace), *_sync_lines(run), _loss_line(run)]
    lines += [f"peak: {run.memory}", *run.notes]
    lines += _load_lines(run)
    if run.asynchronous is not None:
        lines += asynchronous_lines(run.asynchronous)
    if run.check is not None:
        lines += check_lines(run.check)
    return Group(stage_table(run), *(plain(line) for line in lines))


def stage_table(run: RunResult) -> Table:
    """Two rows for each stage, measured and predicted.

    F, B and busy are per microbatch; update, waiting and peak are per step.
    """
    rows = [row for stage in run.stages for row in (stage, stage.predicted)]
    columns = [
        ("F", times([row.forward_time for row in rows])),
        ("B", times([row.backward_time for row in rows])),
        ("busy", times([row.busy_time for row in rows])),
        ("update", times([row.update_time for row in rows])),
        ("peak", sizes([row.peak_bytes for row in rows])),
    ]
    table = new_table(
        f"{run.model} on {counted(run.num_ranks, 'rank')}, {run.device} ({run.backend})"
    )
    add_number(table, "stage")
    add_text(table, "ranks")
    add_text(table, "")
    for head, (unit, _) in columns:
        add_number(table, f"{head}\n{unit}")
    add_number(table, "wait per\nstep")
    for place, stage in enumerate(run.stages):
        cells = [cells[2 * place : 2 * place + 2] for _, (_, cells) in columns]
        wait = format_time(stage.wait_time)
        first = [str(place), ranks_label(stage.ranks), "measured"]
        table.add_row(*first, *(cell[0] for cell in cells), wait)
        table.add_row("", "", "predicted", *(cell[1] for cell in cells), "")
    return table


def asynchronous_lines(run: AsynchronousRun) -> list[str]:
    """Lines on an asynchronous run: its updates, and weight versions and peak for each stage."""
    rows = zip(run.versions, run.predicted_versions, run.predicted_peak_bytes, strict=True)
    each = "microbatch" if run.microbatches_per_update == 1 else "batch"
    return [
        f"{run.schedule}: {run.updates} updates, one per {each}, without a flush; weight versions per stage:",
        *(
            f"  stage {place}: {measured} versions measured, {planned} predicted; predicted peak "
            f"{format_bytes(peak)}"
            for place, (measured, planned, peak) in enumerate(rows)
        ),
    ]


def _step_line(run: RunResult) -> str:
    return (
        f"step {format_time(run.step_time)} measured, "
        f"{format_time(run.predicted_step_time)} predicted ({step_error(run.error, run.pace)}), {_speed(run)}; "
        f"{counted(len(run.step_times), 'step')} of {counted(run.num_microbatches, 'microbatch')} of "
        f"{run.microbatch_size}, {run.optimizer}, {run.dtype}"
    )


def _sync_lines(run: RunResult) -> list[str]:
    """The share of gradient sums that ran beside actions, on the rank where they took longest."""
    sums = [(r.hidden_sync_time, r.sync_time) for r in run.ranks if r.hidden_sync_time is not None]
    if not sums:
        return []
    hidden, exposed = max(sums, key=sum)
    share = hidden / (hidden + exposed) if hidden + exposed else 0.0
    return [
        f"gradient sums {format_time(hidden + exposed)} per step, {format_share(share)} of it hidden beside actions"
    ]


def _load_lines(run: RunResult) -> list[str]:
    """The imbalance of expert ranks at each degree that divides the experts, in the most uneven layer and as a mean."""
    degrees = sorted({one.expert for one in run.expert_loads})
    lines: list[str] = []
    for degree in degrees:
        own = [one for one in run.expert_loads if one.expert == degree]
        worst = max(own, key=lambda one: one.imbalance)
        mean = sum(one.imbalance for one in own) / len(own)
        lines.append(
            f"expert degree {degree}: the fullest rank has {mean:.3g} times the mean load, "
            f"{worst.imbalance:.3g} times in {worst.layer}"
        )
    return lines


def _speed(run: RunResult) -> str:
    return f"{run.num_microbatches * run.microbatch_size / run.step_time:.3g} samples/s"


def _loss_line(run: RunResult) -> str:
    if len(run.losses) == 1:
        return f"loss {_loss(run.losses[0])}"
    return f"loss {_loss(run.losses[0])} in the first step, {_loss(run.losses[-1])} in the last"


def _loss(loss: float | None) -> str:
    return "NaN or infinite" if loss is None else f"{loss:.6g}"


def check_lines(check: CheckResult) -> list[str]:
    """Lines on a passed check: the largest difference from the plain model, by kind."""
    buffers = f" and {counted(check.num_buffers, 'buffer')}" if check.num_buffers else ""
    return [
        f"equal to the plain model, {counted(check.num_parameters, 'parameter')}{buffers} compared, "
        f"tolerance {check.tolerance:.0e}:",
        f"  losses      {check.losses:.1e}",
        f"  gradients   {check.gradients:.1e}{_at(check.worst_gradient)}",
        f"  parameters  {check.parameters:.1e}{_at(check.worst_parameter)} at the end",
        *(f"  {note}" for note in check.notes),
    ]


def _at(name: str) -> str:
    return f" ({name})" if name else ""
