"""Measures a model layer by layer, or computes the times that an absent GPU would need.

    model ─capture─▶ layers ─one pass──▶ bytes ─┐
                        └────rounds────▶ times ─┴─▶ Profile, compared with the whole model

On a CPU or a GPU everything runs. On meta the same passes run on tensors without memory, under a
stopwatch that reads a GPU's roofline.
"""

from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, Unpack

import msgspec
import torch

from autopart.records.known_gpus import Gpu
from autopart.records.layer_graph import LayerGraph, SplitBackward
from autopart.records.profile import (
    Profile,
    Source,
    WholeModel,
    stash_error,
    time_error,
)
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.measuring.stopwatch import stopwatch_of, summarize
from autopart.runtime.models.user_code import user_code
from autopart.runtime.profiling.checkpoint_notes import notes_on_checkpoints
from autopart.runtime.profiling.compiled import compiled, compiled_forward
from autopart.runtime.profiling.convergence import MAX_WAITING, notes_on_rounds
from autopart.runtime.profiling.devices import describe_device, software_versions
from autopart.runtime.profiling.fused_ops import FusedOps
from autopart.runtime.profiling.layer_bytes import (
    ModelBytes,
    measure_layer_bytes,
    whole_stash_bytes,
)
from autopart.runtime.profiling.layer_graph import LayerMeasurement, identical_layers, layer_graph
from autopart.runtime.profiling.model_times import Effort, ModelTimes, compute_times, measure_times
from autopart.runtime.profiling.options import ProfileKeywords, ProfileOptions, checked_options
from autopart.runtime.profiling.profiled_model import ProfiledModel, prepare_model
from autopart.runtime.profiling.recompute_cost import runs_twice
from autopart.runtime.profiling.split_backward_bytes import measure_split_backwards
from autopart.runtime.profiling.whole_model import (
    Forward,
    graph_forward,
    own_forward,
    runnable_forward,
    saved_bytes,
)
from autopart.units import format_share

TIME_TARGET = 0.10
STASH_TARGET = 0.02
"""Largest difference between the sum over the layers and the whole model without a warning."""


class _MeasuredBytes(NamedTuple):
    layers: ModelBytes
    split_backwards: tuple[SplitBackward, ...]
    """Bytes for each layer where its backward is split."""
    whole_bytes: int
    """Bytes that autograd keeps for the whole model."""
    graph_bytes: int
    """Bytes that autograd keeps for the captured graph, which may differ from the model's code."""
    once: frozenset[str]
    """Layers that change a buffer. A second forward would change it again."""


def profile_model(model: str, **keywords: Unpack[ProfileKeywords]) -> Profile:
    """Profile the model that `model` names (`model.py`, `package.module:function`, `zoo:…`).

    The keywords are the fields of `ProfileOptions` (profiling/options.py), which explains each.
    `profile_with_options` says more, and raises the same errors.
    """
    return profile_with_options(model, ProfileOptions(**keywords))


