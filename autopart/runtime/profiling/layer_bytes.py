"""Bytes for each layer, from one pass that watches the tensors that autograd saves.

Every storage that a layer's forward saves is of one of three kinds:

- State: a parameter, a buffer or a batch tensor. It does not count here.
- A value: received from another layer or handed to one. It is recorded as kept, and counts once
  however many layers keep it.
- The layer's own stash: everything else.

A value may be a view of another one, where a layer only reshapes. Both share one storage, which is
credited to the first one. A value may also be part of a larger storage. If that storage is kept,
its rest counts as the producer's stash.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from autopart.records.known_gpus import find_gpu
from autopart.runtime.capture.stage_modules import own_storage
from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.measuring.saved_tensors import (
    SavedStorages,
    storage_bytes,
    storage_key,
    storage_keys,
)
from autopart.runtime.profiling.layer_by_layer import (
    BackwardCall,
    ForwardCall,
    LayerPrograms,
    Outputs,
    loss_bytes,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.op_costs import OpCost, OpCosts
from autopart.runtime.profiling.roofline import memory_share

T = TypeVar("T")


class LayerBytes(NamedTuple):
    """Bytes that one layer keeps and needs for one microbatch, and its FLOPs."""

    stash_bytes: int
    workspace_bytes: int
    """Transient peak in the forward."""
    backward_workspace_bytes: int
    forward_flops: int
    memory_share: float = 0.0
    """Share of the layer's seconds that operations larger than a core's caches take, on a CPU; else 0."""


class ModelBytes(NamedTuple):
    """Bytes for all layers and values."""

    layers: tuple[LayerBytes, ...]
    kept_by: dict[str, tuple[str, ...]]
    """For each kept value, the layers whose backward needs it."""
    part_of: dict[str, str]
    """For each value inside another value's storage, that other value."""
    grad_extra: dict[str, dict[str, int]]
    """For each value whose gradient is part of a larger tensor, the other bytes in that tensor.

    They are listed by the layer that reads the value and makes the gradient.
    """
    loss_bytes: int
    """Bytes for the few numbers that the loss layer's rank keeps during the whole step."""


@dataclass(slots=True)
class _Forward:
    """Observations from one layer's forward, resolved after all forwards."""

    stash_bytes: int = 0
    peak_bytes: int = 0
    """Peak during the forward, above the live bytes at its start."""
    awaiting: tuple[str, ...] = ()
    flops: int = 0


@dataclass(slots=True)
class _ValueStorages:
    """Values, their storages, and the layers that keep them."""

    state: frozenset[int]
    """Storage keys for parameters, buffers, gradients and batch tensors."""
    owner: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """For each value, the first value with the same storage; None where it is state."""
    size: dict[str, int] = field(default_factory=dict[str, int])
    storage: dict[str, int] = field(default_factory=dict[str, int])
    """Whole storage below each value, in bytes."""
    sharers: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """For each value, all values that its layer made as views into the same storage."""
    keepers: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """For each value, indices for the layers that keep it."""


def measure_layer_bytes(
    programs: LayerPrograms, state: Iterable[torch.Tensor], device: torch.device
) -> ModelBytes:
    """Run all layers once, forward and backward, and count every byte.

    `state` are the parameters, buffers and batch tensors. Parameters must have gradients already
    (`Tensor.grad`), as for every microbatch except the first. The pass changes these gradients.
    """
    permanent = [*state]
    permanent += [t.grad for t in permanent if t.is_leaf and t.grad is not None]
    values = _ValueStorages(storage_keys(permanent))
    forwards: list[_Forward] = []
    backward_peaks = [0] * len(programs.layers)
    operations: dict[int, list[OpCost]] = {}
    extra: dict[str, dict[str, int]] = {}
    with LiveStorages() as live, OpCosts() as costs:
        for tensor in permanent:
            live.ignore(tensor)

        def note_extra(name: str, reader: str, gradient: torch.Tensor) -> torch.Tensor:
            rest = storage_bytes(gradient) - gradient.nbytes
            if rest > 0:
                extra.setdefault(name, {})[reader] = rest
            return own_storage(gradient)

        def around_forward(call: ForwardCall) -> Outputs:
            costs.take()
            layer = programs.layers[call.index]
            for name, tensor in call.received.items():
                if tensor.requires_grad:
                    tensor.register_hook(partial(note_extra, name, layer.name))
            with SavedStorages() as saved:
                outputs, peak = with_peak(call.run, live, device)
            made = dict(zip(layer.outputs, outputs, strict=True))
            made.pop(programs.loss, None)
            seen = _Forward(peak_bytes=peak, awaiting=call.awaiting)
            operations[call.index] = costs.take()
            seen.flops = sum(cost.flops for cost in operations[call.index])
            _enter_outputs(values, call.received, made)
            seen.stash_bytes = _enter_saved(values, call, made, saved.kept())
            forwards.append(seen)
            return outputs

        def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
            costs.take()
            gradients, peak = with_peak(call.run, live, device)
            backward_peaks[call.index] = peak
            operations[call.index] += costs.take()
            return gradients

        tape = run_forward(programs, around_forward)
        run_backward(programs, tape, around_backward)
    found = _resolved(programs, values, forwards, backward_peaks, loss_bytes(tape))
    layers = found.layers
    if device.type == "cpu":
        shares = (memory_share(operations[at], find_gpu("cpu")) for at in range(len(layers)))
        layers = tuple(
            layer._replace(memory_share=share) for layer, share in zip(layers, shares, strict=True)
        )
    return found._replace(layers=layers, grad_extra=extra)


