"""Measures a model layer by layer, or computes the times that an absent GPU would need.

    model ─capture─▶ layers ─one pass──▶ bytes ─┐
                        └────rounds────▶ times ─┴─▶ Profile, compared with the whole model

On a CPU or a GPU everything runs. On meta the same passes run on tensors without memory, under a
stopwatch that reads a GPU's roofline.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Unpack

import msgspec
import torch

from autopart.records.calibration import check_dtype, notes_on_kernels, notes_on_range
from autopart.records.gpu import Gpu
from autopart.records.kernels import KernelModel
from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import (
    Profile,
    Source,
    WholeModel,
    stash_error,
    time_error,
)
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.measuring.pace import pace_of
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.measuring.stopwatch import summarize
from autopart.runtime.models.user_code import user_code
from autopart.runtime.profiling.checkpoint_notes import notes_on_checkpoints
from autopart.runtime.profiling.convergence import MAX_WAITING, notes_on_pace, notes_on_rounds
from autopart.runtime.profiling.devices import describe_device, software_versions
from autopart.runtime.profiling.fused_ops import FusedOps
from autopart.runtime.profiling.group_variants import measure_variants, num_variants
from autopart.runtime.profiling.layer_bytes import whole_stash_bytes
from autopart.runtime.profiling.measured_graph import MeasuredBytes, measure_graph
from autopart.runtime.profiling.model_times import ModelTimes
from autopart.runtime.profiling.options import (
    ProfileKeywords,
    ProfileOptions,
    checked_options,
    kernels_asked,
)
from autopart.runtime.profiling.profiled_model import ProfiledModel, prepare_model
from autopart.runtime.profiling.whole_model import own_forward, runnable_forward
from autopart.units import format_share

TIME_TARGET = 0.10
STASH_TARGET = 0.02
"""Largest difference between the sum over the layers and the whole model without a warning."""


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
    graphs = 1 + num_variants(options)
    of_graph = 2 if gpu else options.warmup + options.repeats + 3 + options.compile
    steps = StepCounter(options.progress, 1 + graphs * of_graph + graphs - 1)
    steps.next("building and capturing the model")
    keep_freed_memory(torch.device(kind))
    profiled = _prepared(model, options, kind)
    beyond = _notes_on_calibration(profiled, options)
    # Hooks and opaque parts are the user's code, and they run here once more.
    call = f"{profiled.model.name}: the model, run layer by layer,"
    with user_code(call), torch.random.fork_rng(enabled=kind != "meta"), _fused_as_on(gpu):
        whole, notes = runnable_forward(profiled) if gpu else (own_forward(profiled), ())
        graph, found, times = measure_graph(profiled, whole, options, gpu, steps)
        variants, reasons = measure_variants(profiled, options, gpu, steps)
    steps.finish()
    summary = _whole_model(graph, found, times)
    return Profile(
        method="analytic" if gpu else "measured",
        source=_source(model, profiled, options),
        device=describe_device(kind, gpu),
        dtype=profiled.dtype,
        own_dtypes=True if profiled.has_own_dtypes else msgspec.UNSET,
        microbatch_size=options.microbatch_size,
        kernels=_kernel_model(options, gpu, times),
        warmup=0 if gpu else options.warmup,
        repeats=0 if gpu else len(times.rounds),
        pace=pace_of(times.paces, torch.device(kind)) or msgspec.UNSET,
        graph=graph,
        variants=variants,
        whole=summary,
        warnings=(
            *profiled.notes,
            *profiled.captured.warnings,
            *notes_on_checkpoints(profiled.captured.checkpointed, graph),
            *notes,
            *_notes_on_times(profiled, times, options.max_spread),
            *_warnings(summary, found, times),
            *reasons,
            *beyond,
            *_notes_on_largest(options, times),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _prepared(model: str, options: ProfileOptions, device: str) -> ProfiledModel:
    return prepare_model(
        model,
        options.microbatch_size,
        dtype=options.dtype,
        device=device,
        granularity=options.granularity,
        sequence_length=options.sequence_length,
    )


def _source(model: str, profiled: ProfiledModel, options: ProfileOptions) -> Source:
    compiler = {"torch.compile": "inductor"} if options.compile else {}
    return Source(
        model=model,
        graph_hash=profiled.captured.graph_hash,
        num_params=sum(parameter.numel() for parameter in profiled.model.parameters()),
        software={**software_versions(), **compiler},
    )


def _kernel_model(
    options: ProfileOptions, gpu: Gpu | None, times: ModelTimes
) -> KernelModel | msgspec.UnsetType:
    kernels = None if gpu is None else kernels_asked(options, gpu)
    if kernels is None or times.seen is None:
        return msgspec.UNSET
    return KernelModel(kernels=kernels, attention=times.seen.attention, dropout=times.seen.draws)


def _notes_on_calibration(profiled: ProfiledModel, options: ProfileOptions) -> Sequence[str]:
    """Say what the calibration does not cover. Raises ClusterError where it is for another dtype."""
    if options.calibration is None:
        return ()
    check_dtype(options.calibration, profiled.dtype)
    num_params = sum(parameter.numel() for parameter in profiled.model.parameters())
    return notes_on_range(options.calibration, num_params, options.microbatch_size)


def _notes_on_largest(options: ProfileOptions, times: ModelTimes) -> Sequence[str]:
    """Say which kernels are far beyond those that the calibration measured."""
    if options.calibration is None or times.seen is None:
        return ()
    return notes_on_kernels(options.calibration, times.seen.largest)


@contextmanager
def _fused_as_on(gpu: Gpu | None) -> Generator[None]:
    """On meta, use the fused operations that the computed device has."""
    if gpu is None:
        yield
    else:
        with FusedOps(dropout=gpu.name != "cpu"):
            yield


def _whole_model(graph: LayerGraph, found: MeasuredBytes, times: ModelTimes) -> WholeModel:
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
    waiting = times.waiting_share
    return (
        *notes_on_rounds(times.rounds, of_all, names, waiting, max_spread),
        *notes_on_pace(times.rounds, times.paces, waiting, max_spread),
    )


def _warnings(whole: WholeModel, found: MeasuredBytes, times: ModelTimes) -> Sequence[str]:
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
