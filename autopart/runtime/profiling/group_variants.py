"""The layers as one of t ranks runs them: the variants of a profile.

Rank 0's local graph is profiled like the model itself, alone. Its collectives are left out of all times and listed
beside the layers. Where the device computes, all t local graphs together are first checked against the model.
"""

from collections.abc import Mapping, Sequence

from autopart.records.gpu import Gpu
from autopart.records.group_variants import GroupVariant
from autopart.records.rank_group import Group, group_name
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.profiling.measured_graph import measure_graph
from autopart.runtime.profiling.options import ProfileOptions
from autopart.runtime.profiling.profiled_model import ProfiledModel, local_profiled
from autopart.runtime.profiling.whole_model import graph_forward
from autopart.runtime.sharding.check import check_shards
from autopart.runtime.sharding.counted import layer_collectives
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model
from autopart.runtime.sharding.shard import ShardedGraph, WholeOperation, shard_graph

_MOST_REASONS = 4


def measure_variants(
    profiled: ProfiledModel, options: ProfileOptions, gpu: Gpu | None, steps: StepCounter
) -> tuple[tuple[GroupVariant, ...], tuple[str, ...]]:
    """Return a variant for each degree that `options` ask for, and what stays whole in words.

    Raises ModelError for a degree that shards nothing, and where the ranks differ from the model.
    """
    variants: list[GroupVariant] = []
    notes: list[str] = []
    for degree, sequence_parallel in _wanted(options):
        name = group_name(Group(tensor=degree, sequence_parallel=sequence_parallel))
        steps.next(f"{name}: shards")
        sharded = shard_graph(profiled.captured, degree, sequence_parallel=sequence_parallel)
        if gpu is None:
            check_shards(sharded, profiled.leaves)
        variants.append(_variant(profiled, sharded, options, gpu, steps))
        notes += [] if sequence_parallel else _reasons(sharded)
    return tuple(variants), tuple(notes)


def num_variants(options: ProfileOptions) -> int:
    """Return how many variants `options` ask for."""
    return len(_wanted(options))


def _wanted(options: ProfileOptions) -> list[tuple[int, bool]]:
    words = (False, True) if options.sequence_parallel else (False,)
    return [(degree, word) for degree in options.tensor if degree > 1 for word in words]


def _variant(
    profiled: ProfiledModel,
    sharded: ShardedGraph,
    options: ProfileOptions,
    gpu: Gpu | None,
    steps: StepCounter,
) -> GroupVariant:
    local = local_model(sharded, 0)
    own = local_profiled(profiled, local)
    with registered(GROUP, LoneRank(sharded.degree)):
        measured = measure_graph(own, graph_forward(own), options, gpu, steps)
    return GroupVariant(
        group=Group(tensor=sharded.degree, sequence_parallel=sharded.sequence_parallel),
        graph=measured.graph,
        collectives=layer_collectives(sharded, local),
    )


def _reasons(sharded: ShardedGraph) -> Sequence[str]:
    """Say which products and tables stay whole, by reason. Norms and sums stay so by design."""
    reasons: dict[tuple[str, str], list[WholeOperation]] = {}
    for one in sharded.whole_operations:
        if _has_table(sharded, one):
            reasons.setdefault((one.operation, one.reason), []).append(one)
    lines = [
        f"tensor degree {sharded.degree}: {operation} of {those[0].layer}"
        f"{f' and {len(those) - 1} more' if len(those) > 1 else ''} stays whole: {reason}"
        for (operation, reason), those in reasons.items()
    ]
    more = len(lines) - _MOST_REASONS
    return [*lines[:_MOST_REASONS], *([f"… and {more} more reasons"] if more > 0 else [])]


def _has_table(sharded: ShardedGraph, one: WholeOperation) -> bool:
    shapes: Mapping[str, int] = {
        name: parameter.ndim for name, parameter in sharded.captured.module.named_parameters()
    }
    return any(shapes[name] > 1 for name in one.parameters)
