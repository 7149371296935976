"""`autopart simulate`: a plan's step on paper."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result
from autopart.cli.noise_option import NoiseOptions, draw_noise
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import AsJson, PlanFile, usage_checked
from autopart.records.files import write_file
from autopart.records.plan import load_plan
from autopart.report.step_summary import asynchronous_summary, simulate_summary
from autopart.report.step_table import (
    asynchronous_table,
    fill_lines,
    idle_table,
    message_lines,
    noise_lines,
    rank_table,
)
from autopart.report.trace import FORMAT, trace
from autopart.simulator.timeline import simulate_plan
from autopart.units import parse_time

EXAMPLE = "autopart simulate plan.json --trace trace.json --noise 5%"


@with_groups
def command(
    *,
    plan: PlanFile,
    trace_file: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Write the step as a Chrome trace, for Perfetto: actions, sends, idle time by "
            "cause, memory by kind.",
        ),
    ] = None,
    noise_options: NoiseOptions,
    asynchronous: Annotated[
        bool,
        typer.Option(
            help="Also predict asynchronous schedules (PipeDream, 2BW, …) on the same stages."
        ),
    ] = False,
    fill: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            parser=usage_checked(parse_time),
            help="Work of each rank for its idle time, such as 120ms of a second-order optimizer: how much "
            "of it fits.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate one step: makespan, idle time by cause, peak memory of each rank."""
    if trace_file is not None:
        check_may_write(trace_file, FORMAT)
    shown = load_plan(plan)
    timeline = simulate_plan(shown)
    drawn = draw_noise(shown, noise_options)
    if trace_file is not None:
        write_file(trace_file, trace(shown, timeline))
    summary = simulate_summary(
        shown,
        timeline,
        str(plan),
        noise=drawn,
        trace=str(trace_file) if trace_file else None,
        asynchronous=asynchronous_summary(shown) if asynchronous else (),
        fill=fill,
    )
    lines = [
        *message_lines(summary),
        *fill_lines(summary),
        *(noise_lines(drawn, timeline.makespan) if drawn else []),
    ]
    if trace_file is not None:
        lines.append(f"trace written to {trace_file}")
    tables = [rank_table(summary), idle_table(summary)]
    if asynchronous:
        batch = shown.num_microbatches * shown.microbatch_size
        tables.append(asynchronous_table(summary, batch))
    print_result(summary, *tables, *lines, as_json=as_json)
