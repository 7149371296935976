"""Memory on the terminal: a row for each stage, or each kind of byte on every rank."""

import itertools
from collections.abc import Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from autopart.cost.memory import rank_memory, total
from autopart.records.cluster import smallest_memory
from autopart.records.plan import Plan, schedule_of, stage_ranks
from autopart.records.prediction import MemoryUse
from autopart.report.columns import add_number, add_text, new_table, sizes
from autopart.report.labels import ranks_label
from autopart.units import format_share

COLUMNS: dict[str, tuple[str, ...]] = {
    "weights": ("weights", "versions"),
    "grads": ("gradients",),
    "optim.": ("optimizer", "master"),
    "stash": ("stash", "borrowed"),
    "work": ("workspace",),
    "buffers": ("receives", "sends", "batch"),
    "reserve": ("reserve",),
}
"""Columns in the stage table. Together they hold every kind in `ON_DEVICE`."""

MEANINGS = {
    "weights": "weights and the model's buffers",
    "gradients": "gradients",
    "master": "float32 master copies",
    "optimizer": "optimizer state",
    "versions": "older versions of the weights",
    "stash": "stash of all microbatches in flight",
    "loss_stash": "  of which logits and loss",
    "workspace": "workspace of the largest layer",
    "recomputed": "  of which recomputed stash",
    "loss_workspace": "  of which for the loss",
    "receives": "receive buffers",
    "sends": "send buffers",
    "batch": "part of the batch",
    "borrowed": "stash that another rank lends",
    "reserve": "the framework's reserve",
    "host": "on the host, in addition",
}
"""The label for each field in `MemoryUse`, in row order."""

RANKS_SIDE_BY_SIDE = 5
"""Rank columns that fit into 80 columns on a terminal."""
LONGEST_LABEL = 9
"""Characters in the head above such a column."""


class RankMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory on ranks whose bytes are all equal."""

    ranks: tuple[int, ...]
    """The ranks that share these figures."""
    memory: MemoryUse
    """Bytes on each such rank at its peak, by kind."""
    peak_bytes: int
    """Bytes on each device at its peak."""
    memory_bytes: int
    """Bytes that the smallest GPU among these ranks has."""


def memory_of_ranks(plan: Plan) -> tuple[RankMemory, ...]:
    """Peak memory on every rank in use; ranks with equal memory are one entry."""
    alike: dict[tuple[MemoryUse, int], list[int]] = {}
    uses = rank_memory(stage_ranks(plan), schedule_of(plan), plan.prediction.stages)
    for rank, use in sorted(uses.items()):
        alike.setdefault((use, smallest_memory(plan.cluster, (rank,))), []).append(rank)
    return tuple(
        RankMemory(
            ranks=tuple(ranks), memory=use, peak_bytes=int(total(use)), memory_bytes=memory_bytes
        )
        for (use, memory_bytes), ranks in alike.items()
    )


def stage_memory_table(plan: Plan) -> Table:
    """One row for each stage: the peak on one rank by kind of byte."""
    stages = plan.prediction.stages
    peaks = [stage.peak_bytes for stage in stages]
    unit, _ = sizes(peaks)
    table = new_table(f"memory of one rank at its peak, {unit}")
    for head in ("stage", *COLUMNS, "peak", "of limit"):
        add_number(table, head)
    for place, stage in enumerate(stages):
        parts = [sum(getattr(stage.memory, kind) for kind in kinds) for kinds in COLUMNS.values()]
        _, cells = sizes([*parts, stage.peak_bytes, *peaks])
        share = stage.peak_bytes / smallest_memory(plan.cluster, plan.stages[place].ranks)
        table.add_row(str(place), *cells[: len(parts) + 1], format_share(share))
    return table


def rank_memory_report(plan: Plan) -> RenderableType:
    """Memory on every rank: one row for each kind of byte, ranks side by side."""
    groups, width = memory_of_ranks(plan), RANKS_SIDE_BY_SIDE
    shown = [groups[at : at + width] for at in range(0, len(groups), width)]
    return Group(*map(_rank_memory_table, shown))


def _rank_memory_table(groups: Sequence[RankMemory]) -> Table:
    rows = [kind for kind in MEANINGS if any(getattr(group.memory, kind) for group in groups)]
    sized = [[getattr(group.memory, kind) for group in groups] for kind in rows]
    peaks = [group.peak_bytes for group in groups]
    unit, cells = sizes([*itertools.chain(*sized), *peaks])
    table = new_table(f"memory of each rank at its peak, {unit}")
    add_text(table, "")
    for group in groups:
        add_number(table, f"rank{'s' if len(group.ranks) > 1 else ''}\n{_named(group.ranks)}")
    names = [*(MEANINGS[kind] for kind in rows), "peak"]
    for place, name in enumerate(names):
        if name == "peak":
            table.add_section()
        table.add_row(name, *cells[place * len(groups) : (place + 1) * len(groups)])
    shares = [format_share(group.peak_bytes / group.memory_bytes) for group in groups]
    table.add_row("of the GPU's memory", *shares)
    return table


def _named(ranks: Sequence[int]) -> str:
    """The ranks; where the list is long, the first rank and the count."""
    label = ranks_label(ranks)
    return label if len(label) <= LONGEST_LABEL else f"{min(ranks)} … ({len(ranks)})"
