"""Saved state: weights, buffers and optimizer state in a folder, from which any plan continues.

Tensors are whole and have the model's own names. So a plan with other stages, replicas or another
tensor degree can load them. The files are torch's distributed checkpoint, with these keys:

    model.NAME              a parameter or a persistent buffer, under each of its names
    optimizer.NAME.KIND     its optimizer state, such as exp_avg
    optimizer.step          steps done

Tensors of a tensor group are gathered or cut one at a time, so a GPU never has the whole stage.
"""

# pyright: reportPrivateImportUsage=false

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from autopart.errors import RunError, UsageError
from autopart.runtime.engine.rank_executor import RankExecutor
from autopart.runtime.engine.state_dict import Names, named_module
from autopart.runtime.update.optimizer import Optimizer

Tensors = dict[str, torch.Tensor]

_MODEL, _OPTIMIZER = "model", "optimizer"
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    ImportError,
    AttributeError,
    IndexError,
    UnpicklingError,
)
"""What a missing or foreign index of a folder ends in. The index is a pickled object."""
_STEP = f"{_OPTIMIZER}.step"


def save_state(folder: str, executor: RankExecutor, optimizer: Optimizer, names: Names) -> None:
    """Write the whole state into `folder`. Collective over all ranks and their tensor groups.

    `names` are those of the model's tensors (`all_names`). Each rank writes the parameters that no
    lower rank holds; of a tensor group the first process writes. Raises RunError where it cannot.
    """
    shards, parameters = executor.shards, executor.parameters
    saved: Tensors = {}

    def add(name: str, local: torch.Tensor, keys: Sequence[str]) -> None:
        whole = local if shards is None else shards.whole({name: local})[name]
        saved.update(dict.fromkeys(keys, whole.detach().cpu()))

    # Step 1: weights and buffers. Ranks with the same buffers save them once.
    own = set(executor.owned)
    for name, tensor in _tensors_of(executor, names):
        if name not in parameters or name in own:
            add(name, tensor, [f"{_MODEL}.{every}" for every in names[name]])
    # Step 2: optimizer state, which ZeRO shards gather here.
    for key, tensor in sorted(optimizer.state_dict(parameters).items()):
        name = key.rpartition(".")[0]
        if name in own:
            add(name, tensor, [f"{_OPTIMIZER}.{key}"])
        elif not name:
            saved[_STEP] = tensor
    if executor.is_first_place or executor.is_in_one_world:
        try:
            checkpoint.save(saved if executor.is_first_place else {}, checkpoint_id=folder)
        except CheckpointException as error:
            raise RunError(f"--save {folder}: {_cause(error)}") from error


def load_state(folder: str, executor: RankExecutor, optimizer: Optimizer, names: Names) -> int:
    """Load this process's part of the state in `folder`; return the number of steps done.

    Not collective. Raises UsageError where the folder has no saved state, or that of another model
    or optimizer.
    """
    reader, parameters = _SavedTensors(folder), executor.parameters
    kinds, state = optimizer.state_names, Tensors()
    for name, tensor in _tensors_of(executor, names):
        of = parameters.get(name)
        is_trained = of is not None and of.requires_grad
        keys = {f"{name}.{kind}": f"{_OPTIMIZER}.{name}.{kind}" for kind in kinds if is_trained}
        found = reader.read([f"{_MODEL}.{name}", *keys.values()])
        shards, shape = executor.shards, tensor.shape
        if shards is not None:
            shape = shards.whole_shape(name, shape)
        for key, whole in found.items():
            if whole.shape != shape:
                raise UsageError(
                    f"'{key}' in {folder} has another shape than the model's '{name}'; give the "
                    "state of the same model"
                )
        if shards is not None:
            found = {key: shards.own_part(name, whole) for key, whole in found.items()}
        with torch.no_grad():
            tensor.copy_(found[f"{_MODEL}.{name}"])
        state |= {key: found[saved].to(executor.device) for key, saved in keys.items()}
    state |= {"step": reader.read([_STEP])[_STEP]}
    optimizer.load_state_dict(state, parameters)
    executor.written()
    return int(state["step"])


def check_folder_to_save(folder: str) -> None:
    """Raise UsageError where something is in the folder."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"--save {folder}: something is there; give a new folder")


def _tensors_of(executor: RankExecutor, names: Names) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's parameters and persistent buffers by first name, in one order on all ranks."""
    module: nn.Module = named_module(names, list(executor.programs.values()))
    state: Mapping[str, torch.Tensor] = {**module.state_dict(), **executor.parameters}
    return ((name, state[name]) for name in sorted(names) if name in state)


class _SavedTensors:
    """Reads single tensors from a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files = checkpoint.FileSystemReader(folder)
        try:
            known: Mapping[str, Any] = self._files.read_metadata().state_dict_metadata
        except _UNREADABLE as error:
            raise UsageError(
                f"--load {folder}: no saved state is there ({type(error).__name__}); give a folder that "
                "autopart run --save wrote"
            ) from error
        self._known = known

    def read(self, keys: Sequence[str]) -> Tensors:
        """Return the whole tensors on the CPU."""
        found: Tensors = {}
        for key in keys:
            meta = self._known.get(key)
            if not isinstance(meta, TensorStorageMetadata):
                other = (
                    "it was saved with another optimizer or precision"
                    if key.startswith(f"{_OPTIMIZER}.")
                    else "give the state of the same model"
                )
                raise UsageError(f"--load {self._folder}: '{key}' is missing there; {other}")
            found[key] = torch.empty(meta.size, dtype=meta.properties.dtype)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
                checkpoint.load(found, storage_reader=self._files, no_dist=True)
        except CheckpointException as error:
            raise RunError(f"--load {self._folder}: {_cause(error)}") from error
        return found


def _cause(error: CheckpointException) -> str:
    """The first rank's error in one line."""
    for cause, _ in error.failures.values():
        return f"{type(cause).__name__}: {' '.join(str(cause).split())}"
    return "it failed on no rank"
