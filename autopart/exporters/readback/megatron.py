"""Readback by Megatron-Core: the layout through `TransformerConfig`, and its schedule's own table."""

import inspect
import shlex
from pathlib import Path
from typing import Any

from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.readback.rebuilt import Rebuilt, exported_module, framework_module
from autopart.schedules.actions import Action, Order, PairedForward


def rebuild(folder: Path, shape: Shape) -> Rebuilt:
    """The stages on every rank, from the arguments. The list in the YAML must agree."""
    arguments = _arguments((folder / "autopart_megatron.sh").read_text(encoding="utf-8"))
    layout = arguments["pipeline-model-parallel-layout"]
    config = _config(arguments, pipeline_model_parallel_layout=layout)
    listed = _config(
        arguments,
        pipeline_model_parallel_layout=_list(
            (folder / "autopart_megatron.yaml").read_text("utf-8")
        ),
    )
    # The list is for frameworks on Megatron-Core; it must parse to the same layout as the string.
    assert listed.pipeline_model_parallel_layout.layout == (
        config.pipeline_model_parallel_layout.layout
    )
    size = config.virtual_pipeline_model_parallel_size or 1
    units = [_units(config, stage, size) for stage in range(size * shape.num_ranks)]
    return _rebuilt(folder, arguments, config, units, shape)


def rebuild_without_layout(folder: Path, shape: Shape) -> Rebuilt:
    """The stages without layouts: the layers that a stage's block would build, and their first."""
    arguments = _arguments((folder / "autopart_megatron.sh").read_text(encoding="utf-8"))
    config = _config(arguments, **_older_fields(arguments))
    build = framework_module("megatron.core.transformer.transformer_block").get_num_layers_to_build
    offset = framework_module(
        "megatron.core.transformer.transformer_layer"
    ).get_transformer_layer_offset
    # Megatron counts a block's layers from global state, so act as each rank in turn.
    units: list[tuple[str, ...]] = []
    for stage in range(shape.num_ranks):
        state = _tell_megatron(config.pipeline_model_parallel_size, stage, 1)
        start = offset(config)
        layers = tuple(f"layers.{index}" for index in range(start, start + build(config)))
        first = ("embedding",) if state.is_pipeline_first_stage() else ()
        last = ("norm", "head") if state.is_pipeline_last_stage() else ()
        units.append((*first, *layers, *last))
    return _rebuilt(folder, arguments, config, units, shape)


def _rebuilt(
    folder: Path,
    arguments: dict[str, str],
    config: Any,
    units: list[tuple[str, ...]],
    shape: Shape,
) -> Rebuilt:
    """The pipeline whose stages have these units."""
    size = len(units) // shape.num_ranks
    microbatches = _microbatches(arguments, config, shape.num_replicas)
    orders = tuple(
        _order(rank, size, shape.num_ranks, microbatches, pairs=_overlaps(config))
        for rank in range(shape.num_ranks)
    )
    _tell_megatron(None, None, None)
    return Rebuilt(
        tuple(units),
        _recompute(folder, config, units, shape.num_ranks),
        orders,
        config.tensor_model_parallel_size,
        config.sequence_parallel,
        _partly(config, units),
        context_groups=_process_groups(
            config, "cp", config.context_parallel_size, shape.num_replicas
        ),
        expert_groups=_process_groups(
            config, "ep", config.expert_model_parallel_size, shape.num_replicas
        ),
    )


def _arguments(text: str) -> dict[str, str]:
    """The arguments that bash reads from the array. An argument without a value has an empty one."""
    # Words after a flag are its values, up to the next flag.
    words = shlex.split(text.partition("AUTOPART_ARGS=(")[2].rpartition(")")[0])
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            values = found.setdefault(word.removeprefix("--"), [])
        else:
            values.append(word)
    return {name: " ".join(values) for name, values in found.items()}


def _list(text: str) -> list[list[str]]:
    rows = [line.strip() for line in text.splitlines() if line.startswith("  - [")]
    return [[word for word in row[3:-1].split(", ") if word] for row in rows]


def _config(arguments: dict[str, str], **fields: Any) -> Any:
    """Megatron's configuration from the arguments with fields, and from `fields`."""
    numbers = (
        "num-layers",
        "pipeline-model-parallel-size",
        "tensor-model-parallel-size",
        "context-parallel-size",
        "expert-model-parallel-size",
        "recompute-num-layers",
    )
    for name in numbers:
        if name in arguments:
            fields[name.replace("-", "_")] = int(arguments[name])
    for name in ("recompute-granularity", "recompute-method"):
        if name in arguments:
            fields[name.replace("-", "_")] = arguments[name]
    if "cp-comm-type" in arguments:
        fields["cp_comm_type"] = arguments["cp-comm-type"]
    if "expert-model-parallel-size" in arguments:
        # The user has the number of experts. Any multiple of the degree will do here.
        fields["num_moe_experts"] = 2 * int(arguments["expert-model-parallel-size"])
        fields["moe_token_dispatcher_type"] = arguments["moe-token-dispatcher-type"]
        fields["moe_grouped_gemm"] = "moe-grouped-gemm" in arguments
        fields["add_bias_linear"] = False
    if "overlap-moe-expert-parallel-comm" in arguments:
        fields |= {"overlap_moe_expert_parallel_comm": True, "bf16": True}
    if "recompute-modules" in arguments:
        fields["recompute_modules"] = arguments["recompute-modules"].split()
    return framework_module("megatron.core.transformer.transformer_config").TransformerConfig(
        hidden_size=8,
        num_attention_heads=8,
        sequence_parallel="sequence-parallel" in arguments,
        pipeline_dtype=framework_module("torch").float32,
        **fields,
    )


