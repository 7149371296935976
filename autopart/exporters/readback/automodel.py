"""Readback by NeMo AutoModel: `autopart_automodel.yaml` through its own reader.

Its own function cuts a small Hugging Face Llama without data.
"""

from pathlib import Path
from typing import Any

from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.readback.process_meshes import Groups, groups_along, pretended_processes
from autopart.exporters.readback.rebuilt import Rebuilt, framework_module
from autopart.exporters.readback.torch_orders import RankMesh, parts_for_stages, torch_orders

_NAMES = {"model.norm": "norm", "lm_head": "head"}


def rebuild(folder: Path, shape: Shape) -> Rebuilt:
    """The modules that remain on every stage."""
    text = (folder / "autopart_automodel.yaml").read_text("utf-8")
    recipe = framework_module("yaml").safe_load(text)
    reader = framework_module("nemo_automodel.recipes._dist_utils")
    parsed = reader.parse_distributed_section(recipe["distributed"])
    config, ranks = parsed["pipeline_config"], parsed["pp_size"]
    cutting = framework_module("nemo_automodel.components.distributed.pipelining.functional")
    whole = _small_llama(config.module_fqns_per_model_part)
    # AutoModel cuts a copy on each rank. Act as each rank in turn, and note its stages.
    units: dict[int, tuple[str, ...]] = {}
    where: dict[int, int] = {}
    for rank in range(shape.num_ranks):
        with parts_for_stages(cutting):
            parts, _ = cutting.split_model_into_stages(
                whole,
                RankMesh(rank, ranks),
                "pp",
                config.pp_schedule,
                "cpu",
                config.module_fqns_per_model_part,
            )
        for part in parts:
            units[part.stage], where[part.stage] = tuple(_units(part.module)), rank
    # AutoModel recomputes all decoder layers or none.
    layers = frozenset(unit for stage in units.values() for unit in stage if "layers." in unit)
    orders = torch_orders(
        config.pp_schedule,
        folder / config.pp_schedule_csv if config.pp_schedule_csv else None,
        where,
        recipe["step_scheduler"]["local_batch_size"] // config.pp_microbatch_size,
    )
    return Rebuilt(
        tuple(units[stage] for stage in sorted(units)),
        layers if parsed["activation_checkpointing"] else frozenset(),
        orders,
        parsed["tp_size"],
        parsed["strategy_config"].sequence_parallel,
        **_mesh(parsed, shape),
    )


def _mesh(parsed: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The degrees and groups of AutoModel's own meshes, and whether FSDP2 keeps weights gathered."""
    sizes, strategy = parsed["parallelism_sizes"], parsed["strategy_config"]
    meshes = framework_module("nemo_automodel.components.distributed.mesh_utils")
    world = parsed["dp_size"] * parsed["cp_size"] * parsed["tp_size"] * parsed["pp_size"]
    context: Groups = ()
    experts: Groups = ()
    # The mesh of experts has the processes of one pipeline rank. Act as the first process of each in turn.
    for first in range(0, world, world // parsed["pp_size"]):
        with pretended_processes(world, first):
            made = meshes._create_device_meshes(strategy, sizes, world_size=world)
            context = groups_along(made[0], "cp")
            experts += groups_along(made[1], "ep") if made[1] is not None else ()
    found: dict[str, Any] = {
        "context_groups": context,
        "expert_groups": experts,
        "num_processes": world,
    }
    if shape.shard_degree == 1:
        return found
    replicas = parsed["dp_replicate_size"] or 1
    return found | {
        "shard_degree": parsed["dp_size"] // replicas // parsed["ep_size"],
        "num_replicas": replicas,
        "keeps_weights": strategy.reshard_after_forward is False,
    }


def _small_llama(parts: list[list[str]]) -> Any:
    transformers = framework_module("transformers")
    count = sum(name.startswith("model.layers.") for part in parts for name in part)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 16}
    config = transformers.LlamaConfig(
        num_hidden_layers=count, num_attention_heads=2, tie_word_embeddings=False, **sizes
    )
    with framework_module("torch").device("meta"):
        return transformers.LlamaForCausalLM(config)


def _units(part: Any) -> list[str]:
    """The remaining modules, in model order."""
    units = [f"layers.{index}" for index, _ in part.model.layers.named_children()]
    before = ["embedding"] if part.model.embed_tokens is not None else []
    ends = {"model.norm": part.model.norm, "lm_head": part.lm_head}
    return [*before, *units, *(_NAMES[name] for name, end in ends.items() if end is not None)]
