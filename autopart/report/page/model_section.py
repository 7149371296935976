"""The model as its layers: cuts, replicas and policies."""

from collections.abc import Sequence

from autopart.cost.crossings import Cut
from autopart.records.layer_graph import Layer
from autopart.records.plan import Plan, Stage, policy_of_layers
from autopart.report.labels import layers_label, ranks_label, run_label, sibling_runs
from autopart.report.page.contents import PageContents
from autopart.report.page.html_text import Column, Figure, escape, legend_html, table_html
from autopart.report.plan_table import nodes_of
from autopart.text import counted
from autopart.units import format_bytes, format_time

MOST_BLOCKS = 240
"""Layers up to which each has a block of its own; with more, equal neighbours share one."""
POLICIES = {
    "keep": "keeps its stash",
    "recompute": "runs its forward again",
    "selective": "runs its cheap part again",
    "offload": "keeps its stash on the host",
}


def model_figure(contents: PageContents) -> Figure:
    """The section with the layers of each stage."""
    plan = contents.plan
    layers = {} if contents.beside is None else {one.name: one for one in contents.beside.graph.layers}
    widest = max(_widths(stage, layers) for stage in plan.stages) or 1.0
    parts: list[str] = []
    for place, stage in enumerate(plan.stages):
        if place:
            parts.append(_cut(plan, place, contents.crossings.cuts[place - 1]))
        parts.append(_stage(plan, place, stage, layers, widest))
    policies = {policy for stage in plan.stages for policy in policy_of_layers(stage).values()}
    legend = legend_html(
        "Policies", [(f"policy-{p}", f"{p}: {m}", m) for p, m in POLICIES.items() if p in policies]
    )
    size = "the seconds of its forward and backward" if layers else "one layer each"
    return Figure(
        name="model",
        title="The model in stages",
        lead=f"{counted(sum(len(s.layers) for s in plan.stages), 'layer')} in {counted(len(plan.stages), 'stage')}. "
        f"The width of a block is {size}; between stages stands what a cut carries per microbatch.",
        drawing=f'{legend}<ol class="stages" aria-label="Stages in pipeline order">{"".join(parts)}</ol>',
        table=_table(plan, layers),
    )


def _seconds(layer: Layer | None) -> float:
    if layer is None:
        return 1.0
    return layer.forward_time + layer.input_grad_time + layer.weight_grad_time


def _widths(stage: Stage, layers: dict[str, Layer]) -> float:
    return sum(_seconds(layers.get(name)) for name in stage.layers)


def _stage(
    plan: Plan, place: int, stage: Stage, layers: dict[str, Layer], widest: float
) -> str:
    policies = policy_of_layers(stage)
    names = stage.layers
    runs: Sequence[range] = [range(at, at + 1) for at in range(len(names))]
    if sum(len(one.layers) for one in plan.stages) > MOST_BLOCKS:
        runs = sibling_runs(names, lambda a, b: policies[names[a]] == policies[names[b]])
    blocks = "".join(_block(names, run, policies, layers) for run in runs)
    share = 100 * _widths(stage, layers) / widest
    predicted = plan.prediction.stages[place]
    replicas = "" if len(stage.ranks) == 1 else f"{counted(len(stage.ranks), 'replica')}, "
    nodes = nodes_of(plan, stage.ranks)
    where = f"{replicas}rank{'s' * (len(stage.ranks) > 1)} {ranks_label(stage.ranks)}, "
    where += f"node{'s' * (len(nodes) > 1)} {ranks_label(nodes)}"
    host = ", optimizer state on the host" if stage.optimizer_on_host else ""
    return (
        f'<li class="stage"><p><b>Stage {place}</b> <span>{escape(where)}</span> '
        f"<span>F {escape(format_time(predicted.forward_time))}, B {escape(format_time(predicted.backward_time))}, "
        f"at most {predicted.in_flight} in flight{host}</span></p>"
        f'<div class="strip" style="width:{max(share, 4.0):.2f}%">{blocks}</div></li>'
    )


def _block(
    names: Sequence[str], run: range, policies: dict[str, str], layers: dict[str, Layer]
) -> str:
    label = run_label(names, run)
    policy = policies[names[run.start]]
    width = sum(_seconds(layers.get(names[at])) for at in run)
    said = f"{label}: {POLICIES[policy]}"
    if layers:
        said += f"; {format_time(width)} forward and backward"
    return (
        f'<span class="layer policy-{policy}" style="flex:{max(width, 1e-9):.6g} 1 0" '
        f'title="{escape(said)}">{escape(label)}</span>'
    )


def _cut(plan: Plan, place: int, cut: Cut) -> str:
    before, after = plan.prediction.stages[place - 1], plan.prediction.stages[place]
    sends = f"{format_bytes(cut.forward_bytes)} forward in {format_time(before.send_time)}, "
    sends += f"{format_bytes(cut.backward_bytes)} back in {format_time(after.send_back_time)}"
    if cut.between_nodes and cut.within_nodes:
        over = "within and between nodes"
    else:
        over = "between nodes" if cut.between_nodes else "within a node" if cut.within_nodes else "on one rank"
    return f'<li class="cut"><span class="visually-hidden">Cut: </span>{escape(f"{sends}, {over}")}</li>'


def _table(plan: Plan, layers: dict[str, Layer]) -> str:
    if not layers:
        columns = [Column("stage"), Column("layers", False), Column("ranks", False)]
        rows = [
            (place, layers_label(stage.layers), ranks_label(stage.ranks))
            for place, stage in enumerate(plan.stages)
        ]
        return table_html("Layers of each stage", columns, rows)
    columns = [
        Column("layer", False), Column("stage"), Column("policy", False), Column("forward"),
        Column("backward"), Column("parameters"), Column("stash"),
    ]  # fmt: skip
    body = [
        (
            name,
            place,
            policy,
            format_time(layers[name].forward_time),
            format_time(layers[name].input_grad_time + layers[name].weight_grad_time),
            format_bytes(layers[name].param_bytes),
            format_bytes(layers[name].stash_bytes),
        )
        for place, stage in enumerate(plan.stages)
        for name, policy in policy_of_layers(stage).items()
    ]
    return table_html("Layers, per microbatch as profiled", columns, body)
