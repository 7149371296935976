"""The export to Megatron-Core and frameworks built on it: command-line arguments.

The layout is a string with `E` (embedding), `t` (decoder layer) and `L` (final norm, head and
loss), and `|` between stages. Stage s goes to rank s mod k. Megatron always builds the embedding on
the first stage and the head on the last. `--recompute-method block` recomputes the first N layers
per stage, and `--recompute-granularity selective` parts of all layers. So nothing else is written.
Versions before 0.13 have no layout.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from autopart.errors import ExportRefused
from autopart.exporters.exported import Exported
from autopart.exporters.megatron_groups import (
    group_arguments,
    group_fields,
    group_notes,
    refuse_groups,
)
from autopart.exporters.model_units import (
    EMBEDDING,
    HEAD,
    NORM,
    UnitStage,
    blocks,
    refuse_elsewhere,
    refuse_other_recompute,
    refuse_unknown_units,
)
from autopart.exporters.pipeline_shape import Shape, rank_notes, refuse_single_rank, shape_of
from autopart.exporters.selective import selects_all
from autopart.exporters.text import comments, mark
from autopart.records.frameworks import FRAMEWORKS
from autopart.records.plan import Plan, follows_its_name
from autopart.text import counted

VERSIONS = ("0.16.1", "0.12")
_NAME = "Megatron-Core"

MODULES = ("core_attn", "mlp")
"""The modules that run again for selective recompute of all layers.

