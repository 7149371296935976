"""The rank grid: the GPUs of each rank group by their places, and the nodes and stages of each.

rank  stages  nodes  data  GPUs
   0       0      0     0  0–1 | 2–3      context ranks stand apart by |, each with its tensor ranks
   0       0      0     1  4–5 | 6–7
"""

from collections.abc import Iterator
from typing import NamedTuple

from rich.table import Table

from autopart.records.plan import Plan
from autopart.records.rank_group import Group, group_size
from autopart.report.columns import add_number, add_text, new_table
from autopart.report.labels import ranks_label
from autopart.text import counted

MOST_LINES = 16
"""Lines of the table on a terminal."""


class GridLine(NamedTuple):
    """The GPUs of one data place and expert rank of a rank group."""

    rank: int
    stages: tuple[int, ...]
    data: int
    expert: int
    gpus: tuple[tuple[int, ...], ...]
    """For each context rank the GPUs of its tensor ranks, in the order of their places."""

    def nodes(self, gpus_per_node: int) -> list[int]:
        """The nodes of these GPUs, each once."""
        return sorted({gpu // gpus_per_node for own in self.gpus for gpu in own})


def grid_lines(plan: Plan) -> Iterator[GridLine]:
    """The lines of all ranks in use, in rank order; none where each rank is one GPU."""
    group = plan.group
    if not isinstance(group, Group):
        return
    stages: dict[int, list[int]] = {}
    for place, stage in enumerate(plan.stages):
        for rank in stage.ranks:
            stages.setdefault(rank, []).append(place)
    for rank in sorted(stages):
        first = rank * group_size(group)
        for data in range(group.data):
            for expert in range(group.expert):
                starts = [
                    first
                    + ((data * group.expert + expert) * group.context + context) * group.tensor
                    for context in range(group.context)
                ]
                gpus = tuple(tuple(range(start, start + group.tensor)) for start in starts)
                yield GridLine(rank, tuple(stages[rank]), data, expert, gpus)


def rank_grid_table(plan: Plan) -> Table | None:
    """The first lines of the rank grid; None where each rank is one GPU."""
    lines, group = list(grid_lines(plan)), plan.group
    if not lines or not isinstance(group, Group):
        return None
    left = len(lines) - MOST_LINES
    caption = f"{counted(left, 'more line')} of the same kind" if left > 0 else None
    table = new_table("GPUs of each rank by their places", caption)
    add_number(table, "rank")
    add_text(table, "stages")
    add_text(table, "nodes")
    if group.data > 1:
        add_number(table, "data")
    if group.expert > 1:
        add_number(table, "expert")
    add_text(table, "GPUs, context ranks apart" if group.context > 1 else "GPUs")
    for line in lines[:MOST_LINES]:
        places = [str(line.data)] * (group.data > 1) + [str(line.expert)] * (group.expert > 1)
        table.add_row(
            str(line.rank),
            ranks_label(line.stages),
            ranks_label(line.nodes(plan.cluster.gpus_per_node)),
            *places,
            " | ".join(map(ranks_label, line.gpus)),
        )
    return table
