"""A plan on the terminal: its stages, its memory, its prediction and how good it is."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autopart.cluster import Cluster, num_gpus
from autopart.cost import plan_bottleneck
from autopart.plan import Plan
from autopart.report.columns import add_number, add_text, new_table, sizes, times
from autopart.report.memory_table import stage_memory_table
from autopart.report.names import chosen_label, layers_label, ranks_label
from autopart.sizes import ASSUMPTION
from autopart.units import format_bytes, format_share, format_time


def plan_report(plan: Plan) -> RenderableType:
    """The stages, their memory, and the figures of the whole step."""
    return Group(
        stage_table(plan), stage_memory_table(plan), *(Text(line) for line in figures(plan))
    )


def plan_title(plan: Plan) -> str:
    """`zoo:gpt2-tiny in 4 stages x 2 replicas on 8 of 8 cpu`, and the kind of profile."""
    replicas = sorted({len(stage.ranks) for stage in plan.stages})
    copies = "" if replicas == [1] else f" x {'/'.join(map(str, replicas))} replicas"
    used = len({rank for stage in plan.stages for rank in stage.ranks})
    stages = f"{len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}"
    return (
        f"{plan.origin.model} in {stages}{copies} "
        f"on {used} of {num_gpus(plan.cluster)} {plan.cluster.gpu} ({plan.origin.method})"
    )


def stage_table(plan: Plan) -> Table:
    """One row a stage: what runs where, how long, and what it holds."""
    stages = plan.prediction.stages
    bottleneck = max(stage.busy_time for stage in stages)
    columns = [
        ("F", times([stage.forward_time for stage in stages])),
        ("B", times([stage.backward_time for stage in stages])),
        ("busy", times([stage.busy_time for stage in stages])),
        ("peak", sizes([stage.peak_bytes for stage in stages])),
    ]
    table = new_table(plan_title(plan))
    add_number(table, "stage")
    add_text(table, "layers")
    add_text(table, "ranks")
    add_text(table, "nodes")
    for head, (unit, _) in columns[:3]:
        add_number(table, f"{head}\n{unit}")
    add_number(table, "in\nflight")
    add_number(table, f"peak\n{columns[3][1][0]}")
    add_number(table, "load\n%")
    for place, (stage, predicted) in enumerate(zip(plan.stages, stages, strict=True)):
        cells = [cells[place] for _, (_, cells) in columns]
        load = 100 * predicted.busy_time / bottleneck if bottleneck else 0.0
        table.add_row(
            str(place),
            layers_label(stage.layers),
            ranks_label(stage.ranks),
            ranks_label(nodes_of(plan.cluster, stage.ranks)),
            *cells[:3],
            str(predicted.in_flight),
            cells[3],
            f"{load:.0f}",
        )
    return table


def nodes_of(cluster: Cluster, ranks: tuple[int, ...]) -> list[int]:
    """The nodes that `ranks` sit on, each once."""
    return sorted({rank // cluster.gpus_per_node for rank in ranks})


DEEDS = {
    "recompute": "recomputes",
    "selective": "recomputes the cheap part of",
    "offload": "offloads",
}
"""What a stage does with the layers of each of its lists."""


def ways_lines(plan: Plan) -> list[str]:
    """Which layers each stage does not simply keep, a line for each way, and whose state lies on the host."""
    hosted = [place for place, stage in enumerate(plan.stages) if stage.optimizer_on_host]
    state = [f"optimizer state on the host: stages {ranks_label(hosted)}"] if hosted else []
    return state + [
        f"stage {place} {deed} {len(names)} of {len(stage.layers)} layers: {chosen_label(names)}"
        for place, stage in enumerate(plan.stages)
        for way, deed in DEEDS.items()
        if (names := getattr(stage, way))
    ]


def _order_lines(plan: Plan) -> list[str]:
    """Where the plan's own orders come from, and what the memory limit costs; none for a named one."""
    source = plan.origin.orders
    if source is None:
        return []
    without = source.step_time_without_cap
    cost = plan.prediction.step_time / without - 1 if without else 0.0
    return [
        f"orders by {source.method}; the memory limit costs {format_share(max(0.0, cost))} "
        f"({format_time(without)} without it)"
    ]