No module is an activation function alone, and 0.16.1 takes `layernorm` only beside Transformer
Engine. So the whole MLP runs again, its two products too: it keeps less than the plan does.
"""
SELECTIVE: Mapping[str, str] = MappingProxyType(
    {"recompute_granularity": "selective", "recompute_modules": " ".join(MODULES)}
)
"""The settings for selective recompute of all layers."""
SELECTIVE_NOTE = (
    "modules core_attn and mlp run attention and each MLP again, whose products the plan keeps: the step "
    "takes longer than predicted, and no more memory where the MLP's first product is at least three "
    "times as wide as the model; pass --disable-bias-linear too, as Megatron-Core 0.16.1 recomputes an MLP "
    "with biases without end"
)


def export_to_megatron(plan: Plan, stages: tuple[UnitStage, ...], version: str) -> Exported:
    """Write `autopart_megatron.sh`, a bash array with the arguments.

    Versions with layouts also get `autopart_megatron.yaml`, fields for `TransformerConfig`. Where
    stages recompute different numbers of layers, they get `autopart_recompute.py` too. Raises
    ExportRefused where Megatron cannot run the plan.
    """
    shape = megatron_shape(plan, stages, _NAME)
    refuse_orders(plan, shape, _NAME, FRAMEWORKS["megatron"].pairs_with_experts)
    refuse_groups(plan, shape, _NAME)
    sizes = [len(blocks(stage.units)) for stage in stages]
    selects = selects_all(stages, _NAME)
    recompute = _prefixes(stages)
    common = _once_for_all(sizes, recompute)
    split = {} if version != "0.12" else _without_layout(shape, sizes)
    if version == "0.12" and common is None:
        raise ExportRefused(
            "stages recompute different numbers of layers, which Megatron-Core supports from 0.13 on; "
            f"the nearest plan recomputes the first {counted(max(recompute), 'layer')} on every stage"
        )
    notes = (*rank_notes(shape), *group_notes(plan, shape), *_empty_notes(sizes))
    notes += (SELECTIVE_NOTE,) if selects else ()
    if common is None:
        notes += ("call autopart_recompute.configure from the model provider, for every stage",)
    settings = SELECTIVE if selects else _first_layers(common)
    arguments = _arguments(plan, shape, sizes, split or {"layout": layout_of(stages)}, settings)
    files = {"autopart_megatron.sh": _shell(plan, arguments, notes)}
    if version != "0.12":
        files["autopart_megatron.yaml"] = _yaml(plan, shape, stages, settings, notes)
    if common is None:
        files["autopart_recompute.py"] = _recompute_module(plan, shape, recompute)
    return Exported(files, notes)


def megatron_shape(plan: Plan, stages: Sequence[UnitStage], framework: str) -> Shape:
    """The pipeline's shape, checked against Megatron's rules for stages; raises ExportRefused."""
    shape = shape_of(plan, framework)
    refuse_single_rank(shape, framework)
    refuse_unknown_units(stages, framework)
    refuse_other_recompute(stages, framework)
    for unit, place in ((EMBEDDING, 0), (NORM, len(stages) - 1), (HEAD, len(stages) - 1)):
        refuse_elsewhere(stages, unit, place, framework)
    return shape


def layout_of(stages: Sequence[UnitStage]) -> str:
    """The layout string, such as `Et*3|t*4|t*2L`."""
    segments = [_repeated(len(blocks(stage.units))) for stage in stages]
    return f"E{'|'.join(segments)}L"


def _repeated(count: int) -> str:
    return "t" if count == 1 else f"t*{count}" if count else ""


def refuse_orders(plan: Plan, shape: Shape, framework: str, pairs: tuple[str, ...] = ()) -> None:
    """Raise ExportRefused unless the plan's orders match one of Megatron's two schedules.

    `pairs` are further schedules, with overlapped pairs, for ranks with several stages.
    """
    wanted = "1f1b" if shape.stages_per_rank == 1 else "interleaved-1f1b"
    if plan.schedule in pairs and shape.stages_per_rank > 1:
        wanted = plan.schedule
    if shape.placement != "loop":
        raise ExportRefused(
            f"the plan's stages form a V, and {framework} puts stage s on rank s mod k; the nearest "
            "plan is interleaved-1f1b with the same stages per rank; --to primus takes a V"
        )
    names = (wanted, "interleaved-1f1b")
    if plan.schedule not in names or not follows_its_name(plan):
        raise ExportRefused(
            f"{framework} runs 1f1b, and interleaved-1f1b where a rank has several stages; this "
            f"plan runs {'orders of its own' if plan.schedule in names else plan.schedule}; the "
            f"nearest plan has --schedule {wanted}"
        )
    m, k = shape.num_microbatches, shape.num_ranks
    if shape.stages_per_rank > 1 and m % k:
        near = [n * shape.num_replicas for n in (m - m % k, m - m % k + k) if n]
        raise ExportRefused(
            f"interleaved stages take microbatches in groups of {k}, one per rank, and a replica has "
            f"{m}; the nearest plans have {' or '.join(map(str, near))} microbatches"
        )


def _prefixes(stages: Sequence[UnitStage]) -> list[int]:
    """The number of recomputed layers per stage, counted from its first layer."""
    counts: list[int] = []
    for index, stage in enumerate(stages):
        there, chosen = blocks(stage.units), blocks(stage.recompute)
        if chosen != there[: len(chosen)]:
            raise ExportRefused(
                f"stage {index} recomputes layers {', '.join(map(str, chosen))}, and Megatron-Core "
                f"recomputes only a stage's first layers; the nearest plan recomputes "
                f"{', '.join(map(str, there[: len(chosen)]))}; --to primus recomputes any layers"
            )
        counts.append(len(chosen))
    return counts


def _once_for_all(sizes: Sequence[int], recompute: Sequence[int]) -> int | None:
    """The N for `block` that fits every stage; None where the stages differ."""
    n = max(recompute)
    fits = all(chosen == min(n, size) for size, chosen in zip(sizes, recompute, strict=True))
    return n if fits else None


def _first_layers(common: int | None) -> dict[str, str]:
    """The settings that recompute the first N layers per stage; None where N differs."""
    if common == 0:
        return {}
    return {
        "recompute_granularity": "full",
        "recompute_method": "block",
        "recompute_num_layers": str(common or 1),
    }


def _without_layout(shape: Shape, sizes: Sequence[int]) -> dict[str, int | bool]:
    """The arguments for older versions, where only the first and the last stage may differ."""
    if shape.stages_per_rank > 1:
        raise ExportRefused(
            "several stages per rank need a layout, which Megatron-Core has from 0.13 on; the "
            "nearest plan has one stage per rank"
        )
    first, *middle, last = sizes
    if len(set(sizes)) == 1:
        return {"even": True}
    if not middle:
        if first and last:
            return {"decoder-first-pipeline-num-layers": first}
        middle = [first + last]
    if len(set(middle)) > 1:
        raise ExportRefused(
            f"stages with {', '.join(map(str, sizes))} layers need a layout, which Megatron-Core has "
            "from 0.13 on; before, all stages between the first and the last have equally many layers"
        )
    q = middle[0]
    if first and last:
        return {
            "decoder-first-pipeline-num-layers": first,
            "decoder-last-pipeline-num-layers": last,
        }
    if len(sizes) > 2 and {first, last} <= {q, q - 1}:
        split = {
            "account-for-embedding-in-pipeline-split": first < q,
            "account-for-loss-in-pipeline-split": last < q,
        }
        return {name: True for name, is_set in split.items() if is_set}
    raise ExportRefused(
        "a first or last stage without layers needs a layout, which Megatron-Core has from 0.13 on; "
        "the nearest plan gives it one layer"
    )


def _arguments(
    plan: Plan,
    shape: Shape,
    sizes: Sequence[int],
    split: dict[str, int | bool] | dict[str, str],
    settings: Mapping[str, str],
) -> list[str]:
    per_step = plan.microbatch_size * plan.num_microbatches
    lines = [
        f"--num-layers {sum(sizes)}",
        f"--pipeline-model-parallel-size {shape.num_ranks}",
        f"--micro-batch-size {plan.microbatch_size // shape.expert_degree}",
        f"--global-batch-size {per_step}",
        *group_arguments(plan, shape),
    ]
    for name, value in split.items():
        if name == "layout":
            lines.append(f"--pipeline-model-parallel-layout '{value}'")
        elif name != "even":
            lines.append(f"--{name}" if value is True else f"--{name} {value}")
    if plan.training.zero1:
        lines.append("--use-distributed-optimizer")
    lines += [f"--{name.replace('_', '-')} {value}" for name, value in settings.items()]
    return lines


def _empty_notes(sizes: Sequence[int]) -> tuple[str, ...]:
    if all(sizes[1:-1]):
        return ()
    return (
        "a stage between the first and the last has no layer: Megatron-Core allows this, but users "
        "report hangs (Megatron-LM issue 1852); try a few steps first",
    )


def _shell(plan: Plan, arguments: Sequence[str], notes: Sequence[str]) -> str:
    lines = "".join(f"    {argument}\n" for argument in arguments)
    return (
        f"{comments(plan, notes)}# Source this file, then pass "
        f'"${{AUTOPART_ARGS[@]}}" and your own arguments to pretrain_gpt.py.\n'
        f"AUTOPART_ARGS=(\n{lines})\n"
    )


def _yaml(
    plan: Plan,
    shape: Shape,
    stages: Sequence[UnitStage],
    settings: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    virtual = shape.stages_per_rank if shape.stages_per_rank > 1 else "null"
    text = (
        f"{comments(plan, notes)}# Fields of megatron.core's TransformerConfig.\n"
        f"num_layers: {sum(len(blocks(stage.units)) for stage in stages)}\n"
        f"pipeline_model_parallel_size: {shape.num_ranks}\n"
        f"virtual_pipeline_model_parallel_size: {virtual}\n"
    )
    text += group_fields(plan, shape)
    text += "pipeline_model_parallel_layout:\n"
    for index, stage in enumerate(stages):
        items = ["embedding"] * (index == 0) + ["decoder"] * len(blocks(stage.units))
        items += ["loss"] * (index == len(stages) - 1)
        text += f"  - [{', '.join(items)}]\n"
    return text + recompute_fields(settings)


def recompute_fields(settings: Mapping[str, str]) -> str:
    """The YAML lines for `settings`; the modules are a list."""
    lists = {"recompute_modules": f"[{', '.join(MODULES)}]"}
    return "".join(f"{name}: {lists.get(name, value)}\n" for name, value in settings.items())


def _recompute_module(plan: Plan, shape: Shape, recompute: Sequence[int]) -> str:
    k = shape.num_ranks
    table = "".join(f"    {tuple(recompute[rank::k])!r},\n" for rank in range(k))
    return (
        f'"""{mark(plan)}\n\nEach stage gets its own number of recomputed layers. In your model '
        "provider, before GPTModel is built, call\n\n"
        '    autopart_recompute.configure(config, pp_rank, vp_stage)\n"""\n\nimport copy\n\n'
        "# For each pipeline rank, the number of recomputed layers on each of its stages.\n"
        f"RECOMPUTED = (\n{table})\n\n\n"
        'def configure(config, pp_rank, vp_stage=None):\n    """Copy the TransformerConfig for one '
        'stage, with the stage\'s own recompute_num_layers."""\n'
        "    config = copy.copy(config)\n"
        "    config.recompute_num_layers = RECOMPUTED[pp_rank][vp_stage or 0]\n"
        "    return config\n"
    )
