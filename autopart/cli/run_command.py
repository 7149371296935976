"""`autopart run`: train a few steps of a plan on real ranks."""

from contextlib import nullcontext

from autopart.cli.console import print_result, progress_bar, stdout_for_json
from autopart.cli.option_groups import with_groups
from autopart.cli.progress_lines import ProgressLines
from autopart.cli.run_options import EngineOptions, RankOptions, StepOptions
from autopart.cli.shared_options import AsJson, ModelName, PlanFile
from autopart.cli.torchrun_check import check_started
from autopart.records.plan import load_plan
from autopart.records.plan_degrees import num_processes
from autopart.report.run_table import run_report

EXAMPLE = "autopart run two-ranks.json zoo:gpt2-tiny --local --steps 5 --check"


@with_groups
def command(
    *,
    plan: PlanFile,
    model: ModelName,
    step_options: StepOptions,
    rank_options: RankOptions,
    engine_options: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Run a plan with MODEL on real ranks, and time it.

    Under torchrun this process is one rank; --local starts all ranks on this machine. Prints
    measured and predicted times. Exits with 1 where any rank dies, or where --check finds a
    difference between the pipeline and the plain model.
    """
    asked, local = load_plan(plan), step_options.local
    check_started("run", plan, num_processes(asked), model, local=local)
    from autopart.runtime.job.launch import run_plan  # imports torch, which takes seconds

    bar = progress_bar("starting the ranks") if local else nullcontext(ProgressLines())
    with stdout_for_json(as_json=as_json), bar as progress:
        result = run_plan(
            asked,
            model,
            steps=step_options.steps,
            check=step_options.check,
            optimizer=step_options.optimizer,
            lr=step_options.lr,
            clip_norm=step_options.clip_norm,
            timeout=rank_options.timeout,
            device=step_options.device,
            save=step_options.save,
            load=step_options.load,
            seed=rank_options.seed,
            backend=engine_options.backend,
            autocast=engine_options.autocast,
            compile=engine_options.compile,
            sync=engine_options.sync,
            asynchronous=engine_options.asynchronous,
            report=progress,
        )
    if result is not None:
        print_result(result, run_report(result), as_json=as_json)
