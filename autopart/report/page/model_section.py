"""The model as its layers: cuts, replicas and policies."""

from collections.abc import Sequence

from autopart.cost.crossings import CutTraffic
from autopart.records.layer_graph import Layer
from autopart.records.plan import Plan, Stage, policy_of_layers
from autopart.report.labels import layers_label, ranks_label, run_label, sibling_runs
from autopart.report.page.contents import PageContents
from autopart.report.page.html_text import Column, Figure, escape, legend_html, table_html
from autopart.report.plan_table import nodes_of
from autopart.text import counted
from autopart.units import format_bytes, format_time

MOST_TALL = 12
"""Stages up to which each has room for its cut; with more, only cuts between nodes are written out."""
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
    layers = (
        {} if contents.beside is None else {one.name: one for one in contents.beside.graph.layers}
    )
    widest = max(_widths(stage, layers) for stage in plan.stages) or 1.0
    many = len(plan.stages) > MOST_TALL
    parts: list[str] = []
    for place, stage in enumerate(plan.stages):
        cut = contents.crossings.cuts[place - 1] if place else None
        if cut is not None and (not many or cut.between_nodes):
            parts.append(
                f'<li class="cut"><span class="visually-hidden">Cut: </span>{escape(_cut(plan, place, cut))}</li>'
            )
        parts.append(_stage(plan, place, stage, layers, widest))
    policies = {policy for stage in plan.stages for policy in policy_of_layers(stage).values()}
    legend = legend_html(
        "Policies", [(f"policy-{p}", f"{p}: {m}", m) for p, m in POLICIES.items() if p in policies]
    )
    widths = (
        "A block is as wide as its forward and backward take"
        if layers
        else "Each layer has a block of one width"
    )
    return Figure(
        name="model",
        title="The model in stages",
        lead=f"{counted(sum(len(s.layers) for s in plan.stages), 'layer')} in {counted(len(plan.stages), 'stage')}. "
        f"{widths}. Between stages stands what a cut carries per microbatch.",
        drawing=f'{legend}<ol class="stages{" many" if many else ""}" aria-label="Stages in pipeline order">{"".join(parts)}</ol>',
        table=_stage_table(plan) + _cut_table(contents) + _table(plan, layers),
    )


def _seconds(layer: Layer | None) -> float:
    if layer is None:
        return 1.0
    return layer.forward_time + layer.input_grad_time + layer.weight_grad_time


def _widths(stage: Stage, layers: dict[str, Layer]) -> float:
    return sum(_seconds(layers.get(name)) for name in stage.layers)


def _stage(plan: Plan, place: int, stage: Stage, layers: dict[str, Layer], widest: float) -> str:
    policies = policy_of_layers(stage)
    names = stage.layers
    runs: Sequence[range] = [range(at, at + 1) for at in range(len(names))]
    if sum(len(one.layers) for one in plan.stages) > MOST_BLOCKS:
        runs = sibling_runs(names, lambda a, b: policies[names[a]] == policies[names[b]])
    own = _widths(stage, layers) or 1.0
    blocks = "".join(_block(names, run, policies, layers, own) for run in runs)
    share = 100 * own / widest
    predicted = plan.prediction.stages[place]
    replicas = "" if len(stage.ranks) == 1 else f"{counted(len(stage.ranks), 'replica')}, "
    nodes = nodes_of(plan, stage.ranks)
    where = f"{replicas}rank{'s' * (len(stage.ranks) > 1)} {ranks_label(stage.ranks)}, "
    where += f"node{'s' * (len(nodes) > 1)} {ranks_label(nodes)}"
    times = f"F {format_time(predicted.forward_time)}, B {format_time(predicted.backward_time)}, "
    times += f"at most {predicted.in_flight} in flight"
    times += ", optimizer state on the host" if stage.optimizer_on_host else ""
    return (
        f'<li class="stage"><p><b>Stage {place}</b> <span>{escape(where)}</span> '
        f'<span class="times">{escape(times)}</span></p>'
        f'<div class="strip" style="width:{max(share, 4.0):.2f}%">{blocks}</div></li>'
    )


def _block(
    names: Sequence[str],
    run: range,
    policies: dict[str, str],
    layers: dict[str, Layer],
    whole: float,
) -> str:
    """The block of a run of layers; the stage's layers together have the width `whole`."""
    label = run_label(names, run)
    policy = policies[names[run.start]]
    width = sum(_seconds(layers.get(names[at])) for at in run)
    said = f"{label}: {POLICIES[policy]}"
    if layers:
        said += f"; {format_time(width)} forward and backward"
    return (
        f'<span class="layer policy-{policy}" style="flex:{max(100 * width / whole, 1e-3):.4g} 1 0" '
        f'title="{escape(said)}">{escape(label)}</span>'
    )


def _cut(plan: Plan, place: int, cut: CutTraffic) -> str:
    """What crosses the cut before a stage, for one microbatch."""
    before, after = plan.prediction.stages[place - 1], plan.prediction.stages[place]
    sends = f"{format_bytes(cut.forward_bytes)} forward in {format_time(before.send_time)}, "
    sends += f"{format_bytes(cut.backward_bytes)} back in {format_time(after.send_back_time)}"
    return f"{sends}, {_where(cut)}"


def _where(cut: CutTraffic) -> str:
    if cut.between_nodes and cut.within_nodes:
        return "within and between nodes"
    return (
        "between nodes"
        if cut.between_nodes
        else "within a node"
        if cut.within_nodes
        else "on one rank"
    )


def _stage_table(plan: Plan) -> str:
    columns = [
        Column("stage"), Column("layers", False), Column("ranks", False), Column("nodes", False), Column("F"), Column("B"),
        Column("busy"), Column("in flight"),
    ]  # fmt: skip
    rows = [
        (
            place,
            layers_label(stage.layers),
            ranks_label(stage.ranks),
            ranks_label(nodes_of(plan, stage.ranks)),
            format_time(predicted.forward_time),
            format_time(predicted.backward_time),
            format_time(predicted.busy_time),
            predicted.in_flight,
        )
        for place, (stage, predicted) in enumerate(
            zip(plan.stages, plan.prediction.stages, strict=True)
        )
    ]
    return table_html("Stages, per microbatch", columns, rows)


def _cut_table(contents: PageContents) -> str:
    plan, cuts = contents.plan, contents.crossings.cuts
    if not cuts:
        return ""
    columns = [
        Column("stages"), Column("forward"), Column("in"), Column("back"), Column("in"), Column("", False),
    ]  # fmt: skip
    rows = [
        (
            f"{place} to {place + 1}",
            format_bytes(cut.forward_bytes),
            format_time(plan.prediction.stages[place].send_time),
            format_bytes(cut.backward_bytes),
            format_time(plan.prediction.stages[place + 1].send_back_time),
            _where(cut),
        )
        for place, cut in enumerate(cuts)
    ]
    return table_html("What crosses each cut, per microbatch", columns, rows)


def _table(plan: Plan, layers: dict[str, Layer]) -> str:
    if not layers:
        return ""
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