def profile_with_options(model: str, options: ProfileOptions) -> Profile:
    """Profile the model that `model` names (`model.py`, `package.module:function`, `zoo:…`).

    Times are medians over `repeats` rounds after `warmup` rounds that do not count. Up to three
    times as many rounds run until the last `repeats` agree within `max_spread`. If they never
    agree, the profile names the layers that scatter and a likely cause. Layers that run the same
    computation share one median, unless `each`. On device "meta" nothing is allocated, and times
    come from the roofline of `gpu`. Torch keeps its number of threads.

    Raises UsageError for options that contradict each other, ModelError for a model that cannot be
    profiled, ClusterError for an unknown GPU.
    """
    kind, gpu = checked_options(options)
    steps = StepCounter(
        options.progress, 3 if gpu else options.warmup + options.repeats + 4 + options.compile
    )
    steps.next("building and capturing the model")
    keep_freed_memory(torch.device(kind))
    profiled = prepare_model(
        model,
        options.microbatch_size,
        dtype=options.dtype,
        device=kind,
        granularity=options.granularity,
    )
    # Hooks and opaque parts are the user's code, and they run here once more.
    call = f"{profiled.model.name}: the model, run layer by layer,"
    with user_code(call), torch.random.fork_rng(enabled=kind != "meta"), _fused_as_on(gpu):
        steps.next("bytes of each layer")
        whole, notes = runnable_forward(profiled) if gpu else (own_forward(profiled), ())
        found = _measure_bytes(profiled, whole)
        recomputed = _worth_recomputing(profiled, found, options.each)
        times = _times(profiled, whole, options, gpu, recomputed, steps)
    steps.finish()
    measured = _measurements(profiled, times, options.each)
    graph = layer_graph(profiled, found.layers, found.split_backwards, measured)
    summary = _whole_model(graph, found, times)
    return Profile(
        method="analytic" if gpu else "measured",
        source=_source(model, profiled, options),
        device=describe_device(kind, gpu),
        dtype=profiled.dtype,
        own_dtypes=True if profiled.has_own_dtypes else msgspec.UNSET,
        microbatch_size=options.microbatch_size,
        warmup=0 if gpu else options.warmup,
        repeats=0 if gpu else len(times.rounds),
        graph=graph,
        whole=summary,
        warnings=(
            *profiled.notes,
            *profiled.captured.warnings,
            *notes_on_checkpoints(profiled.captured.checkpointed, graph),
            *notes,
            *_notes_on_times(profiled, times, options.max_spread),
            *_warnings(summary, found, times),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _times(
    profiled: ProfiledModel,
    whole: Forward,
    options: ProfileOptions,
    gpu: Gpu | None,
    recomputed: Collection[int],
    steps: StepCounter,
) -> ModelTimes:
    if gpu is not None:
        steps.next("times of each layer")
        return compute_times(profiled, whole, gpu, profiled.dtype, recomputed)
    if options.compile:
        steps.next("compiling the layers")
        profiled, whole = compiled(profiled), compiled_forward(profiled)
    effort = Effort(options.warmup, options.repeats, options.max_spread)
    stopwatch = stopwatch_of(torch.device(options.device))
    return measure_times(profiled, whole, stopwatch, effort, recomputed, steps)


def _source(model: str, profiled: ProfiledModel, options: ProfileOptions) -> Source:
    compiler = {"torch.compile": "inductor"} if options.compile else {}
    return Source(
        model=model,
        graph_hash=profiled.captured.graph_hash,
        num_params=sum(parameter.numel() for parameter in profiled.model.parameters()),
        software={**software_versions(), **compiler},
    )


@contextmanager
def _fused_as_on(gpu: Gpu | None) -> Generator[None]:
    """On meta, use the fused operations that the computed device has."""
    if gpu is None:
        yield
    else:
        with FusedOps(dropout=gpu.name != "cpu"):
            yield


def _measure_bytes(profiled: ProfiledModel, whole: Forward) -> _MeasuredBytes:
    buffers = dict(profiled.captured.module.named_buffers(remove_duplicate=False))
    before = {name: buffer._version for name, buffer in buffers.items()}
    layers = measure_layer_bytes(profiled.programs, profiled.state, profiled.leaves[0].device)
    changed = {name for name, buffer in buffers.items() if buffer._version != before[name]}
    once = {la.name for la in profiled.captured.layers if changed.intersection(la.buffers)}
    return _MeasuredBytes(
        layers=layers,
        split_backwards=measure_split_backwards(profiled),
        whole_bytes=saved_bytes(whole, profiled.state),
        graph_bytes=saved_bytes(graph_forward(profiled), profiled.state),
        once=frozenset(once),
    )


def _worth_recomputing(
    profiled: ProfiledModel, found: _MeasuredBytes, each: bool
) -> tuple[int, ...]:
    """Return the places where layers keep a stash inside and can run twice.

    Identical layers are represented by the first, unless `each`.
    """
    layers = profiled.captured.layers
    able = [
        place
        for place, (layer, kept) in enumerate(zip(layers, found.layers.layers, strict=True))
        if kept.stash_bytes and layer.name not in found.once
    ]
    groups = identical_layers(layers)
    chosen = [p for p in able if each or groups[layers[p].fingerprint][0] == p]
    return tuple(place for place in chosen if runs_twice(profiled, place))


def _measurements(profiled: ProfiledModel, times: ModelTimes, each: bool) -> list[LayerMeasurement]:
    """Return each layer's times in all rounds, pooled over identical layers unless `each`."""
    layers = profiled.captured.layers
    result: list[LayerMeasurement] = []
    groups = identical_layers(layers)
    for place, layer in enumerate(layers):
        members = (place,) if each else groups[layer.fingerprint]
        first = members[0]
        result.append(
            LayerMeasurement(
                times=tuple(r.layers[member] for member in members for r in times.rounds),
                update_time=times.updates[place],
                recompute_costs=times.recompute_costs.get(first),
                same_as=None if first == place else layers[first].name,
            )
        )
    return result


def _whole_model(graph: LayerGraph, found: _MeasuredBytes, times: ModelTimes) -> WholeModel:
    layers = graph.layers
    return WholeModel(
        forward_time=summarize([r.whole_forward for r in times.rounds]).median,
        backward_time=summarize([r.whole_backward for r in times.rounds]).median,
        layers_forward_time=sum(la.forward_time for la in layers),
        layers_backward_time=sum(la.input_grad_time + la.weight_grad_time for la in layers),
        stash_bytes=found.whole_bytes,
        layers_stash_bytes=whole_stash_bytes(
            found.layers, {value.name: value.bytes for value in graph.values}
        ),
    )


def _notes_on_times(profiled: ProfiledModel, times: ModelTimes, max_spread: float) -> Sequence[str]:
    names = [layer.name for layer in profiled.captured.layers]
    of_all = times.all_rounds or times.rounds
    return notes_on_rounds(times.rounds, of_all, names, times.waiting_share, max_spread)


def _warnings(whole: WholeModel, found: _MeasuredBytes, times: ModelTimes) -> Sequence[str]:
    notes: list[str] = []
    if times.waiting_share > MAX_WAITING:
        notes.append(
            f"other processes had the core for {format_share(times.waiting_share)} of the "
            "measurement; that time does not count, but they shared caches and memory too"
        )
    if abs(time_error(whole)) > TIME_TARGET:
        notes.append(
            f"the sum of the layers' times is {format_share(1 + time_error(whole))} of the whole "
            "model's step; layers far below a millisecond are mostly fixed cost"
        )
    if abs(stash_error(whole)) > STASH_TARGET:
        of_graph = found.graph_bytes / whole.stash_bytes if whole.stash_bytes else 1.0
        notes.append(
            f"the sum of the layers' stashes is {format_share(1 + stash_error(whole))} of the "
            "bytes that autograd keeps for the whole model; for the captured graph as a whole it "
            f"keeps {format_share(of_graph)}, because an exported model may take another path "
            "(masks are written out)"
        )
    return notes
