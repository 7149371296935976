"""`autopart report`: a plan as one page for a browser."""

from pathlib import Path
from typing import Annotated

import typer

from autopart.cli.console import print_result, warn
from autopart.cli.output_files import check_may_write
from autopart.cli.shared_options import AsJson, PlanFile
from autopart.cost.crossings import crossings_of
from autopart.errors import PlanError
from autopart.fidelity.compare import judge
from autopart.fidelity.run_of_plan import check_run_of_plan
from autopart.records.built_in_profiles import profile_files
from autopart.records.files import write_file
from autopart.records.plan import Plan, load_plan, stage_ranks
from autopart.records.profile import load_profile
from autopart.records.run_result import load_run_result
from autopart.records.size import Sizing, load_sizing
from autopart.report.page.charts import check_plotly
from autopart.report.page.contents import Measured, PageContents
from autopart.report.page.document import FORMAT, left_out, page_html, sections_of
from autopart.report.page.summary import ReportSummary
from autopart.search.plans_beside import PlansBeside, plans_beside
from autopart.simulator.idle import idle_pieces
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import simulate_plan
from autopart.stopping.ctrl_c import stop_on_interrupt

EXAMPLE = "autopart report plan.json --profile profile.json -o plan.html"


def command(
    plan: PlanFile,
    profile: Annotated[
        list[Path] | None,
        typer.Option(
            help="The profile that the plan was made from, or its name in 'autopart profiles'; repeat it "
            "for several. It adds the layers' seconds, the usual splits and the sweep over memory."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="What 'autopart run --json' printed for this plan, to show beside it."),
    ] = None,
    size: Annotated[
        Path | None,
        typer.Option(help="What 'autopart size -o' wrote for the model: GPUs, days and cost."),
    ] = None,
    time_limit: Annotated[
        float, typer.Option(min=0.0, help="Seconds for the other splits and the sweep together.")
    ] = 20.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("plan.html"),
    as_json: AsJson = False,
) -> None:
    """Draw a plan as one page for a browser, which needs no network.

    It shows the timeline of a step, the layers, memory, the usual splits, the nodes and their links.
    """
    check_plotly()
    check_may_write(output, FORMAT)
    asked = load_plan(plan)
    measured = None if run is None else _measured(asked, run)
    sizing = None if size is None else _sizing(asked, size)
    contents = _contents(asked, str(plan), _beside(asked, profile, time_limit), measured)
    contents = contents._replace(sizing=sizing)
    content = page_html(contents).encode()
    write_file(output, content)
    notes = left_out(contents)
    warn(notes)
    summary = ReportSummary(
        plan=str(plan),
        page=str(output),
        num_bytes=len(content),
        sections=tuple(one.name for one in sections_of(contents)),
        notes=tuple(notes),
    )
    said = f"page of {len(content) / 1e6:.1f} MB written to {output}"
    print_result(summary, said, as_json=as_json)


def _measured(plan: Plan, path: Path) -> Measured:
    found = load_run_result(path)
    check_run_of_plan(plan, found, str(path))
    return Measured(found, judge(plan, found))


def _sizing(plan: Plan, path: Path) -> Sizing:
    """The answer in a file; raises PlanError where it is for another model than the plan's."""
    found = load_sizing(path)
    if found.model != plan.origin.model:
        raise PlanError(
            f"{path}: it is for {found.model}, and the plan for {plan.origin.model}; size the plan's model, or leave "
            "--size out"
        )
    return found


def _beside(plan: Plan, named: list[Path] | None, time_limit: float) -> PlansBeside | None:
    if not named:
        return None
    profiles = [load_profile(path) for one in named for path in profile_files(one)]
    # One Ctrl-C ends all searches; what they have found by then is shown.
    with stop_on_interrupt():
        return plans_beside(plan, profiles, time_limit=time_limit)


def _contents(
    plan: Plan, file: str, beside: PlansBeside | None, measured: Measured | None
) -> PageContents:
    timeline = simulate_plan(plan)
    return PageContents(
        plan=plan,
        file=file,
        timeline=timeline,
        idle=idle_pieces(timeline),
        curves=memory_over_time(timeline, stage_ranks(plan), plan.prediction.stages),
        crossings=crossings_of(plan),
        beside=beside,
        measured=measured,
    )
