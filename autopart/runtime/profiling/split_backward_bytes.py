"""Bytes that wait between I and W in each layer with a split backward, from one pass.

The layers run as in the executor (runtime/transforms/split_backward.py): I notes the tensors that W
needs, and W runs right after. Each noted storage counts once in its layer. Values that the layer
received or made count separately. Parameters and the batch do not count.
"""

import weakref
from collections.abc import Iterable, Sequence
from functools import partial

import torch

from autopart.records.layer_graph import SplitBackward
from autopart.runtime.capture.stage_modules import own_storage
from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.measuring.saved_tensors import storage_bytes, storage_key, storage_keys
from autopart.runtime.profiling.layer_by_layer import (
    BackwardCall,
    ForwardCall,
    Outputs,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.layer_bytes import with_peak
from autopart.runtime.profiling.profiled_model import ProfiledModel
from autopart.runtime.transforms.split_backward import DeferredWork, defer, run_deferred

NOTHING = SplitBackward(
    waiting_bytes=0,
    waiting_value_bytes=0,
    input_grad_workspace_bytes=0,
    weight_grad_workspace_bytes=0,
)
"""Bytes for a layer that no gradient reaches."""


def measure_split_backwards(profiled: ProfiledModel) -> tuple[SplitBackward, ...]:
    """Run all layers once with split backwards. The pass changes the parameters' gradients."""
    programs, device = profiled.split, profiled.leaves[0].device
    summed = (t.grad for t in profiled.state if t.is_leaf and t.grad is not None)
    existing = [*profiled.state, *summed]
    state = storage_keys(existing)
    values: list[dict[int, weakref.ref[torch.UntypedStorage]]] = []
    found = [NOTHING] * len(programs.layers)
    with LiveStorages() as live:
        for tensor in existing:
            live.ignore(tensor)

        def around_forward(call: ForwardCall) -> Outputs:
            for tensor in call.received.values():
                if tensor.requires_grad:
                    tensor.register_hook(own_storage)
            outputs = call.run()
            own = (*call.received.values(), *outputs)
            values.append({storage_key(t): weakref.ref(t.untyped_storage()) for t in own})
            return outputs

        def around_backward(call: BackwardCall) -> Sequence[torch.Tensor | None]:
            # Step 1: run I and collect the work that it defers.
            deferred: list[DeferredWork] = []
            with defer(deferred):
                gradients, input_peak = with_peak(call.run, live, device)
            # Step 2: count the tensors that wait. The storage of a value that is gone may have
            # been reused for a gradient, so only live values count as values.
            alive = (key for key, storage in values[call.index].items() if storage() is not None)
            inside, in_values = _waiting(deferred, state, frozenset(alive))
            # Step 3: run W.
            _, weight_peak = with_peak(partial(run_deferred, deferred), live, device)
            found[call.index] = SplitBackward(
                waiting_bytes=inside,
                waiting_value_bytes=in_values,
                input_grad_workspace_bytes=input_peak,
                weight_grad_workspace_bytes=weight_peak,
            )
            return gradients

        tape = run_forward(programs, around_forward)
        run_backward(programs, tape, around_backward)
    return tuple(found)


def _waiting(
    deferred: Iterable[DeferredWork], state: frozenset[int], values: frozenset[int]
) -> tuple[int, int]:
    """Return the bytes that wait inside the layer, and the bytes that wait in values."""
    sizes = {storage_key(t): storage_bytes(t) for work in deferred for t in work.waiting}
    inside = sum(size for key, size in sizes.items() if key not in state and key not in values)
    return inside, sum(size for key, size in sizes.items() if key in values and key not in state)
