"""Rank groups that share samples and state, as frameworks take them.

Under torch's pipelining FSDP2 keeps gradients whole until a step's last backward, and weights gathered after each
backward (`PipelineStage.backward_maybe_with_nosync`). Frameworks that change one of these take zero3 too.
"""

from collections.abc import Mapping

from autopart.errors import ExportRefused
from autopart.records.plan import Plan, schedule_of
from autopart.records.rank_group import Group, Reduce, Shard, group_name
from autopart.schedules.state_actions import (
    TORCHS_ACTIVE_STAGES,
    StateRules,
    with_state_actions,
)
from autopart.text import counted

Taken = Mapping[Shard, tuple[Reduce, ...]]
"""For each kind of sharded state that an export takes, when gradients may be scattered."""

TAKERS = "--to torchtitan and --to automodel take zero2 with --sync fsdp2"
_WHEN: Mapping[Reduce, str] = {"microbatch": "in each microbatch", "step": "once per step"}
_SYNCS: Mapping[Reduce, str] = {"microbatch": "--sync end", "step": "--sync fsdp2"}


def refuse_sharded_state(plan: Plan, framework: str, reason: str) -> None:
    """Raise ExportRefused where processes of a rank share state, with the framework's reason against it."""
    if isinstance(plan.group, Group) and plan.group.data > 1:
        raise ExportRefused(
            f"the plan has {group_name(plan.group)}, and {framework} {reason}; the nearest plan has --shard none; "
            f"{TAKERS}"
        )


def refuse_other_sums(plan: Plan, framework: str, taken: Taken) -> None:
    """Raise ExportRefused where a framework scatters gradients at another time than the plan."""
    group = plan.group
    if not isinstance(group, Group) or not isinstance(group.shard, str):
        return
    assert isinstance(group.reduce, str)
    able = taken[group.shard]
    if group.reduce not in able:
        raise ExportRefused(
            f"the plan scatters gradients {_WHEN[group.reduce]}, and {framework} scatters them {_WHEN[able[0]]} under "
            f"{group.shard}; the nearest plan has --shard {group.shard} and {_SYNCS[able[0]]}"
        )


def gather_notes(plan: Plan) -> tuple[str, ...]:
    """A note where torch's schedules gather sharded weights of a stage more than once per step."""
    stays = isinstance(plan.group, Group) and plan.group.shard == "zero2"
    if not (stays or plan.training.zero1):
        return ()
    rules = StateRules(
        shares_weights=False, sums_each_microbatch=False, active_stages=TORCHS_ACTIVE_STAGES
    )
    most, stages = 0, 0
    for order in schedule_of(plan):
        gathers = [a for a in with_state_actions(order, rules) if a[1] == "UNSHARD"]
        own = len({action.stage for action in order})
        if len(gathers) - own > most - stages:
            most, stages = len(gathers), own
    if most == stages:
        return ()
    return (
        f"torch keeps {counted(TORCHS_ACTIVE_STAGES, 'stage')} of a rank gathered: a rank with {counted(stages, 'stage')} gathers weights "
        f"{most} times per step, and the prediction has {stages} gathers",
    )