def figures(plan: Plan) -> list[str]:
    """The step, the bound and the recipe, a line each, within 80 columns where words allow."""
    prediction, certificate = plan.prediction, plan.certificate
    batch = plan.num_microbatches * plan.microbatch_size
    proven = (
        f"lower bound {format_time(certificate.lower_bound)}, gap {format_share(certificate.gap)}"
    )
    step, bubble = format_time(prediction.step_time), format_share(prediction.bubble)
    lines = [f"step {step}, {proven}, bubble {bubble}"]
    if plan.objective == "bottleneck":
        lines = [
            f"solved for the bottleneck: the busiest rank is busy for "
            f"{format_time(plan_bottleneck(plan))} of a step, {proven}",
            f"step {step}, bubble {bubble}",
        ]
    lines += [
        f"schedule {plan.schedule}, {plan.num_microbatches} microbatches of "
        f"{plan.microbatch_size} = batch of {batch}; "
        f"solver {plan.origin.solver}, {format_time(plan.origin.solve_seconds)}",
        *ways_lines(plan),
        *_order_lines(plan),
        f"the bound holds for {certificate.assumes}",
    ]
    syncs = [f"{sync.what} {format_time(sync.time)}" for sync in prediction.syncs]
    if syncs:
        lines.append(f"gradient syncs once a step: {'; '.join(syncs)}")
    if len(plan.sizes) > 1:
        sizes_searched = ", ".join(str(size.microbatch_size) for size in plan.sizes)
        lines.append(f"microbatch sizes searched: {sizes_searched}")
    return lines + notes_on_scaled(plan)


def notes_on_scaled(plan: Plan) -> list[str]:
    """What was assumed of the microbatch sizes that no profile was taken with, where there are such."""
    scaled = [size for size in plan.sizes if size.microbatch_size != size.profiled_size]
    if not scaled:
        return []
    which = ", ".join(f"{s.microbatch_size} from {s.profiled_size}" for s in scaled)
    return [f"scaled, not measured, are microbatch sizes {which}: {ASSUMPTION}"]


def comparison_table(plan: Plan, baselines: Mapping[str, Plan | str]) -> Table:
    """The plan beside other ways to cut the same model for the same cluster."""
    made = {"this plan": plan, **{n: p for n, p in baselines.items() if isinstance(p, Plan)}}
    values = [_minimised(other) for other in made.values()]
    unit, cells = times(values)
    peaks_unit, peaks = sizes([peak_bytes(other) for other in made.values()])
    table = new_table("beside the usual ways to cut")
    add_text(table, "split")
    add_number(table, f"{plan.objective} {unit}")
    add_number(table, "slower by")
    add_number(table, "bubble")
    add_number(table, f"peak {peaks_unit}")
    add_text(table, "")
    rows = zip(made.items(), values, cells, peaks, strict=True)
    for (name, other), value, cell, peak in rows:
        # Rounded here, and -0 made 0, so that a tie does not read "-0.0 %".
        slower = round(value / values[0] - 1, 4) + 0.0
        bubble = format_share(other.prediction.bubble)
        table.add_row(name, cell, format_share(slower), bubble, peak, "")
    for name, reason in baselines.items():
        if isinstance(reason, str):
            table.add_row(name, "-", "-", "-", "-", reason)
    return table


def _minimised(plan: Plan) -> float:
    """Seconds of what the plan minimises."""
    return plan.prediction.step_time if plan.objective == "step" else plan_bottleneck(plan)


def peak_bytes(plan: Plan) -> int:
    """The most that any rank holds."""
    return max(stage.peak_bytes for stage in plan.prediction.stages)


def reading_of(plan: Plan, *, batch_given: bool) -> str:
    """How the counts were read: `8 GPUs in all: 2 nodes x 4, …; a step of 32 samples …`."""
    cluster, per_gpu = plan.cluster, plan.num_microbatches / num_gpus(plan.cluster)
    batch = plan.num_microbatches * plan.microbatch_size
    default = (
        "" if batch_given else f" ({per_gpu:g} for each GPU, where no --global-batch is named)"
    )
    return (
        f"{num_gpus(cluster)} GPUs in all: {_nodes(cluster.num_nodes)} x {cluster.gpus_per_node}, "
        f"{_gpus(cluster)}; "
        f"a step of {batch} samples: {plan.num_microbatches} microbatches of "
        f"{plan.microbatch_size}{default}"
    )


def _gpus(cluster: Cluster) -> str:
    if not cluster.gpus:
        return f"each {cluster.gpu} with {format_bytes(cluster.memory_bytes)}"
    return ", then ".join(
        f"{group.count} x {group.name} with {format_bytes(group.memory_bytes)} at {group.speed:.3g} "
        "of the profile's speed"
        for group in cluster.gpus
    )


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count > 1 else ''}"
