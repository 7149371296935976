"""A plan on the terminal: stages, memory, prediction, and distance from the lower bound."""

from collections.abc import Iterator, Mapping

from rich.console import Group, RenderableType
from rich.table import Table

from autopart.cost.stage_syncs import exposed_time
from autopart.cost.stage_times import plan_bottleneck, plan_minimised
from autopart.records.cluster import Cluster, num_gpus
from autopart.records.expert_load import load_in_words
from autopart.records.group_choice import load_of
from autopart.records.microbatch_sizes import ASSUMPTION
from autopart.records.plan import Plan, Stage, schedule_of
from autopart.records.plan_degrees import (
    degrees_name,
    gpus_of_ranks,
    has_several_degrees,
    rank_sizes,
)
from autopart.records.problem import CUSTOM
from autopart.records.rank_group import expert_degree, group_name, group_size, samples_per_gpu
from autopart.report.columns import add_number, add_text, new_table, plain, sizes, times
from autopart.report.labels import chosen_label, layers_label, ranks_label
from autopart.report.made_by import made_by
from autopart.report.memory_table import stage_memory_table
from autopart.text import counted
from autopart.units import format_bytes, format_gap, format_share, format_time


def plan_report(plan: Plan) -> RenderableType:
    """Tables for the stages and their memory; lines for the step's figures."""
    return Group(
        stage_table(plan), stage_memory_table(plan), *(plain(line) for line in figures(plan))
    )


def plan_title(plan: Plan) -> str:
    """`zoo:gpt2-tiny in 4 stages x 2 replicas on 8 of 8 cpu (measured)`; a tensor degree stands behind them."""
    replicas = sorted({len(stage.ranks) for stage in plan.stages})
    copies = "" if replicas == [1] else f" x {'/'.join(map(str, replicas))} replicas"
    degrees = rank_sizes(plan)
    copies += f" x {degrees_name(plan)}" if max(degrees) > 1 else ""
    used = sum(degrees[rank] for rank in {rank for stage in plan.stages for rank in stage.ranks})
    stages = counted(len(plan.stages), "stage")
    method = made_by(plan.origin.method, plan.origin.calibration or None)
    return (
        f"{plan.origin.model} in {stages}{copies} "
        f"on {used} of {num_gpus(plan.cluster)} {plan.cluster.gpu} ({method})"
    )


def stage_table(plan: Plan) -> Table:
    """One row for each stage: layers, ranks, seconds per microbatch, and peak memory.

    The last column is the busy time in per cent, relative to the busiest stage.
    """
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
    several = has_several_degrees(plan)
    if several:
        # GPUs say the node, and a line has room for one of them.
        add_number(table, "degree")
        add_text(table, "GPUs")
    else:
        add_text(table, "nodes")
    for head, (unit, _) in columns[:3]:
        add_number(table, f"{head}\n{unit}")
    add_number(table, "in\nflight")
    add_number(table, f"peak\n{columns[3][1][0]}")
    add_number(table, "busy\n%")
    for place, (stage, predicted) in enumerate(zip(plan.stages, stages, strict=True)):
        cells = [cells[place] for _, (_, cells) in columns]
        share = 100 * predicted.busy_time / bottleneck if bottleneck else 0.0
        table.add_row(
            str(place),
            layers_label(stage.layers),
            ranks_label(stage.ranks),
            *(_own_gpus(plan, stage) if several else (ranks_label(nodes_of(plan, stage.ranks)),)),
            *cells[:3],
            str(predicted.in_flight),
            cells[3],
            f"{share:.0f}",
        )
    return table


def _own_gpus(plan: Plan, stage: Stage) -> tuple[str, str]:
    """The stage's own tensor degree, and its GPUs."""
    gpus = gpus_of_ranks(rank_sizes(plan))
    own = sorted(gpu for rank in stage.ranks for gpu in gpus[rank])
    return str(group_size(stage.group)), ranks_label(own)


