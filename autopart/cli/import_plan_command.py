"""`autopart import-plan`: another framework's layout as a plan, beside the best one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from autopart.cli.chosen_cluster import chosen_cluster, notes_on
from autopart.cli.cluster_options import ClusterOptions
from autopart.cli.console import print_result, warn
from autopart.cli.export_options import TargetName
from autopart.cli.option_groups import with_groups
from autopart.cli.output_files import check_may_write
from autopart.cli.policy_options import PolicyOptions
from autopart.cli.profile_reasons import reasons_from
from autopart.cli.shared_options import AsJson, usage_checked
from autopart.cli.solve_options import (
    GlobalBatch,
    PipelineOptions,
    SequenceParallel,
    TrainingOptions,
    solve_options,
)
from autopart.errors import UsageError
from autopart.exporters.model_units import Renaming, parse_renaming
from autopart.importers.megatron import Counts, units_of_counts, units_of_layout
from autopart.importers.texts import (
    file_text,
    layout_text,
    stages_of_device_map,
    units_of_modules,
    units_of_partition,
    units_of_parts,
)
from autopart.importers.units import StageLayers, num_blocks, stages_of_units, without_absent_norm
from autopart.records.built_in_profiles import profile_files
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import FORMAT, save_plan
from autopart.records.profile import load_profile
from autopart.report.given_table import given_lines, given_summary, given_table
from autopart.report.plan_table import plan_report
from autopart.search.demands import known_schedules
from autopart.search.given_stages import plan_of_stages

EXAMPLE = "autopart import-plan vllm --layout 9,9 --profile p.json --gpus 2"

Framework = Literal["megatron", "torchtitan", "deepspeed", "vllm", "device-map"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutOptions:
    """The layout, the model's profile, and how the layout is read."""

    profile: Annotated[
        list[Path],
        typer.Option(help="A profile of the model; also a name from 'autopart profiles'."),
    ]
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The layout as text: Megatron's string, module lists, DeepSpeed's parts, vLLM's counts, or a "
            "device map.",
        ),
    ] = None
    file: Annotated[
        Path | None,
        typer.Option(help="A file with the layout, such as an export; it is read, never executed."),
    ] = None
    pipeline_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=100_000,
            help="Megatron without a layout string: ranks per pipeline, with equally many layers each.",
        ),
    ] = None
    first_layers: Annotated[
        int | None,
        typer.Option(min=0, max=100_000, help="Megatron: decoder layers on the first rank."),
    ] = None
    last_layers: Annotated[
        int | None,
        typer.Option(min=0, max=100_000, help="Megatron: decoder layers on the last rank."),
    ] = None
    count_embedding: Annotated[
        bool,
        typer.Option(
            "--count-embedding", help="Megatron: the embedding counts as a decoder layer."
        ),
    ] = False
    count_loss: Annotated[
        bool, typer.Option("--count-loss", help="Megatron: the loss counts as a decoder layer.")
    ] = False
    renamings: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="LAYER=UNIT", help="Rename layers, as for 'autopart export'."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenOptions:
    """The batch and the ranks of a given layout, and the choices of the plans beside it."""

    global_batch: GlobalBatch = None
    target: Annotated[
        TargetName | None,
        typer.Option(help="The framework that trains: it sets the defaults of --sync and --sends."),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            parser=usage_checked(known_schedules),
            help="Its schedule; default: 1f1b, or interleaved-1f1b with several stages per rank.",
        ),
    ] = None
    stages_per_rank: Annotated[
        int, typer.Option(min=1, help="Stages of the layout per rank (virtual stages).")
    ] = 1
    tensor: Annotated[
        int, typer.Option(min=1, help="GPUs of a node that run each layer together.")
    ] = 1
    sequence_parallel: SequenceParallel = "auto"
    time_limit: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds for each of the three searches beside the layout."),
    ] = 60.0


