"""The rank grid: a card for each rank group, with its GPUs by their places."""

from itertools import groupby

from autopart.records.plan import Plan
from autopart.records.rank_group import Group, group_name
from autopart.report.labels import ranks_label
from autopart.report.page.contents import PageContents
from autopart.report.page.html_text import Column, Figure, escape, table_html
from autopart.report.rank_grid import GridLine, grid_lines
from autopart.text import counted

MOST_RANKS, MOST_GPUS = 64, 1024
"""Ranks and GPUs that are drawn."""
MOST_ROWS = 400
"""Rows of the table."""


def rank_figures(contents: PageContents) -> list[Figure]:
    """The section with the rank grid; none where each rank is one GPU."""
    plan = contents.plan
    if not isinstance(plan.group, Group):
        return []
    ranks = [list(own) for _, own in groupby(grid_lines(plan), key=lambda line: line.rank)]
    size = sum(len(gpus) for line in ranks[0] for gpus in line.gpus)
    shown = ranks[: min(MOST_RANKS, max(1, MOST_GPUS // size))]
    few = f" The first {len(shown)} of {counted(len(ranks), 'rank')} are drawn." * (
        len(shown) < len(ranks)
    )
    cards = "".join(_card(plan, plan.group, lines) for lines in shown)
    return [
        Figure(
            name="ranks",
            title="The GPUs of each rank",
            lead=f"Each rank is {counted(size, 'GPU')}: {group_name(plan.group)}. {_words(plan.group)}{few}",
            drawing=f'<ul class="ranks">{cards}</ul>',
            table=_table(plan, plan.group, ranks),
        )
    ]


def _words(group: Group) -> str:
    """What stands together in a card, from the inside out."""
    parts: list[str] = []
    if group.tensor > 1:
        parts.append("GPUs in one box share each layer's weights (tensor ranks)")
    if group.context > 1:
        parts.append("boxes in one line share each sequence (context ranks)")
    if group.expert * group.data > 1:
        kinds = ["expert ranks"] * (group.expert > 1) + ["data places"] * (group.data > 1)
        parts.append(f"lines have samples of their own ({' and '.join(kinds)})")
    said = "; ".join(parts)
    return f"{said[0].upper()}{said[1:]}."


def _card(plan: Plan, group: Group, lines: list[GridLine]) -> str:
    per_node, first = plan.cluster.gpus_per_node, lines[0]
    nodes = sorted({node for line in lines for node in line.nodes(per_node)})
    where = f"stage {ranks_label(first.stages)}, node {ranks_label(nodes)}"
    depth = 100 * first.stages[0] / max(len(plan.stages) - 1, 1)
    rows = "".join(f'<div class="places">{_line(group, line, per_node)}</div>' for line in lines)
    return (
        f'<li style="--depth:{depth:.0f}%"><p><strong>rank {first.rank}</strong> {escape(where)}</p>'
        f"{rows}</li>"
    )


def _line(group: Group, line: GridLine, per_node: int) -> str:
    words = _places(group, data=line.data, expert=line.expert)
    label = f'<span class="place">{escape(", ".join(words))}</span>' if words else ""
    boxes: list[str] = []
    for context, own in enumerate(line.gpus):
        chips = "".join(
            f'<span class="chip" title="{escape(_said(group, line, context, tensor, gpu, per_node))}">{gpu}</span>'
            for tensor, gpu in enumerate(own)
        )
        boxes.append(f'<span class="box">{chips}</span>')
    return label + "".join(boxes)


def _places(group: Group, **places: int) -> list[str]:
    """The places along the degrees above 1, in words."""
    return [f"{kind} {place}" for kind, place in places.items() if getattr(group, kind) > 1]


def _said(group: Group, line: GridLine, context: int, tensor: int, gpu: int, per_node: int) -> str:
    words = _places(group, tensor=tensor, context=context, expert=line.expert, data=line.data)
    return f"GPU {gpu}: {', '.join(words)}; rank {line.rank}, stage {ranks_label(line.stages)}, node {gpu // per_node}"


def _table(plan: Plan, group: Group, ranks: list[list[GridLine]]) -> str:
    """One row for each GPU."""
    kinds = [kind for kind in ("tensor", "context", "expert", "data") if getattr(group, kind) > 1]
    rows: list[tuple[object, ...]] = []
    for line in (line for lines in ranks for line in lines):
        for context, own in enumerate(line.gpus):
            for tensor, gpu in enumerate(own):
                place = {
                    "tensor": tensor, "context": context, "expert": line.expert, "data": line.data
                }  # fmt: skip
                node = gpu // plan.cluster.gpus_per_node
                stages = ranks_label(line.stages)
                rows.append((gpu, line.rank, stages, node, *(place[kind] for kind in kinds)))
        if len(rows) >= MOST_ROWS:
            break
    heads = [Column(name) for name in ("GPU", "rank", "stages", "node", *kinds)]
    return table_html("GPUs and their places", heads, rows[:MOST_ROWS])
