"""What each layer holds where its backward is split: one pass in which W waits, layer by layer.

Layers are replaced by those that the executor runs (runtime/execution/weight_gradients.py), whose backward
notes what W needs. Each storage that is noted counts once in its layer: a value that the layer received or
made apart from the rest, and what is there anyway (parameters, the batch) not at all.
"""

import weakref
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from autopart.graph import Halves
from autopart.runtime.capture.split import alone
from autopart.runtime.execution.weight_gradients import Deed, put_off, run_put_off
from autopart.runtime.profiling.accounting import with_peak
from autopart.runtime.profiling.liveness import LiveStorages
from autopart.runtime.profiling.segments import (
    BackwardCall,
    ForwardCall,
    Outputs,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.stash import storage_bytes, storage_key, storage_keys
from autopart.runtime.profiling.subject import Subject

NOTHING = Halves(
    waiting_bytes=0,
    waiting_value_bytes=0,
    input_grad_workspace_bytes=0,
    weight_grad_workspace_bytes=0,
)
"""Of a layer that no gradient reaches."""


def take_halves(subject: Subject) -> tuple[Halves, ...]:
    """Run all layers once, with their backwards in halves; the gradients of parameters are changed."""
    segments, device = subject.split, subject.leaves[0].device
    there = [*subject.state, *(t.grad for t in subject.state if t.is_leaf and t.grad is not None)]
    state = storage_keys(there)
    values: list[dict[int, weakref.ref[torch.UntypedStorage]]] = []
    found = [NOTHING] * len(segments.layers)
    with LiveStorages() as live:
        for tensor in there:
            live.ignore(tensor)

        def around_forward(call: ForwardCall) -> Outputs:
            for tensor in call.received.values():
                if tensor.requires_grad:
                    tensor.register_hook(alone)
            outputs = call.run()
            own = (*call.received.values(), *outputs)
            values.append({storage_key(t): weakref.ref(t.untyped_storage()) for t in own})
            return outputs

        def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
            deeds: list[Deed] = []
            with put_off(deeds):
                gradients, input_peak = with_peak(call.run, live, device)
            # Where a value has gone, a gradient may have taken its place in memory.
            alive = (key for key, storage in values[call.index].items() if storage() is not None)
            inside, of_values = _waiting(deeds, state, frozenset(alive))
            _, weight_peak = with_peak(partial(run_put_off, deeds), live, device)
            found[call.index] = Halves(
                waiting_bytes=inside,
                waiting_value_bytes=of_values,
                input_grad_workspace_bytes=input_peak,
                weight_grad_workspace_bytes=weight_peak,
            )
            return gradients

        tape = run_forward(segments, around_forward)
        run_backward(segments, tape, around_backward)
    return tuple(found)


def _waiting(
    deeds: Iterable[Deed], state: frozenset[int], values: frozenset[int]
) -> tuple[int, int]:
    """Bytes that wait inside the layer, and of values."""
    sizes = {storage_key(t): storage_bytes(t) for deed in deeds for t in deed.waiting}
    inside = sum(size for key, size in sizes.items() if key not in state and key not in values)
    return inside, sum(size for key, size in sizes.items() if key in values and key not in state)
