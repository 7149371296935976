"""Readback by Hugging Face accelerate: its launcher reads the file, and its plugin and mesh the environment.

The launcher turns the file into environment variables for each process, where accelerate reads them.
"""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopart.exporters.pipeline_shape import Shape
from autopart.exporters.readback.process_meshes import groups_along, pretended_processes
from autopart.exporters.readback.rebuilt import Rebuilt, framework_module


def rebuild(folder: Path, shape: Shape) -> Rebuilt:
    """The degrees, the groups, and what FSDP2 keeps and wraps."""
    plugin, degrees = settings(folder)
    with pretended_processes(degrees.total_size):
        mesh = degrees.build_device_mesh("cpu")
        context = groups_along(mesh, "cp") if degrees.cp_enabled else ()
    return Rebuilt(
        units=(),
        recompute=frozenset(("layers",)) if plugin.activation_checkpointing else frozenset(),
        orders=(),
        tensor_degree=degrees.tp_size,
        shard_degree=degrees.dp_shard_size,
        num_replicas=degrees.dp_replicate_size,
        keeps_weights=not plugin.reshard_after_forward,
        context_groups=context,
        num_processes=degrees.total_size,
        wrapped=tuple(plugin.transformer_cls_names_to_wrap or ()),
    )


def settings(folder: Path) -> tuple[Any, Any]:
    """accelerate's FSDP plugin and its degrees, as each process would make them."""
    launch = framework_module("accelerate.commands.launch")
    file = str(folder / "autopart_accelerate.yaml")
    words = ["--config_file", file, "--main_process_port", "0", "train.py"]
    asked, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    environment = framework_module("accelerate.utils.launch").prepare_multi_gpu_env(asked)
    with _environment(environment):
        plugin = framework_module("accelerate.utils").FullyShardedDataParallelPlugin()
        degrees = framework_module("accelerate.parallelism_config").ParallelismConfig()
    assert plugin.fsdp_version == 2
    assert degrees.total_size == asked.num_processes
    return plugin, degrees


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None]:
    """Run with these environment variables, and no others."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