def nodes_of(plan: Plan, ranks: tuple[int, ...]) -> list[int]:
    """The nodes that hold `ranks` of a plan, each once."""
    gpus, per_node = gpus_of_ranks(rank_sizes(plan)), plan.cluster.gpus_per_node
    return sorted({gpu // per_node for rank in ranks for gpu in gpus[rank]})


VERBS = {
    "recompute": "recomputes",
    "selective": "recomputes the cheap part of",
    "offload": "offloads",
}
"""The verb for the layers in each policy list of a stage."""


def policy_lines(plan: Plan) -> list[str]:
    """A line for each stage and policy with its layers, and one for state on the host."""
    hosted = [place for place, stage in enumerate(plan.stages) if stage.optimizer_on_host]
    state = [f"optimizer state on the host: stages {ranks_label(hosted)}"] if hosted else []
    return state + [
        f"stage {place} {verb} {len(names)} of {counted(len(stage.layers), 'layer')}: {chosen_label(names)}"
        for place, stage in enumerate(plan.stages)
        for policy, verb in VERBS.items()
        if (names := getattr(stage, policy))
    ]


def _order_lines(plan: Plan) -> list[str]:
    """The method that made the plan's own orders, and the price that the memory limit has.

    Empty where the schedule is a named one.
    """
    source = plan.origin.orders
    if source is None:
        return []
    without = source.step_time_without_cap
    cost = plan_minimised(plan) / without - 1 if without else 0.0
    return [
        f"orders by {source.method}; the memory limit costs {format_share(max(0.0, cost))} "
        f"({format_time(without)} without it)"
    ]


def _other_orders(plan: Plan) -> list[str]:
    """The share of the step that other orders could save; empty where the bound covers them."""
    demands, bound = plan.demands, plan.certificate.any_order_bound
    if plan.objective == "bottleneck" or CUSTOM in demands.schedules:
        return []
    own = plan_minimised(plan)
    saved = format_share(max(0.0, 1 - bound / own) if own else 0.0)
    hint = "" if demands.replicas_per_stage else ": --schedule auto looks for them"
    return [
        f"over every order the bound is {format_time(bound)}, so other orders save at most "
        f"{saved} of the {plan.objective}{hint}"
    ]


def figures(plan: Plan) -> list[str]:
    """Lines for the step, the bound, the schedule, the policies and the gradient syncs."""
    prediction, certificate = plan.prediction, plan.certificate
    batch = plan.num_microbatches * plan.microbatch_size
    proven = (
        f"lower bound {format_time(certificate.lower_bound)}, gap {format_gap(certificate.gap)}"
    )
    step, bubble = format_time(prediction.step_time), format_share(prediction.bubble)
    lines = [f"step {step}, {proven}, bubble {bubble}"]
    if plan.objective == "bottleneck":
        lines = [
            f"solved for the bottleneck: the busiest rank is busy for "
            f"{format_time(plan_bottleneck(plan))} of a step, {proven}",
            f"step {step}, bubble {bubble}",
        ]
    if plan.objective == "period":
        lines = [
            f"solved for the period: {format_time(plan_minimised(plan))} from step to step, back to back, "
            f"{proven}",
            f"one step alone {step}, bubble {bubble}",
        ]
    lines += [
        f"schedule {plan.schedule}, {counted(plan.num_microbatches, 'microbatch')} of "
        f"{plan.microbatch_size} = batch of {batch}; "
        f"solver {plan.origin.solver}, {format_time(plan.origin.solve_seconds)}",
        *_tensor_lines(plan),
        *policy_lines(plan),
        *_order_lines(plan),
        f"the bound holds for {certificate.assumes}",
        *_other_orders(plan),
    ]
    if prediction.syncs:
        lines.append(f"gradient syncs once per step: {'; '.join(_syncs(plan))}")
    searched = list(dict.fromkeys(size.microbatch_size for size in plan.sizes))
    if len(searched) > 1:
        lines.append(f"microbatch sizes searched: {', '.join(map(str, searched))}")
    return lines + notes_on_scaled(plan)


def _tensor_lines(plan: Plan) -> list[str]:
    """A line on the GPUs of a rank; empty without a tensor degree."""
    if has_several_degrees(plan):
        return [
            f"{degrees_name(plan)}: ranks stand side by side, each as many GPUs as its stage's degree says; "
            "seconds and bytes are those of one of them"
        ]
    t = group_size(plan.group)
    if t == 1:
        return []
    nodes = t // plan.cluster.gpus_per_node
    where = f", on {counted(nodes, 'node')}" if nodes > 1 else " of a node"
    return [
        f"{group_name(plan.group)}: rank q is the GPUs {t} q to {t} q + {t - 1}{where}; seconds and "
        "bytes are those of one of them",
        *(
            [f"expert ranks: {load_in_words(load_of(plan.demands.group, plan.group))} is assumed"]
            if expert_degree(plan.group) > 1
            else []
        ),
    ]


def _syncs(plan: Plan) -> Iterator[str]:
    """Each sync's seconds, and those of them that hide behind no compute."""
    split = {a.stage for order in schedule_of(plan) for a in order if a.op == "W"}
    for sync in plan.prediction.syncs:
        shown = exposed_time(sync, split=sync.parts is not None and sync.parts.stage in split)
        part = "all" if shown == sync.time else format_time(shown)
        yield f"{sync.what} {format_time(sync.time)}, {part} exposed"


def notes_on_scaled(plan: Plan) -> list[str]:
    """A note on microbatch sizes that have no profile; none where all were measured."""
    sizes = [(samples_per_gpu(size.microbatch_size, size.group), size) for size in plan.sizes]
    scaled = [(own, size.profiled_size) for own, size in sizes if own != size.profiled_size]
    if not scaled:
        return []
    named = dict.fromkeys(f"{own} from {profiled}" for own, profiled in scaled)
    which = ", ".join(named)
    return [f"scaled, not measured, are microbatch sizes {which}: {ASSUMPTION}"]


def comparison_table(plan: Plan, baselines: Mapping[str, Plan | str]) -> Table:
    """One row for the plan, and one for each other split on the same cluster."""
    made = {"this plan": plan, **{n: p for n, p in baselines.items() if isinstance(p, Plan)}}
    values = [plan_minimised(other) for other in made.values()]
    unit, cells = times(values)
    peaks_unit, peaks = sizes([peak_bytes(other) for other in made.values()])
    table = new_table("compared with the baselines")
    add_text(table, "split")
    add_number(table, f"{plan.objective} {unit}")
    add_number(table, "slower by")
    add_number(table, "bubble")
    add_number(table, f"peak {peaks_unit}")
    add_text(table, "")
    rows = zip(made.items(), values, cells, peaks, strict=True)
    for (name, other), value, cell, peak in rows:
        # Adding 0.0 turns a rounded -0.0 into 0.0, so a tie never reads "-0.0 %".
        slower = round(value / values[0] - 1, 4) + 0.0 if values[0] else None
        bubble = format_share(other.prediction.bubble)
        table.add_row(name, cell, format_gap(slower), bubble, peak, "")
    for name, reason in baselines.items():
        if isinstance(reason, str):
            table.add_row(name, "-", "-", "-", "-", reason)
    return table


def peak_bytes(plan: Plan) -> int:
    """Peak bytes on the fullest rank."""
    return max(stage.peak_bytes for stage in plan.prediction.stages)


def reading_of(plan: Plan, *, batch_given: bool) -> str:
    """The counts as they were understood: `8 GPUs in all: 2 nodes x 4, …; a step of 32 samples …`."""
    cluster, per_gpu = plan.cluster, plan.num_microbatches / num_gpus(plan.cluster)
    batch = plan.num_microbatches * plan.microbatch_size
    default = (
        "" if batch_given else f" ({per_gpu:g} for each GPU, where no --global-batch is named)"
    )
    return (
        f"{counted(num_gpus(cluster), 'GPU')} in all: {counted(cluster.num_nodes, 'node')} x {cluster.gpus_per_node}, "
        f"{_gpus(cluster)}; "
        f"a step of {counted(batch, 'sample')}: {counted(plan.num_microbatches, 'microbatch')} of "
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