def whole_stash_bytes(model_bytes: ModelBytes, value_bytes: Mapping[str, int]) -> int:
    """Return the whole model's stash as one stage. Every kept value counts once."""
    inside = sum(layer.stash_bytes for layer in model_bytes.layers)
    return inside + sum(value_bytes[name] for name in model_bytes.kept_by)


def with_peak(run: Callable[[], T], live: LiveStorages, device: torch.device) -> tuple[T, int]:
    """Return `run`'s result, and its peak above the live bytes before it.

    On a GPU the allocator also knows the kernels' scratch memory. The larger figure counts.
    """
    before = live.live_bytes
    live.reset_peak()
    if device.type != "cuda":
        return run(), live.peak_bytes - before
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device)
    result = run()
    torch.cuda.synchronize(device)
    allocator_peak = torch.cuda.max_memory_allocated(device) - allocated
    return result, max(live.peak_bytes - before, allocator_peak)


def _enter_outputs(
    values: _ValueStorages,
    received: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
) -> None:
    """Note which tensor owns each output's storage: a received value, the state, or the output."""
    from_outside: dict[int, str] = {}
    for name, tensor in received.items():
        from_outside.setdefault(storage_key(tensor), name)
    made: dict[int, list[str]] = {}
    for name, tensor in outputs.items():
        key = storage_key(tensor)
        values.size[name] = tensor.nbytes
        values.storage[name] = storage_bytes(tensor)
        if key in from_outside:
            values.owner[name] = values.owner[from_outside[key]]
        elif key in values.state:
            values.owner[name] = None
        else:
            values.owner[name] = name
            made.setdefault(key, []).append(name)
    for group in made.values():
        values.sharers.update(dict.fromkeys(group, tuple(group)))


def _enter_saved(
    values: _ValueStorages,
    call: ForwardCall,
    made: Mapping[str, torch.Tensor],
    saved: Mapping[int, int],
) -> int:
    """Note the values that the layer keeps. Returns all other bytes that it saved."""
    by_storage: dict[int, list[str]] = {}
    for name, tensor in (*call.received.items(), *made.items()):
        by_storage.setdefault(storage_key(tensor), []).append(name)
    stash = 0
    for key, size in saved.items():
        if key in by_storage:
            for name in by_storage[key]:
                _keep(values, name, call.index)
        elif key not in values.state:
            stash += size
    return stash


def _keep(values: _ValueStorages, name: str, layer: int) -> None:
    owner = values.owner[name]
    if owner is not None and layer not in values.keepers.setdefault(owner, []):
        values.keepers[owner].append(layer)


def _resolved(
    programs: LayerPrograms,
    values: _ValueStorages,
    forwards: Sequence[_Forward],
    backward_peaks: Sequence[int],
    loss_bytes: int,
) -> ModelBytes:
    producer = {v: i for i, layer in enumerate(programs.layers) for v in layer.outputs}
    kept = values.keepers
    # Step 1: bytes of kept values that each layer makes.
    kept_new = [0] * len(programs.layers)
    for name in kept:
        kept_new[producer[name]] += min(values.size[name], values.storage[name])
    # Step 2: the rest of a kept storage, beyond the values in it, is its producer's stash.
    rest = [0] * len(programs.layers)
    for group in {values.sharers[name] for name in kept}:
        covered = sum(values.size[name] for name in group if name in kept)
        rest[producer[group[0]]] += max(0, values.storage[group[0]] - covered)

    # Step 3: the workspace is the peak without the bytes that stay, but with live values that
    # nobody keeps: they wait for later layers.
    def forward_workspace(index: int, seen: _Forward) -> int:
        passing = {values.owner[name] for name in seen.awaiting} - {None, *kept}
        waiting = sum(values.storage[name] for name in passing if name is not None)
        kept_after = seen.stash_bytes + rest[index] + kept_new[index]
        return max(0, seen.peak_bytes - kept_after) + waiting

    layers = tuple(
        LayerBytes(
            stash_bytes=seen.stash_bytes + rest[index],
            workspace_bytes=forward_workspace(index, seen),
            backward_workspace_bytes=backward_peaks[index],
            forward_flops=seen.flops,
        )
        for index, seen in enumerate(forwards)
    )
    names = tuple(layer.name for layer in programs.layers)
    kept_by = {v: tuple(names[i] for i in by) for v, by in kept.items()}
    part_of = {name: owner for name, owner in values.owner.items() if owner and owner != name}
    return ModelBytes(layers, kept_by, part_of, {}, loss_bytes)
