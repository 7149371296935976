"""`autopart simulate`: run a plan's step on paper."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import check_may_write, print_result
from autopart.cli.noise import Noise, draw_noise, parse_noise
from autopart.cli.options import AsJson, PlanFile
from autopart.files import write_file
from autopart.plan import load_plan
from autopart.report.step_summary import asynchronous_summary, simulate_summary
from autopart.report.step_table import asynchronous_table, idle_table, noise_lines, rank_table
from autopart.report.trace import FORMAT, trace
from autopart.simulator import simulate_plan

EXAMPLE = "autopart simulate plan.json --trace trace.json --noise 5%"


def command(
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
    noise: Annotated[
        Noise | None,
        typer.Option(
            metavar="SHARE",
            parser=parse_noise,
            help="Also draw steps whose actions vary: by a share of their time, such as 5%, or "
            "'profile': by the ranges of --profile.",
        ),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="The plan's profile, for --noise profile.")
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="Steps to draw under noise.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same steps.")] = 0,
    asynchronous: Annotated[
        bool,
        typer.Option(help="Also price asynchronous schedules (PipeDream, 2BW, …) on the stages."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run one step on paper: makespan, idle time by cause, peak of each rank."""
    if trace_file is not None:
        check_may_write(trace_file, FORMAT)
    shown = load_plan(plan)
    timeline = simulate_plan(shown)
    drawn = draw_noise(shown, noise, profile, draws=draws, seed=seed) if noise else None
    if trace_file is not None:
        write_file(trace_file, trace(shown, timeline))
    summary = simulate_summary(
        shown,
        timeline,
        str(plan),
        noise=drawn,
        trace=str(trace_file) if trace_file else None,
        asynchronous=asynchronous_summary(shown) if asynchronous else (),
    )
    lines = noise_lines(drawn, timeline.makespan) if drawn else []
    if trace_file is not None:
        lines.append(f"trace written to {trace_file}")
    tables = [rank_table(summary), idle_table(summary)]
    if asynchronous:
        batch = shown.num_microbatches * shown.microbatch_size
        tables.append(asynchronous_table(summary, batch))
    print_result(summary, *tables, *lines, as_json=as_json)
