"""The degrees of rank groups in the words of frameworks that train with torch's FSDP2.

torchtitan, NeMo AutoModel and accelerate number processes alike: stages slowest, then replicas, shards of the state,
context and tensor ranks. A plan numbers the GPUs of a group in this order too. Their expert groups are consecutive
processes, whatever else these share. So they are a plan's expert groups where no other degree lies inside.

Each GPU of an expert group has samples of its own, as a shard has. So R replicas with expert degree e and shard degree d
are R x e x d processes with their own samples. FSDP2 shares state over the context ranks too.
"""

from typing import NamedTuple

from autopart.errors import ExportRefused
from autopart.exporters.pipeline_shape import Shape
from autopart.records.plan import Plan
from autopart.text import counted


class DataDegrees(NamedTuple):
    """The processes of a stage that have samples of their own."""

    replicate: int
    """Sets of processes that each have the whole state together."""
    shard: int
    """Processes of one such set, without its context ranks."""


def data_degrees(plan: Plan, shape: Shape) -> DataDegrees:
    """The degrees under FSDP2, where ZeRO-1 is a shard over the replicas."""
    own = shape.shard_degree * shape.expert_degree
    if plan.training.zero1:
        return DataDegrees(1, shape.num_replicas * own)
    return DataDegrees(shape.num_replicas, own)


def samples_per_process(plan: Plan, shape: Shape) -> int:
    """Samples of a microbatch on each process."""
    return plan.microbatch_size // (shape.shard_degree * shape.expert_degree)


def refuse_split_expert_groups(shape: Shape, framework: str, takers: str) -> None:
    """Raise ExportRefused where the framework's expert groups would be other GPUs than the plan's."""
    inside = {
        "tensor": ("tensor groups", shape.tensor_degree),
        "context": ("context groups", shape.context_degree),
    }
    for kind, (groups, degree) in inside.items():
        if shape.expert_degree > 1 and degree > 1:
            raise ExportRefused(
                f"the plan has {kind} degree {degree} and expert degree {shape.expert_degree}, and the expert groups of "
                f"{framework} are consecutive processes, so its {groups} would lie inside them; the nearest plan "
                f"has --{kind} 1; {takers}"
            )


def wider_state_note(plan: Plan, shape: Shape, framework: str) -> tuple[str, ...]:
    """A note where FSDP2 shares state over more GPUs than the plan says; empty where it does not."""
    c, e = shape.context_degree, shape.expert_degree
    if c * e == 1:
        return ()
    planned = shape.shard_degree * (shape.num_replicas if plan.training.zero1 else 1)
    which = "weights without experts" if e > 1 else "all weights"
    said = f"shares it over {counted(planned, 'GPU')}" if planned > 1 else "keeps it whole"
    return (
        f"{framework} shares the state of {which} over {counted(planned * c * e, 'GPU')}, and the plan {said}: memory is "
        "smaller than predicted",
    )


def demand_notes(shape: Shape) -> tuple[str, ...]:
    """Notes on the demands of context and expert degrees on the user's settings."""
    notes: list[str] = []
    if shape.context_degree > 1:
        notes.append(
            f"the length of sequences must be a multiple of {2 * shape.context_degree}, and attention must be torch's "
            "scaled dot products or FlexAttention"
        )
    if shape.expert_degree > 1:
        notes.append(f"the number of experts must be a multiple of {shape.expert_degree}")
    return tuple(notes)
