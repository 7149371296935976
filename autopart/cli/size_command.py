"""`autopart size`: how many GPUs of which kind, how many days, how much money."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from autopart.cli.chosen_cluster import notes_on
from autopart.cli.console import print_result, progress_bar, say, warn
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.policy_options import PolicyOptions
from autopart.cli.profile_reasons import reasons_from
from autopart.cli.shared_options import AsJson
from autopart.cli.size_options import SizingOptions, parse_prices, size_options
from autopart.cli.solve_options import (
    PipelineOptions,
    TrainingOptions,
    solve_options,
)
from autopart.errors import FileError
from autopart.records.built_in_profiles import profile_files
from autopart.records.cluster import Cluster, load_cluster
from autopart.records.plan import FORMAT as PLAN_FORMAT
from autopart.records.plan import save_plan
from autopart.records.profile import Profile, load_profile
from autopart.records.size import FORMAT, SizedPlan, save_sizing
from autopart.report.size_table import left_out_lines, proof_lines, question_line, size_table
from autopart.search.sizing import SizedPlans, size_with_options
from autopart.text import counted

EXAMPLE = "autopart size --profile p.json --tokens 1e12 --gpu h100-sxm=2.5"


@with_groups
def command(
    *,
    profile: Annotated[
        list[Path],
        typer.Option(
            help="A profile of the model on a GPU kind, or its name in 'autopart profiles'; repeat it, at least one "
            "for each kind."
        ),
    ],
    gpu: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=PRICE,...",
            help="GPU kinds, known clusters or cluster files, each with dollars per GPU hour: "
            "h100-sxm=2.5,a100-sxm-80gb=1.4.",
        ),
    ],
    tokens: Annotated[float, typer.Option(help="Tokens of the whole training, such as 1e12.")],
    sizing_options: SizingOptions,
    pipeline_options: PipelineOptions,
    policy_options: PolicyOptions,
    training_options: TrainingOptions,
    as_json: AsJson = False,
) -> None:
    """Say how many GPUs of which kind a training needs, how many days and how much money.

    Shows the plans of which none has no more GPUs, days and cost than another, and proves which numbers of GPUs cannot
    do. --global-batch is needed: it fixes the samples of a step.
    """
    if sizing_options.output is not None:  # before the search, which may take minutes
        check_may_write(sizing_options.output, FORMAT)
    if sizing_options.plans is not None:
        _check_folder(sizing_options.plans)
    prices = parse_prices(gpu)
    profiles = [load_profile(path) for one in profile for path in profile_files(one)]
    with progress_bar("sizing") as show, reasons_from(profiles):
        found = size_with_options(
            profiles,
            prices,
            size_options(tokens, sizing_options),
            solve_options(pipeline_options, policy_options, training_options),
            clusters=_clusters(prices),
            listener=show,
        )
    if sizing_options.plans is not None:
        found = _with_files(found, sizing_options.plans)
    if sizing_options.output is not None:
        save_sizing(found.sizing, sizing_options.output)
    _print(found, profiles, sizing_options, as_json=as_json)


def _print(
    found: SizedPlans, profiles: Sequence[Profile], asked: SizingOptions, *, as_json: bool
) -> None:
    """Print the answer, and the files that were written."""
    sizing = found.sizing
    if asked.tokens_per_sample is None:
        tokens = counted(sizing.tokens_per_sample, "token")
        say(f"assumed: a sample has {tokens}, as the model's input has token ids of 8 bytes")
    notes = {
        note: None
        for one in profiles
        for plan in found.plans
        for note in notes_on(one, plan.cluster)
    }
    warn(notes)
    print_result(
        sizing,
        question_line(sizing),
        size_table(sizing),
        *proof_lines(sizing),
        *left_out_lines(sizing),
        *_written(found, asked),
        as_json=as_json,
    )


def _written(found: SizedPlans, asked: SizingOptions) -> Iterable[str]:
    if asked.plans is not None:
        yield f"{counted(len(found.plans), 'plan')} written to {asked.plans}"
    if asked.output is not None:
        yield f"answer written to {asked.output}"


def _clusters(names: Iterable[str]) -> dict[str, Cluster]:
    """The clusters of the names that are files."""
    return {
        name: load_cluster(name) for name in names if name.endswith(".json") or os.path.isfile(name)
    }


def _check_folder(folder: Path) -> None:
    """Raise FileError where a path is no folder and can be none."""
    try:
        if folder.exists() and not folder.is_dir():
            raise FileError(f"{folder}: it is no folder; name another one with --plans")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"{folder}: cannot be written: {reason}") from None


def _with_files(found: SizedPlans, folder: Path) -> SizedPlans:
    """Write the plans of the front, and name their files in the answer."""
    files = [folder / _file_name(own) for own in found.sizing.front]
    for file in files:
        check_may_write(file, PLAN_FORMAT)
    for file, plan in zip(files, found.plans, strict=True):
        save_plan(plan, file)
    named = tuple(
        msgspec.structs.replace(own, file=str(file))
        for own, file in zip(found.sizing.front, files, strict=True)
    )
    return SizedPlans(msgspec.structs.replace(found.sizing, front=named), found.plans)


def _file_name(own: SizedPlan) -> str:
    """`h100-sxm-64.json`."""
    return f"{Path(own.gpu).stem if own.gpu.endswith('.json') else own.gpu}-{own.gpus}.json"
