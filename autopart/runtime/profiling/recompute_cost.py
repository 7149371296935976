"""Cost of recomputing a layer: seconds added to its backward, and bytes that stay all the same.

The layer's own program gets the executor's policy, so that the measurement shows what a run does.
The second forward stops with the last tensor that the backward asks for. With selective
recomputation it takes the products from the first forward. All layers run, in context.

On a GPU the times are the second forwards' own times. On a CPU torch's work around each dropped
tensor takes time as well, up to a third in a forward with many small operations. There the cost is
the difference between two runs of forward and backward: with the policy, and with all stash kept.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from autopart.runtime.capture.call_outputs import calls_opaque_code
from autopart.runtime.capture.stage_modules import split_layers
from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.measuring.saved_tensors import storage_bytes, storage_key, storage_keys
from autopart.runtime.measuring.stopwatch import PendingTime, Stopwatch, summarize
from autopart.runtime.profiling.layer_by_layer import (
    BackwardCall,
    ForwardCall,
    LayerPrograms,
    Outputs,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.profiled_model import ProfiledModel, without_ports
from autopart.runtime.profiling.rounds import measure_layers
from autopart.runtime.transforms.layer_policies import (
    Policy,
    apply_policies,
    recomputing,
    selective,
)
from autopart.runtime.transforms.recomputed_layer import RecomputedLayer, can_keep_products


class RecomputeCost(NamedTuple):
    """One layer's cost if its forward runs again in its backward."""

    time: float
    """Seconds added to forward and backward, at least the second forward's own."""
    stash_bytes: int
    """Bytes that the layer keeps inside all the same."""


class AlternativeCosts(NamedTuple):
    """Costs of the alternatives to keeping one layer's stash."""

    recompute: RecomputeCost
    selective: RecomputeCost | None
    """None where products cannot be kept: they are written into, or run inside other code."""


def measure_recompute_costs(
    profiled: ProfiledModel, places: Collection[int], stopwatch: Stopwatch, repeats: int
) -> Mapping[int, AlternativeCosts]:
    """Measure both kinds for the layers at `places`: medians over `repeats`."""
    full = _measure(profiled, places, recomputing, stopwatch, repeats)
    layers = profiled.programs.layers
    able = [place for place in places if can_keep_products(layers[place].module)]
    partly = _measure(profiled, able, selective, stopwatch, repeats)
    return {place: AlternativeCosts(full[place], partly.get(place)) for place in places}


def runs_twice(profiled: ProfiledModel, place: int) -> bool:
    """Tell whether the layer's forward can run again in its backward.

    Captured operations can. Opaque code is tried once: code that computes gradients itself, or
    takes another path the second time, fails.
    """
    layer = profiled.programs.layers[place]
    if not calls_opaque_code(layer.module):
        return True
    programs, _ = _with_policy(profiled, [place], recomputing, None)
    try:
        run_backward(programs, run_forward(programs, _run), _run)
    # The user's code runs in an unusual place here, and may raise any exception.
    except Exception:
        return False
    return True


def _measure(
    profiled: ProfiledModel,
    places: Collection[int],
    policy: Policy,
    stopwatch: Stopwatch,
    repeats: int,
) -> dict[int, RecomputeCost]:
    if not places:
        return {}
    # Step 1: the same layers under the policy, with a stopwatch around each second forward.
    programs, timed = _with_policy(profiled, places, policy, stopwatch)
    # Step 2: one untimed pass counts the bytes that stay.
    stays = _bytes_that_stay(programs, places, profiled.state)
    # Step 3: timed passes. Where host work counts, each compares with a pass that keeps all stash.
    samples: dict[int, list[float]] = {place: [] for place in places}
    for _ in range(repeats):
        keeping = (
            _step_times(profiled.timed_plainly, stopwatch) if stopwatch.counts_host_work else {}
        )
        recomputing_times = _step_times(programs, stopwatch)
        stopwatch.settle()
        for place, second in timed.items():
            added = recomputing_times[place]() - keeping[place]() if keeping else 0.0
            samples[place].append(max(second.seconds(), added))
    return {
        place: RecomputeCost(summarize(samples[place]).median, stays[place]) for place in places
    }


