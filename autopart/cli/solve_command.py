"""`autopart solve`: cut a profiled model for a cluster."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.chosen_cluster import chosen_cluster, notes_on
from autopart.cli.cluster_options import ClusterOptions
from autopart.cli.console import print_result, say, warn
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.policy_options import PolicyOptions
from autopart.cli.profile_reasons import reasons_from
from autopart.cli.search_line import search_line
from autopart.cli.shared_options import AsJson
from autopart.cli.solve_options import (
    PipelineOptions,
    TrainingOptions,
    solve_options,
)
from autopart.records.built_in_profiles import profile_files
from autopart.records.cluster import Cluster
from autopart.records.plan import FORMAT, Plan, save_plan
from autopart.records.profile import Profile, load_profile, newest_profile
from autopart.report.plan_summary import solve_summary
from autopart.report.plan_table import comparison_table, notes_on_scaled, plan_report, reading_of
from autopart.report.sweep_table import sweep_summary, sweep_table
from autopart.search.memory_sweep import memory_sweep as sweep_memory
from autopart.search.options import SolveOptions
from autopart.search.planner import baselines, solve_with_options
from autopart.search.progress import told_to
from autopart.search.target_defaults import target_line
from autopart.stopping.ctrl_c import stop_on_interrupt
from autopart.stopping.time_limit import deadline_in, time_left

BASELINE_SECONDS = (0.5, 20.0)
"""Seconds for the baselines beside a plan, at least and at most; then the best so far stand."""

EXAMPLE = "autopart solve --gpus 8 --nodes 2 --memory 80GiB -o plan.json"


@with_groups
def command(
    *,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="A profile, or several of one model at different microbatch sizes; also a name from "
            "'autopart profiles'; default: the newest one in this folder."
        ),
    ] = None,
    cluster_options: ClusterOptions,
    pipeline_options: PipelineOptions,
    policy_options: PolicyOptions,
    training_options: TrainingOptions,
    memory_sweep: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            max=1000,
            help="Show the best plans within N memory sizes, from generous to impossible; no file "
            "is written.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan file.")] = Path(
        "plan.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Cut a profiled model for a cluster, and say how good the cut is."""
    if memory_sweep is None:  # before the search, which may take a minute
        check_may_write(output, FORMAT)
    named = profile or [_newest_here()]
    profiles = [load_profile(path) for asked in named for path in profile_files(asked)]
    cluster = chosen_cluster(cluster_options, profiles[0])
    options = solve_options(pipeline_options, policy_options, training_options)
    label = ", ".join(map(str, named))
    if memory_sweep is not None:
        # One Ctrl-C ends the search at every size.
        with stop_on_interrupt():
            points = sweep_memory(
                lambda target, seconds: solve_with_options(
                    profiles, target, replace(options, time_limit=seconds)
                ),
                cluster,
                memory_sweep,
                options.time_limit,
            )
        _tell_target(options, cluster, profiles[0])
        swept = sweep_summary(label, len(profiles[0].graph.layers), points)
        warn(notes_on(profiles[0], cluster))
        print_result(swept, sweep_table(swept), as_json=as_json)
        return
    plan, left = _searched(profiles, cluster, options)
    save_plan(plan, output)
    beside = baselines(profiles, plan, time_limit=_baseline_limit(left))
    batch_given = options.global_batch is not None
    _print_plan(plan, profiles, label, output, beside, batch_given=batch_given, as_json=as_json)


def _tell_target(options: SolveOptions, cluster: Cluster, profile: Profile) -> None:
    """Say in one line what the target fixes; nothing without a target."""
    line = target_line(options, cluster, profile.dtype)
    if line is not None:
        say(f"assumed: {line}")


def _baseline_limit(left: float) -> float:
    shortest, longest = BASELINE_SECONDS
    return max(shortest, min(left, longest))


def _newest_here() -> Path:
    """The newest profile in this folder; entries that cannot be read are told."""
    found = newest_profile(Path.cwd())
    warn(found.skipped)
    return Path(found.path.name)


def _searched(
    profiles: Sequence[Profile], cluster: Cluster, options: SolveOptions
) -> tuple[Plan, float]:
    """The best plan, and the seconds that the time limit leaves. What the target fixes is told once a plan is found.

    A first Ctrl-C ends the search with the best plan so far; it leaves no time.
    """
    deadline = deadline_in(options.time_limit)
    line = search_line(options.objective, options.time_limit)
    with stop_on_interrupt() as interrupt, line as show, told_to(show):
        with reasons_from(profiles):
            plan = solve_with_options(profiles, cluster, options)
        left = time_left(deadline)
    if interrupt.asked:
        seconds = plan.origin.solve_seconds
        say(f"interrupted after {seconds:.1f} s: the best plan so far, with the gap proven so far")
    _tell_target(options, cluster, profiles[0])
    return plan, left


def _print_plan(
    plan: Plan,
    profiles: Sequence[Profile],
    named: str,
    output: Path,
    beside: Mapping[str, Plan | str],
    *,
    batch_given: bool,
    as_json: bool,
) -> None:
    """Print a plan that was written to `output`, beside the baselines; `named` lists its profiles."""
    reading = reading_of(plan, batch_given=batch_given)
    notes = [*notes_on(profiles[0], plan.cluster), *notes_on_scaled(plan)]
    warn(notes)
    summary = solve_summary(
        plan, str(output), profile=named, reading=reading, notes=notes, baselines=beside
    )
    print_result(
        summary,
        f"profile {named}",
        reading,
        plan_report(plan),
        comparison_table(plan, beside),
        f"plan written to {output}",
        as_json=as_json,
    )
