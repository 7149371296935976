"""Readback by torchtitan: `autopart_titan.py` (0.3) or `autopart_titan.toml` (0.2).

Its own function cuts a small Llama without data, and torch makes the orders.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.readback.process_meshes import groups_along, pretended_processes
from autopart.exporters.readback.rebuilt import Rebuilt, exported_module, framework_module
from autopart.exporters.readback.torch_orders import RankMesh, parts_for_stages, torch_orders

_NAMES = {"tok_embeddings": "embedding", "lm_head": "head", "output": "head"}


def rebuild(folder: Path, shape: Shape) -> Rebuilt:
    """The modules that remain on every stage after the exported `apply`."""
    exported = exported_module(folder / "autopart_titan.py")
    config = exported.apply(_debug_config(exported.NUM_LAYERS, experts=shape.expert_degree))
    pipelining = framework_module("torchtitan.distributed.pipeline_parallel")
    with framework_module("torch").device("meta"):
        whole = config.model_spec.model.build()
    return _rebuilt(
        folder,
        config,
        shape,
        pipelining,
        pipelining._pipeline_module_split,
        whole,
        _policy_of(config),
    )


def rebuild_from_toml(folder: Path, shape: Shape) -> Rebuilt:
    """The modules that remain, from settings through the older torchtitan's own reader."""
    manager = framework_module("torchtitan.config.manager").ConfigManager()
    config = manager.parse_args(["--job.config_file", str(folder / "autopart_titan.toml")])
    llama = framework_module("torchtitan.models.llama3")
    names = [name for part in config.parallelism.module_fqns_per_model_part for name in part]
    count = sum(name.startswith("layers.") for name in names)
    with framework_module("torch").device("meta"):
        whole = llama.Transformer(
            llama.TransformerModelArgs(dim=32, n_layers=count, n_heads=2, vocab_size=64)
        )
    pipelining = framework_module("torchtitan.distributed.pipeline_parallel")
    return _rebuilt(
        folder, config, shape, pipelining, pipelining.pipeline_module_split, whole, _mode_of(config)
    )


def _rebuilt(
    folder: Path,
    config: Any,
    shape: Shape,
    pipelining: Any,
    split: Any,
    whole: Any,
    recomputed: Callable[[Any], tuple[list[str], list[str]]],
) -> Rebuilt:
    parallel, training = config.parallelism, config.training
    units: dict[int, tuple[str, ...]] = {}
    where: dict[int, int] = {}
    chosen: set[str] = set()
    partly: set[str] = set()
    # torchtitan cuts a copy on each rank. Act as each rank in turn, and note its stages.
    for rank in range(shape.num_ranks):
        _count_from_one()
        mesh = RankMesh(rank, parallel.pipeline_parallel_degree)
        asked = (parallel.pipeline_parallel_schedule, "cpu", parallel.module_fqns_per_model_part)
        with parts_for_stages(pipelining):
            parts, _ = split(whole, mesh, *asked)
        for part in parts:
            units[part.stage], where[part.stage] = tuple(_units(part.module)), rank
            whole_layers, selective = recomputed(part.module)
            chosen.update(whole_layers)
            partly.update(selective)
    file = parallel.pipeline_parallel_schedule_csv
    orders = torch_orders(
        parallel.pipeline_parallel_schedule,
        folder / file if file else None,
        where,
        training.local_batch_size // parallel.pipeline_parallel_microbatch_size,
    )
    degree = parallel.tensor_parallel_degree
    # Version 0.2.2 has no setting: it always splits the sequence.
    splits = degree > 1 and getattr(parallel, "enable_sequence_parallel", True)
    built = tuple(units[stage] for stage in sorted(units))
    return Rebuilt(
        built,
        frozenset(chosen),
        orders,
        degree,
        splits,
        frozenset(partly),
        **_mesh(parallel, shape),
    )


