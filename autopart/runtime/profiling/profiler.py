"""Measures a model layer by layer, or computes what a GPU that is not at hand would need.

    model ─capture─▶ layers ─account─▶ bytes ─┐
                        └────rounds──▶ times ─┴─▶ Profile, held against the whole model

On a CPU or a GPU everything is run; on meta the same passes run on tensors without memory, under
the stopwatch of a GPU's roofline.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, get_args

import torch

from autopart.errors import UsageError
from autopart.gpus import Gpu
from autopart.graph import Halves, LayerGraph
from autopart.profile import MAX_SPREAD, Profile, Source, WholeModel, stash_error, time_error
from autopart.runtime.capture.capture import Granularity
from autopart.runtime.host_allocator import keep_freed_memory
from autopart.runtime.models.model import dtype_of
from autopart.runtime.profiling.accounting import Account, take_account, whole_stash_bytes
from autopart.runtime.profiling.devices import checked_device, describe_device, software_versions
from autopart.runtime.profiling.fused_ops import FusedOps
from autopart.runtime.profiling.halves import take_halves
from autopart.runtime.profiling.layer_graph import Measured, identical_layers, layer_graph
from autopart.runtime.profiling.measurement import Effort, Times, compute_times, measure_times
from autopart.runtime.profiling.progress import Progress, Steps
from autopart.runtime.profiling.steadiness import MAX_WAITING, notes_on_rounds
from autopart.runtime.profiling.subject import Subject, prepare_subject
from autopart.runtime.profiling.timing import stopwatch_of, summarize
from autopart.runtime.profiling.whole_model import (
    Forward,
    graph_forward,
    held_bytes,
    own_forward,
    runnable_forward,
)
from autopart.units import format_share

TIME_TARGET = 0.10
STASH_TARGET = 0.02
"""How far the sum of the layers may be from the whole model before the profile warns."""


class _Bytes(NamedTuple):
    account: Account
    halves: tuple[Halves, ...]
    """Of each layer, where its backward is split."""
    whole_bytes: int
    """What autograd holds for the whole model."""
    graph_bytes: int
    """What it holds for the captured graph, which may differ from the model's own code."""
    once: frozenset[str]
    """Layers that change a buffer: a second forward would change it again."""