@with_groups
def command(
    framework: Annotated[
        Framework,
        typer.Argument(
            metavar="FORMAT",
            help="Whose layout it is: megatron, torchtitan, deepspeed, vllm, device-map.",
        ),
    ],
    *,
    layout_options: LayoutOptions,
    cluster_options: ClusterOptions,
    given_options: GivenOptions,
    policy_options: PolicyOptions,
    training_options: TrainingOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="The plan file.")] = Path(
        "plan.json"
    ),
    as_json: AsJson = False,
) -> None:
    """Read a layout that you have, price it as a plan, and say how far it is from the optimum.

    The plan's bound is that of the whole search. Beside it stand the best plan with as many stages, and
    the best plan.
    """
    check_may_write(output, FORMAT)
    profiles = [
        load_profile(path) for asked in layout_options.profile for path in profile_files(asked)
    ]
    stages = _stages(framework, layout_options, given_options.stages_per_rank, profiles[0].graph)
    cluster = chosen_cluster(cluster_options, profiles[0])
    options = solve_options(PipelineOptions(), policy_options, training_options)
    options = replace(
        options,
        global_batch=given_options.global_batch,
        target=given_options.target,
        schedule=given_options.schedule,
        stages_per_rank=given_options.stages_per_rank,
        tensor=given_options.tensor,
        sequence_parallel=given_options.sequence_parallel,
        time_limit=given_options.time_limit,
    )
    with reasons_from(profiles):
        given = plan_of_stages(profiles, cluster, options, stages)
    save_plan(given.plan, output)
    warn(notes_on(profiles[0], cluster))
    print_result(
        given_summary(given, str(output)),
        plan_report(given.plan),
        given_table(given),
        *given_lines(given),
        f"plan written to {output}",
        as_json=as_json,
    )


def _stages(
    framework: Framework, options: LayoutOptions, stages_per_rank: int, graph: LayerGraph
) -> StageLayers:
    """The layers of each stage; raises UsageError on a layout that cannot be read."""
    named = tuple(map(parse_renaming, options.renamings or ()))
    counts = _counts(framework, options, stages_per_rank)
    if counts is not None:
        units = units_of_counts(num_blocks(graph, named), counts)
        return stages_of_units(graph, without_absent_norm(graph, units, named), named)
    text = _text(framework, options)
    if framework == "device-map":
        return stages_of_device_map(graph, text)
    if framework == "deepspeed":
        return stages_of_units(graph, units_of_parts(graph, text, named), named, keep_unknown=True)
    return stages_of_units(graph, _units(framework, graph, text, named), named)


def _units(
    framework: Framework, graph: LayerGraph, text: str, named: Sequence[Renaming]
) -> tuple[tuple[str, ...], ...]:
    if framework == "torchtitan":
        return units_of_modules(text)
    given = units_of_partition(text) if framework == "vllm" else units_of_layout(layout_text(text))
    return without_absent_norm(graph, given, named)


def _counts(framework: Framework, options: LayoutOptions, stages_per_rank: int) -> Counts | None:
    """Megatron's counts; None where a layout is given. Raises UsageError where both or neither are."""
    counted = options.pipeline_size is not None
    named = [
        word
        for word, value in (
            ("--first-layers", options.first_layers is not None),
            ("--last-layers", options.last_layers is not None),
            ("--count-embedding", options.count_embedding),
            ("--count-loss", options.count_loss),
        )
        if value
    ]
    if (counted or named) and framework != "megatron":
        raise UsageError(f"{(named or ['--pipeline-size'])[0]} is Megatron's, not {framework}'s")
    if named and not counted:
        raise UsageError(f"{named[0]} needs --pipeline-size, the ranks per pipeline")
    if options.pipeline_size is None:
        return None
    if options.layout is not None or options.file is not None:
        raise UsageError("--pipeline-size stands for equal stages; leave out --layout and --file")
    return Counts(
        ranks=options.pipeline_size,
        stages_per_rank=stages_per_rank,
        first=options.first_layers,
        last=options.last_layers,
        embedding_counts=options.count_embedding,
        loss_counts=options.count_loss,
    )


def _text(framework: Framework, options: LayoutOptions) -> str:
    if (options.layout is None) == (options.file is None):
        size = ", or --pipeline-size for equal stages" if framework == "megatron" else ""
        raise UsageError(f"name the layout once: --layout TEXT or --file FILE{size}")
    if options.layout is not None:
        return options.layout
    assert options.file is not None
    return file_text(options.file)