def _mesh(parallel: Any, shape: Shape) -> dict[str, Any]:
    """The degrees and groups of torchtitan's own meshes, and whether FSDP2 keeps weights gathered."""
    module = framework_module("torchtitan.distributed.parallel_dims")
    fields = {f.name for f in dataclasses.fields(module.ParallelDims)}
    world = math.prod(
        (
            parallel.data_parallel_replicate_degree,
            parallel.data_parallel_shard_degree,
            parallel.context_parallel_degree,
            parallel.tensor_parallel_degree,
            parallel.pipeline_parallel_degree,
        )
    )
    given = {
        "dp_replicate": parallel.data_parallel_replicate_degree,
        "dp_shard": parallel.data_parallel_shard_degree,
        "cp": parallel.context_parallel_degree,
        "tp": parallel.tensor_parallel_degree,
        "pp": parallel.pipeline_parallel_degree,
        "ep": parallel.expert_parallel_degree,
        "etp": getattr(parallel, "expert_tensor_parallel_degree", 1),
        "world_size": world,
        "spmd_backend": getattr(parallel, "spmd_backend", "partial_dtensor"),
    }
    dims = module.ParallelDims(**{name: value for name, value in given.items() if name in fields})
    with pretended_processes(world), _meshes_on_cpu(module):
        dims.build_mesh()
        meshes = dims._global_meshes
        found: dict[str, Any] = {
            "context_groups": groups_along(meshes["dataloading"], "cp"),
            "expert_groups": groups_along(meshes["sparse"], "ep"),
            "num_processes": world,
        }
    if shape.shard_degree == 1:
        return found
    return found | {
        "shard_degree": dims.dp_shard // dims.ep,
        "num_replicas": dims.dp_replicate,
        "keeps_weights": not _reshards(parallel.fsdp_reshard_after_forward),
    }


def _reshards(policy: str) -> bool:
    """Whether FSDP2 frees weights after each forward, under a pipeline."""
    if importlib.util.find_spec("torchtitan.distributed.fsdp") is None:
        # Version 0.2.2 decides inside `apply_fsdp`: never, and by default in pipelines.
        return policy == "always"
    reader = framework_module("torchtitan.distributed.fsdp")
    return reader.get_fsdp_reshard_after_forward_policy(policy, True)


@contextmanager
def _meshes_on_cpu(module: Any) -> Generator[None]:
    """Make torchtitan build its meshes without a GPU: it chooses CUDA on every machine."""
    real = module.device_type
    module.device_type = "cpu"
    try:
        yield
    finally:
        module.device_type = real


def _count_from_one() -> None:
    """Reset the layers that 0.2.2 has counted in this process; each rank has its own."""
    policies = framework_module("torchtitan.distributed.activation_checkpoint")
    if hasattr(policies, "_layer_sac_count"):
        policies._layer_sac_count = 0


def _debug_config(num_layers: int, *, experts: int) -> Any:
    """torchtitan's small Llama with the given number of layers, or its Qwen3 with so many experts."""
    if experts == 1:
        registry = framework_module("torchtitan.models.llama3.config_registry")
        config = registry.llama3_debugmodel()
    else:
        registry = framework_module("torchtitan.models.qwen3.config_registry")
        config = registry.qwen3_moe_debug()
    layers = config.model_spec.model.layers
    config.model_spec.model.layers = (layers * (1 + num_layers // len(layers)))[:num_layers]
    return config


def _units(model: Any) -> list[str]:
    """The remaining children, in model order."""
    units: list[str] = []
    for name, child in model.named_children():
        if name == "layers":
            units += [f"layers.{index}" for index, _ in child.named_children()]
        elif child is not None:
            units.append(_NAMES.get(str(name), str(name)))
    return units


def _wrapped(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The layers that are wrapped as a whole, and those whose operations have a policy."""
    found: tuple[list[str], list[str]] = ([], [])
    for index, layer in after.items():
        if layer is not before[index]:
            found["context_fn" in layer.checkpoint_fn.keywords].append(f"layers.{index}")
    return found


def _policy_of(config: Any) -> Callable[[Any], tuple[list[str], list[str]]]:
    """The layers in a part that the exported policy wraps."""
    if config.activation_checkpoint is None:
        return lambda _: ([], [])
    policy = config.activation_checkpoint.build()

    def wrapped(part: Any) -> tuple[list[str], list[str]]:
        layers = dict(part.get_submodule("layers").named_children())
        after = {at: policy._wrap_block(la, base_fqn=f"layers.{at}") for at, la in layers.items()}
        return _wrapped(layers, after)

    return wrapped


def _mode_of(config: Any) -> Callable[[Any], tuple[list[str], list[str]]]:
    """The layers in a part that the mode wraps."""
    apply = framework_module("torchtitan.distributed.activation_checkpoint").apply_ac
    if config.activation_checkpoint.mode == "none":  # torchtitan then does not call it
        return lambda _: ([], [])

    def wrapped(part: Any) -> tuple[list[str], list[str]]:
        before = dict(part.get_submodule("layers").named_children())
        apply(part, config.activation_checkpoint)
        return _wrapped(before, dict(part.get_submodule("layers").named_children()))

    return wrapped