def _step_times(programs: LayerPrograms, stopwatch: Stopwatch) -> dict[int, PendingTime]:
    """Run one step and return each layer's forward and backward time together."""
    readings = measure_layers(programs, stopwatch, split=False)
    return {
        place: partial(_total, forward, readings.backward.get(place))
        for place, forward in readings.forward.items()
    }


def _total(forward: PendingTime, backward: PendingTime | None) -> float:
    return forward() + (backward() if backward else 0.0)


def _with_policy(
    profiled: ProfiledModel, places: Collection[int], policy: Policy, stopwatch: Stopwatch | None
) -> tuple[LayerPrograms, dict[int, "_SecondRun"]]:
    """Return the programs with `policy` on the layers at `places`, and their timed second runs.

    Without a stopwatch nothing is timed.
    """
    layers, timed = list(profiled.programs.layers), dict[int, _SecondRun]()
    names = {layers[place].name for place in places}
    stages = {stage.layers[0]: stage for stage in split_layers(profiled.captured, names)}
    for place in places:
        stage = stages[layers[place].name]
        without_ports(stage.module)
        apply_policies(stage, {layers[place].name: policy})
        (layer,) = (m for m in stage.module.modules() if isinstance(m, RecomputedLayer))
        if stopwatch is not None:
            timed[place] = _SecondRun(layer.part, stopwatch)
            layer.part = timed[place]
        layers[place] = replace(layers[place], module=stage.module)
    return replace(profiled.programs, layers=tuple(layers)), timed


class _SecondRun(nn.Module):
    """A layer that times every second run."""

    def __init__(self, part: nn.Module, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.part = part
        self._stopwatch = stopwatch
        self._is_first = True
        self._reading: PendingTime | None = None

    def forward(self, *inputs: Any) -> Any:
        if self._is_first:
            self._is_first = False
            return self.part(*inputs)
        outcome, self._reading = self._stopwatch.measure(lambda: self._outcome(inputs))
        self._is_first = True
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def seconds(self) -> float:
        """Return the last second run's time; 0 where the backward asked for nothing."""
        seconds = self._reading() if self._reading else 0.0
        self._is_first, self._reading = True, None
        return seconds

    def _outcome(self, inputs: Sequence[Any]) -> Any:
        try:
            return self.part(*inputs)
        # Torch ends a second forward with an exception of its own once all needed tensors are
        # there. The time counts up to it. The user's code may raise any other; both are passed on.
        except Exception as stop:
            return stop


def _run(call: ForwardCall | BackwardCall) -> Any:
    return call.run()


def _bytes_that_stay(
    programs: LayerPrograms, places: Collection[int], state: Sequence[torch.Tensor]
) -> dict[int, int]:
    """Return the bytes that layers at `places` keep after forward, without values and loss."""
    stays: dict[int, int] = {}
    with LiveStorages() as live:
        for tensor in state:
            live.ignore(tensor)

        def around_forward(call: ForwardCall) -> Outputs:
            before = live.live_bytes
            outputs = call.run()
            if call.index in places:
                stays[call.index] = live.live_bytes - before - _new_bytes(call, outputs, state)
            return outputs

        run_backward(programs, run_forward(programs, around_forward), _run)
    return stays


def _new_bytes(call: ForwardCall, outputs: Outputs, state: Sequence[torch.Tensor]) -> int:
    """Return the bytes that the layer's outputs cover in new storages."""
    known = storage_keys((*call.received.values(), *state))
    covered: dict[int, tuple[int, int]] = {}
    for tensor in outputs:
        key = storage_key(tensor)
        if key not in known:
            size, _ = covered.get(key, (0, 0))
            covered[key] = (size + tensor.nbytes, storage_bytes(tensor))
    # Views may overlap: together they cover at most the whole storage.
    return sum(map(min, covered.values()))
