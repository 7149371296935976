"""The bytes of each layer, from one pass through all layers with autograd's saved tensors watched.

Every storage that a layer's forward saves is one of: a parameter, a buffer or an input of the
batch (state, or read from the data loader: counted nowhere here); a value received from another
layer or handed to one (recorded as kept, so that it counts once however many layers keep it); or
the layer's own stash.

A value may be a view of another one (a layer that only reshapes). Their storage is one, so it is
credited to the first of them. Where a value is a part of a larger storage that is kept, the rest of
that storage is added to its producer's stash.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from autopart.runtime.capture.split import alone
from autopart.runtime.profiling.liveness import LiveStorages
from autopart.runtime.profiling.op_costs import OpCosts
from autopart.runtime.profiling.segments import (
    BackwardCall,
    ForwardCall,
    Outputs,
    Segments,
    loss_bytes,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.stash import SavedStorages, storage_bytes, storage_key, storage_keys

T = TypeVar("T")


class LayerBytes(NamedTuple):
    """What one layer keeps and needs for one microbatch."""

    stash_bytes: int
    workspace_bytes: int
    """Of its forward."""
    backward_workspace_bytes: int
    forward_flops: int


class Account(NamedTuple):
    """The bytes of all layers of a model."""

    layers: tuple[LayerBytes, ...]
    kept_by: dict[str, tuple[str, ...]]
    """For each value that is kept, the layers whose backward keeps it."""
    part_of: dict[str, str]
    """For each value that lies in another one's storage, that one."""
    grad_extra: dict[str, dict[str, int]]
    """For each value whose gradient is a part of a larger tensor, the rest of that, by the reader that makes it."""
    loss_bytes: int
    """Of the numbers beside the layers that a rank with the layer that makes the loss holds all the time."""


@dataclass(slots=True)
class _Forward:
    """What was seen during one layer's forward; resolved when all have run."""

    stash_bytes: int = 0
    peak_bytes: int = 0
    """The most that was alive above what was alive when it started."""
    awaiting: tuple[str, ...] = ()
    flops: int = 0


@dataclass(slots=True)
class _Ledger:
    """What is known of values while the layers run."""

    state: frozenset[int]
    """Storages of parameters, buffers, gradients and inputs of the batch."""
    owner: dict[str, str | None] = field(default_factory=dict[str, str | None])
    """The first value with the same storage, itself perhaps; None where it is state."""
    size: dict[str, int] = field(default_factory=dict[str, int])
    storage: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes of the storage below each value."""
    sharers: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Values that one layer made as views of one storage."""
    keepers: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


def take_account(
    segments: Segments, state: Iterable[torch.Tensor], device: torch.device
) -> Account:
    """Run all layers once, forward and backward, and account for every byte.

    `state` are the parameters, buffers and inputs of the batch. Gradients of parameters must be
    there already (`Tensor.grad`), as they are for every microbatch but the first; they are changed.
    """
    kept_for_ever = [*state]
    kept_for_ever += [t.grad for t in kept_for_ever if t.is_leaf and t.grad is not None]
    ledger = _Ledger(storage_keys(kept_for_ever))
    forwards: list[_Forward] = []
    backward_peaks = [0] * len(segments.layers)
    extra: dict[str, dict[str, int]] = {}
    with LiveStorages() as live, OpCosts() as costs:
        for tensor in kept_for_ever:
            live.ignore(tensor)

        def note_extra(name: str, reader: str, gradient: torch.Tensor) -> torch.Tensor:
            rest = storage_bytes(gradient) - gradient.nbytes
            if rest > 0:
                extra.setdefault(name, {})[reader] = rest
            return alone(gradient)

        def around_forward(call: ForwardCall) -> Outputs:
            costs.take()
            for name, tensor in call.received.items():
                if tensor.requires_grad:
                    tensor.register_hook(
                        partial(note_extra, name, segments.layers[call.index].name)
                    )
            with SavedStorages() as saved:
                outputs, peak = with_peak(call.run, live, device)
            made = dict(zip(segments.layers[call.index].outputs, outputs, strict=True))
            made.pop(segments.loss, None)
            seen = _Forward(peak_bytes=peak, awaiting=call.awaiting)
            seen.flops = sum(cost.flops for cost in costs.take())
            _enter_outputs(ledger, call.received, made)
            seen.stash_bytes = _enter_saved(ledger, call, made, saved.held())
            forwards.append(seen)
            return outputs

        def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
            gradients, peak = with_peak(call.run, live, device)
            backward_peaks[call.index] = peak
            return gradients

        tape = run_forward(segments, around_forward)
        run_backward(segments, tape, around_backward)
    return _close(segments, ledger, forwards, backward_peaks, loss_bytes(tape))._replace(
        grad_extra=extra
    )


