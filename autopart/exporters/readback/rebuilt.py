"""The pipeline that a framework builds from an export."""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from autopart.errors import UsageError
from autopart.schedules.actions import Schedule


class Rebuilt(NamedTuple):
    """The pipeline as the framework would build and run it, in units."""

    units: tuple[tuple[str, ...], ...]
    """The units on each stage."""
    recompute: frozenset[str]
    orders: Schedule
    """The orders on the ranks in one replica."""
    tensor_degree: int = 1
    """GPUs per rank."""
    sequence_parallel: bool = False
    """Whether they split the sequence too."""
    selective: frozenset[str] = frozenset()
    """Units that run again except for parts that stay."""
    shard_degree: int = 1
    """Processes of a rank that share its state."""
    num_replicas: int = 1
    """Replicas of these groups; 1 too where the reader does not tell replicas from groups."""
    keeps_weights: bool = False
    """Whether their weights stay gathered through a step."""
    context_groups: tuple[tuple[int, ...], ...] = ()
    """The processes of each context group; empty without a context degree."""
    expert_groups: tuple[tuple[int, ...], ...] = ()
    """The processes of each expert group; empty without an expert degree."""
    num_processes: int | None = None
    """Processes in all; None where the reader does not tell."""
    wrapped: tuple[str, ...] = ()
    """The classes of the layers that are gathered one by one; empty where the model says it."""


def installed(package: str, versions: Sequence[str]) -> tuple[str, str]:
    """The installed `package version`, and the entry in `versions` that it matches up to x.y.

    Raises UsageError where none matches.
    """
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UsageError(
            f"{package} is not installed beside autopart: pip install {package}=={versions[0]}"
        ) from None
    for version in versions:
        if found.split(".")[:2] == version.split(".")[:2]:
            return f"{package} {found}", version
    raise UsageError(
        f"{package} {found} is installed, and exports are written for {' or '.join(versions)}"
    )


def framework_module(name: str) -> Any:
    """A framework's module; raises UsageError where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"{name} cannot be imported: {error}") from None


def exported_module(path: Path) -> ModuleType:
    """A module that autopart just wrote, in its own folder, whose other modules it may import."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
        del sys.modules[path.stem]
        for beside in path.parent.glob("*.py"):  # another export's has the same name
            sys.modules.pop(beside.stem, None)
    return module
