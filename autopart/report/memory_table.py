"""Bytes on the terminal: one row a stage beside a plan, and every kind of byte of every rank."""

import itertools
from collections.abc import Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table

from autopart.cluster import smallest_memory
from autopart.cost import rank_memory, total
from autopart.plan import MemoryUse, Plan, schedule_of, stage_ranks
from autopart.report.columns import add_number, add_text, new_table, sizes
from autopart.report.names import ranks_label
from autopart.units import format_share

COLUMNS: dict[str, tuple[str, ...]] = {
    "weights": ("weights", "versions"),
    "grads": ("gradients",),
    "optim.": ("optimizer", "master"),
    "stash": ("stash",),
    "work": ("workspace",),
    "buffers": ("receives", "sends", "batch"),
    "reserve": ("reserve",),
}
"""The columns of the table of stages: together every kind of `ON_DEVICE`."""

MEANINGS = {
    "weights": "weights and the model's buffers",
    "gradients": "gradients",
    "master": "float32 master copies",
    "optimizer": "optimizer state",
    "versions": "older versions of the weights",
    "stash": "stash of all microbatches in flight",
    "loss_stash": "  of it logits and loss",
    "workspace": "workspace of the largest layer",
    "recomputed": "  of it recomputed stash",
    "loss_workspace": "  of it the loss's",
    "receives": "receive buffers",
    "sends": "send buffers",
    "batch": "its part of the batch",
    "reserve": "the framework's reserve",
    "host": "on the host, beside these",
}
"""What each field of `MemoryUse` is called, in the order in which they are shown."""

RANKS_SIDE_BY_SIDE = 5
LONGEST_LABEL = 9
"""Letters: so many columns of ranks fit into 80 columns of a terminal."""


class RankMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of ranks that hold the same."""

    ranks: tuple[int, ...]
    memory: MemoryUse
    peak_bytes: int
    memory_bytes: int
    """Of the smallest GPU among them."""


def memory_of_ranks(plan: Plan) -> tuple[RankMemory, ...]:
    """What every rank in use holds at its peak, ranks that hold the same together."""
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
    """One row a stage: the peak of one rank by what it is made of."""
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
    """What every rank holds, a row for each kind of byte that there is, in tables side by side."""
    groups, width = memory_of_ranks(plan), RANKS_SIDE_BY_SIDE
    shown = [groups[at : at + width] for at in range(0, len(groups), width)]
    return Group(*map(_rank_memory_table, shown))


def _rank_memory_table(groups: Sequence[RankMemory]) -> Table:
    rows = [kind for kind in MEANINGS if any(getattr(group.memory, kind) for group in groups)]
    sized = [[getattr(group.memory, kind) for group in groups] for kind in rows]
    peaks = [group.peak_bytes for group in groups]
    unit, cells = sizes([*itertools.chain(*sized), *peaks])
    table = new_table(f"bytes of each rank at its peak, {unit}")
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
    """The ranks, or how many from the first on where their list is long."""
    label = ranks_label(ranks)
    return label if len(label) <= LONGEST_LABEL else f"{min(ranks)} … ({len(ranks)})"