def _older_fields(arguments: dict[str, str]) -> dict[str, int | bool]:
    """The configuration that `megatron.training` passes on; no package contains it."""
    counts = {
        f"num_layers_in_{end}_pipeline_stage": int(arguments[name])
        for end in ("first", "last")
        if (name := f"decoder-{end}-pipeline-num-layers") in arguments
    }
    flags = {name.replace("-", "_"): True for name in arguments if name.startswith("account-for-")}
    return counts | flags


def _units(config: Any, stage: int, size: int) -> tuple[str, ...]:
    layout = config.pipeline_model_parallel_layout
    ranks = config.pipeline_model_parallel_size
    state = _tell_megatron(ranks, stage % ranks, size)
    own = stage // ranks
    numbers = layout.get_layer_id_list(vp_stage=own, pp_rank=stage % ranks)
    # Megatron builds embedding, norm and head on the first and last stage, not by E and L.
    where = {"ignore_virtual": size == 1, "vp_stage": own}
    first = ("embedding",) if state.is_pipeline_first_stage(**where) else ()
    last = ("norm", "head") if state.is_pipeline_last_stage(**where) else ()
    return (*first, *(f"layers.{index}" for index in numbers), *last)


def _recompute(
    folder: Path, config: Any, units: list[tuple[str, ...]], num_ranks: int
) -> frozenset[str]:
    if config.recompute_granularity != "full":
        return frozenset()
    path = folder / "autopart_recompute.py"
    each = exported_module(path) if path.exists() else None
    # `block` recomputes the first N layers on a stage; N is common to all stages or comes from the
    # exported module.
    chosen: set[str] = set()
    for stage, there in enumerate(units):
        own = each.configure(config, stage % num_ranks, stage // num_ranks) if each else config
        layers = [unit for unit in there if unit.startswith("layers.")]
        chosen.update(layers[: own.recompute_num_layers])
    return frozenset(chosen)


def _partly(config: Any, units: list[tuple[str, ...]]) -> frozenset[str]:
    """All layers, where Megatron recomputes modules: they are of all layers alike."""
    if config.recompute_granularity != "selective":
        return frozenset()
    return frozenset(unit for there in units for unit in there if unit.startswith("layers."))


def _tell_megatron(num_ranks: int | None, rank: int | None, size: int | None) -> Any:
    """Set Megatron's global state to one rank with `size` stages; None resets it."""
    state = framework_module("megatron.core.parallel_state")
    state.set_pipeline_model_parallel_world_size(num_ranks)
    state.set_pipeline_model_parallel_rank(rank)
    state.set_virtual_pipeline_model_parallel_world_size(size if size and size > 1 else None)
    return state


def _microbatches(arguments: dict[str, str], config: Any, num_replicas: int) -> int:
    """The microbatches per step and replica, by Megatron's own calculator."""
    # Megatron's data-parallel size counts every process of an expert group.
    data = num_replicas * config.expert_model_parallel_size
    module = framework_module("megatron.core.num_microbatches_calculator")
    sizes = [int(arguments[f"{name}-batch-size"]) for name in ("global", "micro")]
    return module.ConstantNumMicroBatchesCalculator(*sizes, data, False, 0).get()


def _process_groups(
    config: Any, kind: str, degree: int, num_replicas: int
) -> tuple[tuple[int, ...], ...]:
    """The context (`cp`) or expert (`ep`) groups that Megatron makes; empty for a degree of 1."""
    if degree == 1:
        return ()
    state = framework_module("megatron.core.parallel_state")
    order = inspect.signature(state.initialize_model_parallel).parameters["order"].default
    # Megatron has one generator for experts, whose context size is 1, and one for all else. The other degree counts as data.
    t, k = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    both = config.context_parallel_size * config.expert_model_parallel_size
    sizes = {"tp": t, "pp": k, "dp": num_replicas * both // degree, "cp": 1, "ep": 1, kind: degree}
    return tuple(
        tuple(group) for group in state.RankGenerator(order=order, **sizes).get_ranks(kind)
    )


def _overlaps(config: Any) -> bool:
    """Whether each forward behind the warm-up runs beside a backward; older versions never do."""
    return bool(getattr(config, "overlap_moe_expert_parallel_comm", False))


def _order(rank: int, size: int, k: int, m: int, *, pairs: bool) -> Order:
    """The order in `forward_backward_pipelining_with(out)_interleaving`: warm-up, pairs, rest.

    With `pairs` those two run at once, and Megatron warms up for one forward more.
    """
    schedules = framework_module("megatron.core.pipeline_parallel.schedules")
    # Step 1: all forwards and backwards in table order. Backwards visit the stages in reverse.
    table = schedules.get_schedule_table(m, size, k)
    forwards = [Action(part * k + rank, "F", at) for at, part in table]
    backwards = [Action((size - 1 - part) * k + rank, "B", at) for at, part in table]
    # Step 2: warm-up forwards, then pairs of forward and backward, then the remaining backwards.
    _tell_megatron(k, rank, size)
    more = {"overlap_moe_expert_parallel_comm": True} if pairs else {}
    warmup = schedules.get_pp_rank_microbatches(m, size, k, **more)[2]
    order = forwards[:warmup]
    for forward, backward in zip(forwards[warmup:], backwards, strict=False):
        order += [PairedForward(*forward) if pairs else forward, backward]
    return (*order, *backwards[len(forwards) - warmup :])
