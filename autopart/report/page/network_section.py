"""The nodes with their GPUs, and what goes over their links in a step."""

from collections.abc import Iterator, Mapping, Sequence

from autopart.records.cluster import num_gpus
from autopart.records.plan import Plan
from autopart.records.plan_degrees import gpus_of_ranks, rank_sizes
from autopart.report.labels import ranks_label
from autopart.report.page.contents import PageContents
from autopart.report.page.html_text import Column, Figure, escape, table_html
from autopart.report.plan_table import nodes_of
from autopart.text import counted
from autopart.units import format_bandwidth, format_bytes, format_time

MOST_NODES = 32
"""Nodes that are drawn; the table has more."""
MOST_ROWS = 400
"""Rows of the table."""
GPU_WIDTH, GPU_GAP, ROW, LEFT, TOP = 40, 4, 64, 76, 10
MOST_GPUS_IN_A_ROW = 16


def network_figure(contents: PageContents) -> Figure:
    """The section with the nodes."""
    plan, cluster = contents.plan, contents.plan.cluster
    shown = min(cluster.num_nodes, MOST_NODES)
    links = f"Within a node {format_bandwidth(cluster.intra_node.bandwidth)} per GPU"
    if cluster.num_nodes > 1:
        links += f", between nodes {format_bandwidth(cluster.inter_node.bandwidth)}"
    few = f" The first {MOST_NODES} nodes are drawn." if shown < cluster.num_nodes else ""
    return Figure(
        name="network",
        title="Nodes, and what crosses them",
        lead=f"{counted(num_gpus(cluster), 'GPU')} on {counted(cluster.num_nodes, 'node')}. {links}. A number in a "
        f"square is the stage of that GPU; curves are activations and gradients of one step.{few}",
        drawing=f'<div class="scroll" tabindex="0" role="region" aria-label="Drawing of the nodes">'
        f"{_drawing(plan, contents.crossings.nodes, shown)}</div>",
        table=_tables(contents),
    )


def _stages_of_gpus(plan: Plan) -> dict[int, list[int]]:
    """The stages on each GPU that has any."""
    gpus = gpus_of_ranks(rank_sizes(plan))
    found: dict[int, list[int]] = {}
    for place, stage in enumerate(plan.stages):
        for rank in stage.ranks:
            for gpu in gpus[rank]:
                found.setdefault(gpu, []).append(place)
    return found


def _drawing(plan: Plan, crossing: Mapping[tuple[int, int], int], shown: int) -> str:
    per_node = plan.cluster.gpus_per_node
    columns = min(per_node, MOST_GPUS_IN_A_ROW)
    lines = -(-per_node // columns)
    row = ROW + (lines - 1) * (GPU_WIDTH + GPU_GAP)
    box = columns * (GPU_WIDTH + GPU_GAP) + GPU_GAP
    stages = _stages_of_gpus(plan)
    parts: list[str] = []
    for node in range(shown):
        parts += _node(plan, node, row, box, stages)
        inside = crossing.get((node, node), 0)
        if inside:
            parts.append(
                f'<text class="small" x="{LEFT}" y="{TOP + node * row + row - 5}">'
                f"{escape(format_bytes(inside))} per step inside</text>"
            )
    between = {
        ends: size for ends, size in crossing.items() if ends[0] != ends[1] and ends[1] < shown
    }
    reach = max((b - a for a, b in between), default=0)
    largest = max(between.values(), default=1) or 1
    for (one, other), size in sorted(between.items()):
        parts.append(_arc(one, other, size, largest, row, LEFT + box))
    width = LEFT + box + (60 + 26 * min(reach, 12) + 100 if between else 10)
    height = TOP + shown * row + 10
    label = f"{counted(shown, 'node')} with their GPUs, and curves for what crosses between nodes; the table has the figures"
    return (
        f'<svg class="nodes" viewBox="0 0 {width} {height}" style="width:{width}px" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _node(
    plan: Plan, node: int, row: int, box: int, stages: Mapping[int, list[int]]
) -> Iterator[str]:
    per_node, count = plan.cluster.gpus_per_node, len(plan.stages)
    top = TOP + node * row
    columns = min(per_node, MOST_GPUS_IN_A_ROW)
    lines = -(-per_node // columns)
    height = lines * (GPU_WIDTH - 8 + GPU_GAP) + GPU_GAP
    yield f'<text x="0" y="{top + 25}">node {node}</text>'
    yield f'<rect class="node" x="{LEFT}" y="{top}" width="{box}" height="{height}" rx="6"/>'
    for at in range(per_node):
        gpu = node * per_node + at
        x = LEFT + GPU_GAP + at % columns * (GPU_WIDTH + GPU_GAP)
        y = top + GPU_GAP + at // columns * (GPU_WIDTH - 8 + GPU_GAP)
        own = stages.get(gpu, [])
        depth = 100 * own[0] / max(count - 1, 1) if own else 0
        style = f' style="--depth:{depth:.0f}%"' if own else ""
        said = f"GPU {gpu}: stage {ranks_label(own)}" if own else f"GPU {gpu}: idle"
        label = ranks_label(own) if own and len(own) < 3 else f"{own[0]}…" if own else ""
        side = GPU_WIDTH - 8
        yield (
            f'<g><title>{escape(said)}</title><rect class="gpu{"" if own else " unused"}" x="{x}" y="{y}" '
            f'width="{GPU_WIDTH}" height="{side}" rx="4"{style}/>'
            f'<text class="in" x="{x + GPU_WIDTH / 2}" y="{y + side / 2 + 4}">{label}</text></g>'
        )


def _arc(one: int, other: int, size: int, largest: int, row: int, x: int) -> str:
    top, bottom = TOP + one * row + 22, TOP + other * row + 14
    out = x + 30 + 26 * min(other - one, 12)
    width = 1.5 + 4.5 * (size / largest) ** 0.5
    middle = (top + bottom) / 2
    text = ""
    if other - one == 1 or size == largest:
        text = f'<text class="small" x="{(x + 3 * out) / 4 + 8:.0f}" y="{middle + 4:.0f}">{escape(format_bytes(size))}</text>'
    return (
        f"<g><title>node {one} and node {other}: {escape(format_bytes(size))} per step</title>"
        f'<path class="arc" d="M{x + 2} {top} C{out} {top} {out} {bottom} {x + 2} {bottom}" '
        f'stroke-width="{width:.1f}"/>{text}</g>'
    )


def _tables(contents: PageContents) -> str:
    plan, crossing = contents.plan, contents.crossings.nodes
    rows = [
        (f"{one} and {other}" if one != other else f"{one}, inside", format_bytes(size))
        for (one, other), size in sorted(crossing.items())[:MOST_ROWS]
    ]
    columns = [Column("nodes", False), Column("per step")]
    tables = table_html("Activations and gradients that ranks send in a step", columns, rows)
    syncs = [
        (
            sync.what,
            ranks_label(sync.ranks),
            ranks_label(_nodes(plan, sync.ranks)),
            format_time(sync.time),
        )
        for sync in plan.prediction.syncs[:MOST_ROWS]
    ]
    if not syncs:
        return tables
    columns = [
        Column("gradients", False),
        Column("ranks", False),
        Column("nodes", False),
        Column("sync"),
    ]
    return tables + table_html("Gradient syncs, once per step", columns, syncs)


def _nodes(plan: Plan, ranks: Sequence[int]) -> list[int]:
    return nodes_of(plan, tuple(ranks))
