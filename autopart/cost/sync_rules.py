"""What each word of `--sync` stands for: which parts of a gradient sync hide, and how copies of a tied parameter are summed.

docs/cost-model.md names the sources.
"""

from typing import NamedTuple


class Rule(NamedTuple):
    """What the executor or a framework does."""

    sums_early: bool
    """Whether buckets go out while a stage's last backward runs, else after all actions."""
    gathers_early: bool
    """Whether ZeRO-1's gather runs beside the next step's first forwards."""
    ties_once: bool = False
    """Whether one sync over all ranks with a copy sums a tied parameter, and its stages' own syncs leave it out.

    Else each stage sums its copies with its other parameters, and the ranks with one replica sum theirs.
    """
    ties_first: bool = False
    """Whether copies on several stages are summed before the stages' own syncs."""
    ties_sharded: bool = False
    """Whether with ZeRO-1 copies are summed shard by shard, since no rank keeps a whole sum."""


RULES = {
    "end": Rule(sums_early=False, gathers_early=False, ties_once=True),
    "overlap": Rule(sums_early=True, gathers_early=False, ties_once=True),
    "megatron": Rule(sums_early=True, gathers_early=True),
    "ddp": Rule(sums_early=True, gathers_early=False),
    "fsdp2": Rule(sums_early=False, gathers_early=True, ties_sharded=True),
    "deepspeed": Rule(sums_early=False, gathers_early=False, ties_first=True),
}
"""By the word of `--sync`."""
