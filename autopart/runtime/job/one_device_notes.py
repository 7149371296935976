"""What a run on one device leaves out, in words."""

import msgspec

from autopart.records.expert_load import load_in_words
from autopart.records.group_choice import load_of
from autopart.records.plan import Plan
from autopart.records.rank_group import group_name, group_size, has_ring
from autopart.units import format_time


def notes_of(plan: Plan, steps: int) -> tuple[str, ...]:
    """Sentences for the result of `steps` steps under a plan."""
    notes = ("one step only: its time includes first allocations",) if steps == 1 else ()
    if group_size(plan.group) == 1:
        return notes
    assumed = load_of(plan.demands.group, plan.group)
    if assumed is not msgspec.UNSET and not isinstance(assumed, float):
        said = f"the plan assumes {load_in_words(assumed)} of experts; each rank has the mean load here"
        notes = (said, *notes)
    with_them = format_time(plan.prediction.step_time)
    return (
        f"{group_name(plan.group)}: each rank is the first GPU of its group, alone; all seconds, also the "
        f"predicted ones, are without the group's collectives (with them the predicted step is {with_them})",
        *_notes_on_rings(plan),
        *notes,
    )


def _notes_on_rings(plan: Plan) -> tuple[str, ...]:
    if not (has_ring(plan.group) and plan.cluster.sends_overlap):
        return ()
    return (
        "the plan does not say which part of a ring's messages attention hides, so predicted seconds keep the rest",
    )