def whole_stash_bytes(account: Account, value_bytes: Mapping[str, int]) -> int:
    """What the account says that the whole model keeps, as one stage: every kept value once."""
    inside = sum(layer.stash_bytes for layer in account.layers)
    return inside + sum(value_bytes[name] for name in account.kept_by)


def with_peak(run: Callable[[], T], live: LiveStorages, device: torch.device) -> tuple[T, int]:
    """The result, and the most that was alive during the call above what was before it.

    On a GPU the allocator also knows the kernels' scratch memory: the larger figure counts.
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
    ledger: _Ledger, received: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]
) -> None:
    """Note whose storage each output has: a received value's, the state's, or a new one."""
    from_outside: dict[int, str] = {}
    for name, tensor in received.items():
        from_outside.setdefault(storage_key(tensor), name)
    made: dict[int, list[str]] = {}
    for name, tensor in outputs.items():
        key = storage_key(tensor)
        ledger.size[name] = tensor.nbytes
        ledger.storage[name] = storage_bytes(tensor)
        if key in from_outside:
            ledger.owner[name] = ledger.owner[from_outside[key]]
        elif key in ledger.state:
            ledger.owner[name] = None
        else:
            ledger.owner[name] = name
            made.setdefault(key, []).append(name)
    for group in made.values():
        ledger.sharers.update(dict.fromkeys(group, tuple(group)))


def _enter_saved(
    ledger: _Ledger,
    call: ForwardCall,
    made: Mapping[str, torch.Tensor],
    held: Mapping[int, int],
) -> int:
    """Note which values the layer keeps; the bytes of what else it saved."""
    values: dict[int, list[str]] = {}
    for name, tensor in (*call.received.items(), *made.items()):
        values.setdefault(storage_key(tensor), []).append(name)
    stash = 0
    for key, size in held.items():
        if key in values:
            for name in values[key]:
                _keep(ledger, name, call.index)
        elif key not in ledger.state:
            stash += size
    return stash


def _keep(ledger: _Ledger, name: str, layer: int) -> None:
    owner = ledger.owner[name]
    if owner is not None and layer not in ledger.keepers.setdefault(owner, []):
        ledger.keepers[owner].append(layer)


def _close(
    segments: Segments,
    ledger: _Ledger,
    forwards: Sequence[_Forward],
    backward_peaks: Sequence[int],
    loss_bytes: int,
) -> Account:
    producer = {v: i for i, layer in enumerate(segments.layers) for v in layer.outputs}
    kept = ledger.keepers
    rest = [0] * len(segments.layers)
    kept_new = [0] * len(segments.layers)
    for name in kept:
        size = min(ledger.size[name], ledger.storage[name])
        kept_new[producer[name]] += size
    for group in {ledger.sharers[name] for name in kept}:
        covered = sum(ledger.size[name] for name in group if name in kept)
        rest[producer[group[0]]] += max(0, ledger.storage[group[0]] - covered)

    def forward_workspace(index: int, seen: _Forward) -> int:
        passing = {ledger.owner[name] for name in seen.awaiting} - {None, *kept}
        waiting = sum(ledger.storage[name] for name in passing if name is not None)
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
    names = tuple(layer.name for layer in segments.layers)
    kept_by = {v: tuple(names[i] for i in by) for v, by in kept.items()}
    part_of = {name: owner for name, owner in ledger.owner.items() if owner and owner != name}
    return Account(layers, kept_by, part_of, {}, loss_bytes)
