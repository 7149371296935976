"""The groups of processes in a framework's device meshes, made by the framework without processes."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from autopart.exporters.readback.rebuilt import framework_module

Groups = tuple[tuple[int, ...], ...]


@contextmanager
def pretended_processes(count: int, own: int = 0) -> Generator[None]:
    """Let this process be number `own` of `count` for torch, whose collectives then do nothing."""
    distributed = framework_module("torch.distributed")
    fake = framework_module("torch.testing._internal.distributed.fake_pg")
    distributed.init_process_group("fake", rank=own, world_size=count, store=fake.FakeStore())
    try:
        yield
    finally:
        distributed.destroy_process_group()


def groups_along(mesh: Any, axis: str) -> Groups:
    """The groups of processes that differ along one axis; empty where each has one process."""
    at = list(mesh.mesh_dim_names).index(axis)
    size = mesh.mesh.shape[at]
    if size == 1:
        return ()
    return tuple(map(tuple, mesh.mesh.movedim(at, -1).reshape(-1, size).tolist()))
