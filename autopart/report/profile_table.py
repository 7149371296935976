"""A profile on the terminal: seconds and bytes per layer, and their sum against the whole model."""

from collections.abc import Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from autopart.records.kernels import KINDS
from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.profile import Profile, calibration_of, stash_error, time_error
from autopart.report.columns import add_number, add_text, new_table, plain, sizes, times
from autopart.report.labels import run_label, sibling_runs
from autopart.report.made_by import made_by
from autopart.text import counted
from autopart.units import format_bytes, format_time


def profile_report(profile: Profile) -> RenderableType:
    """The layer table; lines for the sum and for its distance from the whole model."""
    lines = [
        _totals_line(profile),
        *_whole_lines(profile),
        *_pace_lines(profile),
        *kernel_lines(profile),
    ]
    return Group(layer_table(profile), *(plain(line) for line in lines))


def profile_title(profile: Profile) -> str:
    """`zoo:gpt2-tiny on cpu, float32, microbatch of 4, measured`."""
    place = f"{profile.device.name}, {profile.dtype}, microbatch of {profile.microbatch_size}"
    return f"{profile.source.model} on {place}, {made_by(profile.method, calibration_of(profile))}"


def layer_table(profile: Profile) -> Table:
    """One row for each layer; neighbours with one measurement share a row."""
    layers = profile.graph.layers
    rows = folded_rows(layers)
    first = [layers[row.start] for row in rows]
    names = [layer.name for layer in layers]
    total = sum(_all_time(layer) for layer in layers)
    table = new_table(profile_title(profile))
    add_text(table, "layer")
    add_text(table, "kind")
    columns = [
        ("F", times([layer.forward_time for layer in first])),
        ("I", times([layer.input_grad_time for layer in first])),
        ("W", times([layer.weight_grad_time for layer in first])),
        ("stash", sizes([layer.stash_bytes for layer in first])),
        ("params", sizes([layer.param_bytes for layer in first])),
        ("output", sizes([_output_bytes(profile.graph, layer) for layer in first])),
    ]
    for head, (unit, _) in columns:
        add_number(table, f"{head}\n{unit}")
    add_number(table, "share\n%")
    for place, row in enumerate(rows):
        share = sum(_all_time(layers[i]) for i in row) / total if total else 0.0
        cells = [cells[place] for _, (_, cells) in columns]
        table.add_row(run_label(names, row), first[place].kind, *cells, f"{100 * share:.1f}")
    return table


def folded_rows(layers: Sequence[Layer]) -> list[range]:
    """Layer ranges, one for each row: numbered neighbours with one measurement share a row."""
    return sibling_runs(
        [layer.name for layer in layers], lambda one, other: _alike(layers[one], layers[other])
    )


def _alike(one: Layer, other: Layer) -> bool:
    return _shown(one) == _shown(other)


def _shown(layer: Layer) -> tuple[object, ...]:
    return (
        layer.kind,
        layer.forward_time,
        layer.input_grad_time,
        layer.weight_grad_time,
        layer.stash_bytes,
        layer.param_bytes,
    )


def _all_time(layer: Layer) -> float:
    return layer.forward_time + layer.input_grad_time + layer.weight_grad_time


def _output_bytes(graph: LayerGraph, layer: Layer) -> int:
    return sum(value.bytes for value in graph.values if value.producer == layer.name)


def _totals_line(profile: Profile) -> str:
    layers = profile.graph.layers
    tied = sum(tie.param_bytes * (len(tie.layers) - 1) for tie in profile.graph.tied)
    params = sum(layer.param_bytes for layer in layers) - tied
    return (
        f"{counted(len(layers), 'layer')}; F {format_time(sum(la.forward_time for la in layers))}, "
        f"I {format_time(sum(la.input_grad_time for la in layers))}, "
        f"W {format_time(sum(la.weight_grad_time for la in layers))}; "
        f"{profile.source.num_params:,} parameters in {format_bytes(params)}"
        + (
            "; a share covers all layers of its row"
            if len(folded_rows(layers)) < len(layers)
            else ""
        )
    )


def _whole_lines(profile: Profile) -> list[str]:
    whole = profile.whole
    if whole is None:
        return ["not compared with the whole model: nothing was run"]
    layers = whole.layers_forward_time + whole.layers_backward_time
    return [
        f"compared with the whole model: time {_signed(time_error(whole))} "
        f"({format_time(layers)} of {format_time(whole.forward_time + whole.backward_time)}), "
        f"stash {_signed(stash_error(whole))} "
        f"({format_bytes(whole.layers_stash_bytes)} of {format_bytes(whole.stash_bytes)})"
    ]


def _pace_lines(profile: Profile) -> list[str]:
    pace = profile.pace
    if pace is msgspec.UNSET:
        return []
    return [
        f"the machine's pace: a fixed piece of work took {format_time(pace.time)} "
        f"(spread {format_time(pace.spread)}, {counted(pace.samples, 'sample')})"
    ]


def kernel_lines(profile: Profile) -> list[str]:
    """The kernel model of an analytic profile, in one line; nothing without one."""
    if profile.kernels is msgspec.UNSET:
        return []
    model, own = profile.kernels, profile.kernels.kernels
    shares = ", ".join(f"{kind} {getattr(own.shares, kind):.0%}" for kind in KINDS)
    return [
        f"kernels as under {own.target}: {shares} of the peak rates; attention {model.attention}; "
        f"dropout {'yes' if model.dropout else 'no'}; gradients added {_ACCUMULATION[own.accumulation]}; "
        f"{model.optimizer}; {format_time(own.host_time)} of the host per operation"
    ]


_ACCUMULATION = {"fused": "by their products", "separate": "by operations of their own"}


def _signed(difference: float) -> str:
    """A difference in per cent; adding 0.0 turns -0.0 into 0.0."""
    return f"{round(difference, 3) + 0.0:+.1%}"
