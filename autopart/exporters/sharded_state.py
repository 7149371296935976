"""Rank groups that share samples and state, in the words of frameworks.

Under torch's pipelining FSDP2 keeps gradients whole until a step's last backward, and weights gathered after each
backward (`PipelineStage.backward_maybe_with_nosync`). So it runs zero2 with one sum per step, and nothing else.
"""

from autopart.errors import ExportRefused
from autopart.records.plan import Plan
from autopart.records.rank_group import Group, group_name

TAKERS = "--to torchtitan and --to automodel take zero2 with --sync fsdp2"
_NEAREST = "the nearest plan has --shard zero2 and --sync fsdp2"


def refuse_sharded_state(plan: Plan, framework: str, reason: str) -> None:
    """Raise ExportRefused where processes of a rank share state, with the framework's reason against it."""
    if isinstance(plan.group, Group) and plan.group.data > 1:
        raise ExportRefused(
            f"the plan has {group_name(plan.group)}, and {framework} {reason}; the nearest plan has --shard none; "
            f"{TAKERS}"
        )


def refuse_unlike_fsdp(plan: Plan, framework: str) -> None:
    """Raise ExportRefused where FSDP2 under torch's pipelining shares state in another way than the plan."""
    group = plan.group
    if not isinstance(group, Group) or group.data == 1:
        return
    if group.shard == "zero3":
        raise ExportRefused(
            f"the plan has {group_name(group)}, and {framework} runs torch's pipelining, which leaves weights "
            f"gathered after each backward; {_NEAREST}"
        )
    if group.reduce == "microbatch":
        raise ExportRefused(
            f"the plan scatters gradients in each microbatch, and {framework} runs torch's pipelining, which "
            f"scatters them once per step; {_NEAREST}"
        )
