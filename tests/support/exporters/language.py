"""Plans for language models, cut anywhere, for frameworks with their own models."""

from collections.abc import Sequence

import msgspec

from autopart.records.plan import Plan
from autopart.schedules.catalogue import kind_of
from tests.support.exporters.plans import make_plan
from tests.support.pictures import place_stages


def language_plan(
    counts: Sequence[int],
    num_ranks: int | None = None,
    schedule: str = "1f1b",
    num_microbatches: int = 8,
    replicas: int = 1,
    block: str = "transformer.h.{}",
) -> Plan:
    """A plan for GPT-2 under Hugging Face's names. Stage s has `counts[s]` blocks."""
    names = [block.format(index) for index in range(sum(counts))]
    stages: list[list[str]] = []
    for count in counts:
        stages.append(names[:count])
        names = names[count:]
    stages[0] = ["transformer.wte", "transformer.wpe", *stages[0]]
    stages[-1] = [*stages[-1], "transformer.ln_f", "lm_head", "loss"]
    num_ranks = num_ranks or len(counts)
    places = place_stages(kind_of(schedule), num_ranks, len(counts) // num_ranks)
    ranks = [
        [at * replicas + replica for replica in range(replicas) for at in own] for own in places
    ]
    return make_plan(stages, ranks, num_microbatches * replicas, schedule)


def recomputing(plan: Plan, *blocks: int, policy: str = "recompute") -> Plan:
    """The plan with these blocks recomputed; with the policy `selective`, except their products."""
    chosen = {f"transformer.h.{index}" for index in blocks}
    stages = tuple(
        msgspec.structs.replace(stage, **{policy: tuple(la for la in stage.layers if la in chosen)})
        for stage in plan.stages
    )
    return msgspec.structs.replace(plan, stages=stages)
