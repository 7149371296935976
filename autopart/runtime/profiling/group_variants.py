"""The layers as one rank of a group runs them: the variants of a profile.

Rank 0's local graph is profiled like the model itself, alone. Its collectives are left out of all times and listed
beside the layers. Where the device computes, all local graphs together are first checked against the model.
"""

from collections.abc import Mapping, Sequence

import msgspec

from autopart.records.gpu import Gpu
from autopart.records.group_variants import GroupVariant, exchanges_entries
from autopart.records.rank_group import Group, group_name
from autopart.runtime.measuring.progress import StepCounter
from autopart.runtime.profiling.measured_graph import measure_graph
from autopart.runtime.profiling.measured_variants import MeasuredVariant
from autopart.runtime.profiling.options import ProfileOptions
from autopart.runtime.profiling.profiled_model import ProfiledModel, local_profiled
from autopart.runtime.profiling.ring_variants import ring_variant
from autopart.runtime.profiling.whole_model import graph_forward
from autopart.runtime.sharding.check import check_group
from autopart.runtime.sharding.context.expert_loads import loads_of, noted_loads
from autopart.runtime.sharding.context.states import ContextRefused
from autopart.runtime.sharding.counted import layer_collectives
from autopart.runtime.sharding.group_graphs import GroupGraphs, graphs_of
from autopart.runtime.sharding.shard import ShardedGraph, WholeOperation
from autopart.text import counted

_MOST_REASONS = 4
_MEASURED_LOAD = 2
"""The imbalance at which layers with experts are measured, beside balanced load."""


def measure_variants(
    profiled: ProfiledModel, options: ProfileOptions, gpu: Gpu | None, steps: StepCounter
) -> tuple[tuple[GroupVariant, ...], tuple[str, ...]]:
    """Return a variant for each degree that `options` ask for, and what stays whole in words.

    Raises ModelError for a degree that divides nothing, and where the ranks differ from the model.
    """
    variants: list[GroupVariant] = []
    notes: list[str] = []
    for group in _wanted(options):
        steps.next(f"{group_name(group)}: shards")
        try:
            graphs = graphs_of(profiled.captured, group)
        except ContextRefused as error:
            # Expert degrees beside others are asked for by the product of two options.
            if group.expert == 1 or group.tensor * group.context == 1:
                raise
            notes.append(f"{group_name(group)} is left out: {error}")
            continue
        with noted_loads() as noted:
            if gpu is None:
                check_group(graphs, profiled.leaves)
        found = _measured(profiled, graphs, group, options, gpu, steps)
        own = [found.variant()]
        if group.context > 1:
            ring, why = _with_ring(profiled, found, options, gpu, steps)
            own += ring
            notes += why
        loads = loads_of(noted.sums(), (group.expert,))
        variants += [msgspec.structs.replace(v, loads=loads) for v in own] if loads else own
        is_first = not group.sequence_parallel and group.context * group.expert == 1
        notes += _reasons(graphs.sharded) if is_first and graphs.sharded is not None else []
    if experts := [str(degree) for degree in options.expert if degree > 1]:
        notes.append(
            f"expert degree {', '.join(experts)}: times are for balanced load, where each GPU's experts get equally many "
            "tokens; solve with --expert-imbalance for others"
        )
    # Degrees beside others may leave a ring out for one reason.
    return tuple(variants), tuple(dict.fromkeys(notes))


def num_variants(options: ProfileOptions) -> int:
    """Return how many variants `options` ask for."""
    return len(_wanted(options))


def _wanted(options: ProfileOptions) -> list[Group]:
    """Each tensor, context and expert degree, alone and together with the others."""
    words = (False, True) if options.sequence_parallel else (False,)
    tensors = [(1, False), *((t, word) for t in options.tensor if t > 1 for word in words)]
    contexts = [1, *(c for c in options.context if c > 1)]
    experts = [1, *(e for e in options.expert if e > 1)]
    return [
        Group(tensor=t, sequence_parallel=word, context=c, expert=e)
        for e in experts
        for c in contexts
        for t, word in tensors
        if t * c * e > 1
    ]


def _measured(
    profiled: ProfiledModel,
    graphs: GroupGraphs,
    group: Group,
    options: ProfileOptions,
    gpu: Gpu | None,
    steps: StepCounter,
) -> MeasuredVariant:
    own = local_profiled(profiled, graphs.local(0))
    with graphs.alone():
        measured = measure_graph(own, graph_forward(own), options, gpu, steps)
    found = MeasuredVariant(group, graphs, own, measured)
    if not any(map(exchanges_entries, layer_collectives(graphs, own.captured))):
        return found
    # Another point of the line on which every load lies (autopart/cost/uneven_experts.py). A device has memory for few
    # times the entries.
    load = float(group.expert if gpu else min(group.expert, _MEASURED_LOAD))
    steps.add(2 if gpu else options.warmup + options.repeats + 3 + options.compile)
    with graphs.alone(load):
        more = measure_graph(own, graph_forward(own), options, gpu, steps)
    return found._replace(load=load, loaded=more)


def _with_ring(
    profiled: ProfiledModel,
    found: MeasuredVariant,
    options: ProfileOptions,
    gpu: Gpu | None,
    steps: StepCounter,
) -> tuple[list[GroupVariant], list[str]]:
    """Return the same degrees with ring exchange, or none where no attention has a ring; and which layers gather."""
    group = msgspec.structs.replace(found.group, exchange="ring")
    try:
        graphs = graphs_of(profiled.captured, group)
    except ContextRefused as error:
        return [], [f"ring exchange is left out: {error}"]
    steps.add(1)
    steps.next(f"{group_name(group)}: shards")
    if gpu is None:
        check_group(graphs, profiled.leaves)
    assert graphs.context is not None
    left = list(graphs.context.gathering.items())
    more = f" (and {counted(len(left) - 1, 'more operation')})" * (len(left) > 1)
    notes = [f"{group_name(group)}: {left[0][0]} {left[0][1]}{more}, and gathers"] if left else []
    return [ring_variant(profiled, found, graphs, options, gpu, steps)], notes


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
