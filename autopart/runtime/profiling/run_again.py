"""What running a layer's forward again in its backward costs, and what still stays for it.

The layer's own program is put under the executor's treatment, so that what is measured is what a run
does: the second forward stops with the last tensor that the backward asks for, and with selective
recomputation it takes the products from the first. All layers run, in context. On a GPU the times are
those of the second forwards alone. On a CPU what torch does around each tensor that it does not keep takes
time of its own (up to a third of a forward of many small operations): there it is what a forward and
backward take longer than those of the same layer that keeps its stash.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn

from autopart.runtime.capture.split import split_layers
from autopart.runtime.execution.recomputed_layer import RecomputedLayer, can_keep_products
from autopart.runtime.execution.treated_layers import (
    Treatment,
    recomputing,
    selective,
    treat_layers,
)
from autopart.runtime.profiling.liveness import LiveStorages
from autopart.runtime.profiling.rounds import measure_layers
from autopart.runtime.profiling.segments import (
    BackwardCall,
    ForwardCall,
    Outputs,
    Segments,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.stash import storage_bytes, storage_key, storage_keys
from autopart.runtime.profiling.subject import Subject, without_ports
from autopart.runtime.profiling.timing import Reading, Stopwatch, summarize


class Again(NamedTuple):
    """A layer whose forward runs again."""

    time: float
    """Seconds that it takes more than one that keeps its stash, at least those of the second forward."""
    stash_bytes: int
    """What stays inside the layer all the same."""


class Alternatives(NamedTuple):
    """What can be done instead of keeping a layer's stash."""

    recompute: Again
    selective: Again | None
    """None where products are written into, or run where nobody sees them."""


def measure_again(
    subject: Subject, places: Collection[int], stopwatch: Stopwatch, repeats: int
) -> Mapping[int, Alternatives]:
    """For each of the layers at `places`, the median of `repeats` second forwards of either kind."""
    whole = _measure(subject, places, recomputing, stopwatch, repeats)
    programs = [segment.program for segment in subject.segments.layers]
    able = [p for p in places if can_keep_products(cast(fx.GraphModule, programs[p]))]
    part = _measure(subject, able, selective, stopwatch, repeats)
    return {place: Alternatives(whole[place], part.get(place)) for place in places}


def _measure(
    subject: Subject,
    places: Collection[int],
    treatment: Treatment,
    stopwatch: Stopwatch,
    repeats: int,
) -> dict[int, Again]:
    if not places:
        return {}
    segments, timed = _treated(subject, places, treatment, stopwatch)
    stays = _bytes_that_stay(segments, places, subject.state)
    samples: dict[int, list[float]] = {place: [] for place in places}
    for _ in range(repeats):
        keeping = _both_ways(subject.timed, stopwatch) if stopwatch.counts_host_work else {}
        again = _both_ways(segments, stopwatch)
        stopwatch.settle()
        for place, part in timed.items():
            more = again[place]() - keeping[place]() if keeping else 0.0
            samples[place].append(max(part.seconds(), more))
    return {place: Again(summarize(samples[place]).median, stays[place]) for place in places}


def _both_ways(segments: Segments, stopwatch: Stopwatch) -> dict[int, Reading]:
    """By layer, its forward and backward in one step of all."""
    readings = measure_layers(segments, stopwatch, halves=False)
    return {
        place: partial(_total, forward, readings.backward.get(place))
        for place, forward in readings.forward.items()
    }


def _total(forward: Reading, backward: Reading | None) -> float:
    return forward() + (backward() if backward else 0.0)


def _treated(
    subject: Subject, places: Collection[int], treatment: Treatment, stopwatch: Stopwatch
) -> tuple[Segments, dict[int, "_SecondRun"]]:
    """The model's segments with those at `places` treated, and where their second runs are timed."""
    layers, timed = list(subject.segments.layers), dict[int, _SecondRun]()
    names = {layers[place].name for place in places}
    programs = {program.layers[0]: program for program in split_layers(subject.captured, names)}
    for place in places:
        program = programs[layers[place].name]
        without_ports(program.module)
        treat_layers(program, {layers[place].name: treatment})
        (layer,) = (m for m in program.module.modules() if isinstance(m, RecomputedLayer))
        timed[place] = _SecondRun(layer.part, stopwatch)
        layer.part = timed[place]
        layers[place] = replace(layers[place], program=program.module)
    return replace(subject.segments, layers=tuple(layers)), timed


class _SecondRun(nn.Module):
    """A layer whose every second run is timed."""

    def __init__(self, part: nn.Module, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.part = part
        self._stopwatch = stopwatch
        self._is_first = True
        self._reading: Reading | None = None

    def forward(self, *inputs: Any) -> Any:
        if self._is_first:
            self._is_first = False
            return self.part(*inputs)
        outcome, self._reading = self._stopwatch.measure(lambda: self._outcome(inputs))
        self._is_first = True
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def seconds(self) -> float:
        """Of the last second run; 0 where the backward asked for nothing."""
        seconds = self._reading() if self._reading else 0.0
        self._is_first, self._reading = True, None
        return seconds

    def _outcome(self, inputs: Sequence[Any]) -> Any:
        try:
            return self.part(*inputs)
        except BaseException as stop:  # How torch ends a run that has given all that is needed.
            return stop


def _run(call: ForwardCall | BackwardCall) -> Any:
    return call.run()


def _bytes_that_stay(
    segments: Segments, places: Collection[int], state: Sequence[torch.Tensor]
) -> dict[int, int]:
    """What the layers at `places` hold after their forward, apart from values and the loss."""
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

        run_backward(segments, run_forward(segments, around_forward), _run)
    return stays


def _new_bytes(call: ForwardCall, outputs: Outputs, state: Sequence[torch.Tensor]) -> int:
    """Of the storages that the layer has made for its outputs, as far as these cover them."""
    known = storage_keys((*call.received.values(), *state))
    covered: dict[int, tuple[int, int]] = {}
    for tensor in outputs:
        key = storage_key(tensor)
        if key not in known:
            size, _ = covered.get(key, (0, 0))
            covered[key] = (size + tensor.nbytes, storage_bytes(tensor))
    return sum(map(min, covered.values()))