def profile_model(
    model: str,
    *,
    microbatch_size: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    gpu: str | None = None,
    warmup: int = 2,
    repeats: int = 10,
    max_spread: float = MAX_SPREAD,
    each: bool = False,
    granularity: Granularity = "block",
    progress: Progress | None = None,
) -> Profile:
    """Profile the model that `model` names (`model.py`, `package.module:function`, `zoo:…`).

    Times are medians over `repeats` rounds after `warmup` that do not count. Up to three times as
    many are run until the last `repeats` agree within `max_spread` (interquartile range over median
    of the step); the profile says where they do not, and whose times and what cause it is. Layers
    that run the same computation share the median of all of them, unless `each`. On device "meta"
    nothing is allocated, and the times are those of the roofline of `gpu`. torch keeps the number
    of threads that it has.

    Raises UsageError for options that contradict each other, ModelError for a model that cannot
    be profiled, ClusterError for an unknown GPU.
    """
    kind, roofline_gpu = checked_device(device, gpu)
    dtype_of(dtype)
    if granularity not in get_args(Granularity):
        known = ", ".join(get_args(Granularity))
        raise UsageError(f"unknown granularity '{granularity}'; known: {known}")
    _check_counts(microbatch_size=(microbatch_size, 1), warmup=(warmup, 0), repeats=(repeats, 1))
    if not max_spread > 0.0:
        raise UsageError(f"--max-spread {format_share(max_spread)}: times always scatter a little")
    steps = Steps(progress, 3 if roofline_gpu else warmup + repeats + 4)
    steps.next("building and capturing the model")
    keep_freed_memory(torch.device(kind))
    subject = prepare_subject(
        model, microbatch_size, dtype=dtype, device=kind, granularity=granularity
    )
    with torch.random.fork_rng(enabled=kind != "meta"), _fused_as_on(roofline_gpu):
        steps.next("bytes of each layer")
        whole, notes = runnable_forward(subject) if roofline_gpu else (own_forward(subject), ())
        found = _take_bytes(subject, whole)
        again = _worth_running_again(subject, found, each)
        if roofline_gpu is None:
            stopwatch = stopwatch_of(torch.device(kind))
            effort = Effort(warmup, repeats, max_spread)
            times = measure_times(subject, whole, stopwatch, effort, again, steps)
        else:
            steps.next("times of each layer")
            times = compute_times(subject, whole, roofline_gpu, dtype, again)
    steps.finish()
    graph = layer_graph(subject, found.account, found.halves, _measured(subject, times, each))
    against = _whole_model(graph, found, times)
    return Profile(
        method="analytic" if roofline_gpu else "measured",
        source=_source(model, subject),
        device=describe_device(kind, roofline_gpu),
        dtype=dtype,
        microbatch_size=microbatch_size,
        warmup=0 if roofline_gpu else warmup,
        repeats=0 if roofline_gpu else len(times.rounds),
        graph=graph,
        whole=against,
        warnings=(
            *subject.captured.warnings,
            *notes,
            *_notes_on_times(subject, times, max_spread),
            *_warnings(against, found, times),
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _source(model: str, subject: Subject) -> Source:
    return Source(
        model=model,
        graph_hash=subject.captured.graph_hash,
        num_params=sum(parameter.numel() for parameter in subject.model.parameters()),
        software=software_versions(),
    )


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (count, least) in counts.items():
        if count < least:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} {count}: it must be at least {least}")


@contextmanager
def _fused_as_on(gpu: Gpu | None) -> Generator[None]:
    """On meta, the fused operations of the device whose times are asked for."""
    if gpu is None:
        yield
    else:
        with FusedOps(dropout=gpu.name != "cpu"):
            yield


def _take_bytes(subject: Subject, whole: Forward) -> _Bytes:
    buffers = dict(subject.captured.module.named_buffers(remove_duplicate=False))
    before = {name: buffer._version for name, buffer in buffers.items()}
    account = take_account(subject.segments, subject.state, subject.leaves[0].device)
    changed = {name for name, buffer in buffers.items() if buffer._version != before[name]}
    once = {la.name for la in subject.captured.layers if changed.intersection(la.buffers)}
    return _Bytes(
        account=account,
        halves=take_halves(subject),
        whole_bytes=held_bytes(whole, subject.state),
        graph_bytes=held_bytes(graph_forward(subject), subject.state),
        once=frozenset(once),
    )


def _worth_running_again(subject: Subject, found: _Bytes, each: bool) -> tuple[int, ...]:
    """One of each kind of layer, or each, that keeps a stash inside and can run twice."""
    layers = subject.captured.layers
    able = [
        place
        for place, (layer, held) in enumerate(zip(layers, found.account.layers, strict=True))
        if held.stash_bytes and layer.name not in found.once
    ]
    groups = identical_layers(layers)
    return tuple(p for p in able if each or groups[layers[p].fingerprint][0] == p)


def _measured(subject: Subject, times: Times, each: bool) -> list[Measured]:
    """For each layer its times in all rounds, together with its equals' unless `each`."""
    layers = subject.captured.layers
    result: list[Measured] = []
    groups = identical_layers(layers)
    for place, layer in enumerate(layers):
        members = (place,) if each else groups[layer.fingerprint]
        first = members[0]
        result.append(
            Measured(
                times=tuple(r.layers[member] for member in members for r in times.rounds),
                update_time=times.updates[place],
                again=times.again.get(first),
                same_as=None if first == place else layers[first].name,
            )
        )
    return result


def _whole_model(graph: LayerGraph, found: _Bytes, times: Times) -> WholeModel:
    layers = graph.layers
    return WholeModel(
        forward_time=summarize([r.whole_forward for r in times.rounds]).median,
        backward_time=summarize([r.whole_backward for r in times.rounds]).median,
        layers_forward_time=sum(la.forward_time for la in layers),
        layers_backward_time=sum(la.input_grad_time + la.weight_grad_time for la in layers),
        stash_bytes=found.whole_bytes,
        layers_stash_bytes=whole_stash_bytes(
            found.account, {value.name: value.bytes for value in graph.values}
        ),
    )


def _notes_on_times(subject: Subject, times: Times, max_spread: float) -> Sequence[str]:
    names = [layer.name for layer in subject.captured.layers]
    of_all = times.all_rounds or times.rounds
    return notes_on_rounds(times.rounds, of_all, names, times.waiting_share, max_spread)


def _warnings(whole: WholeModel, found: _Bytes, times: Times) -> Sequence[str]:
    notes: list[str] = []
    if times.waiting_share > MAX_WAITING:
        notes.append(
            f"for {format_share(times.waiting_share)} of the measurement something else had the "
            "core; that time is not counted, but caches and memory were shared too"
        )
    if abs(time_error(whole)) > TIME_TARGET:
        notes.append(
            f"the layers' times add up to {format_share(1 + time_error(whole))} of the whole "
            "model's step; layers of well under a millisecond are mostly fixed cost"
        )
    if abs(stash_error(whole)) > STASH_TARGET:
        of_graph = found.graph_bytes / whole.stash_bytes if whole.stash_bytes else 1.0
        notes.append(
            f"the layers' stash adds up to {format_share(1 + stash_error(whole))} of what autograd "
            f"holds for the whole model; the captured graph as one holds {format_share(of_graph)}, "
            "since an exported model may take another path (masks are written out, "
            "torch.utils.checkpoint is left out)"
        )
    return notes
