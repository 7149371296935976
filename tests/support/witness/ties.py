"""Syncs of tied parameters that several stages have, written from docs/cost-model.md."""

from collections.abc import Sequence
from typing import NamedTuple

from autopart.records.layer_graph import TiedParameter
from autopart.records.problem import Problem
from autopart.records.training import Training
from tests.support.witness.bytes_on_rank import (
    always_has_gradients,
    shard,
    state_per_element,
    summed_gradients,
)
from tests.support.witness.graphs import Facts, members_of
from tests.support.witness.hidden_syncs import Own, call_seconds
from tests.support.witness.placements import Place
from tests.support.witness.stages import StageFigures


class Tie(NamedTuple):
    """One parameter with copies in several stages."""

    parameter: TiedParameter
    homes: tuple[int, ...]
    """The stages with a copy."""
    leaves: frozenset[int]
    """The stages whose own syncs leave it out."""
    seconds: float
    """Seconds of its own sync; 0 without one."""


class StateBytes(NamedTuple):
    """Bytes of weights, gradients and optimizer state."""

    device: int
    host: int


def state_beyond_first(
    figures: StageFigures,
    again: Sequence[TiedParameter],
    training: Training,
    replicas: int,
    hosted: bool,
) -> StateBytes:
    """The state that a stage counts for parameters that an earlier stage on its rank has already.

    The stage steps the others alone. Where its state is on the host, its widest layer has at most these.
    """
    trained = sum(one.num_trainable for one in again)
    weights = sum(one.param_bytes for one in again)
    gradients = 0
    if always_has_gradients(training):
        gradients = summed_gradients(training, sum(one.grad_bytes for one in again), trained)
        gradients += sum(one.unscattered_grad_bytes or 0 for one in again)
    left, size = figures.trained - trained, state_per_element(training)

    def less(before: int, after: int) -> int:
        return (shard(before, training, replicas) - shard(after, training, replicas)) * size

    whole = less(figures.trained, left)
    if not hosted:
        return StateBytes(weights + gradients + whole, 0)
    room = less(figures.widest, min(figures.widest, left))
    return StateBytes(weights + gradients + room, whole)


def ties_of(
    problem: Problem,
    facts: Facts,
    slots: Sequence[tuple[int, ...]],
    place: Place,
    cuts: Sequence[int],
) -> list[Tie]:
    """The ties of one partition."""
    found: list[Tie] = []
    for one, holders in zip(problem.graph.tied, facts.tied, strict=True):
        homes = tuple(
            s
            for s in range(len(slots))
            if set(holders).intersection(members_of(cuts[s], cuts[s + 1]))
        )
        if len(homes) > 1:
            once = problem.training.sync in ("end", "overlap")
            sync = _summed_once if once else _summed_by_replica
            leaves, seconds = sync(problem, one, homes, slots, place)
            found.append(Tie(one, homes, leaves, seconds))
    return found


def _summed_once(
    problem: Problem,
    one: TiedParameter,
    homes: tuple[int, ...],
    slots: Sequence[tuple[int, ...]],
    place: Place,
) -> tuple[frozenset[int], float]:
    """The executor: one sum over all ranks with a copy, and none of them in a stage's own sync."""
    training = problem.training
    ranks = {slot for s in homes for slot in slots[s]}
    if len(ranks) == 1:
        return frozenset(homes), 0.0
    if training.sync == "end" and ranks == set(slots[homes[0]]):
        return frozenset(homes[1:]), 0.0
    figures = _figures(problem, one, homes, slots, place)
    if not training.zero1:
        return frozenset(homes), call_seconds(problem, figures, figures.summed, whole=True)
    # Buckets beside a backward are summed whole; else a reduce-scatter comes before the gather.
    summed = call_seconds(problem, figures, figures.summed, whole=training.sync == "overlap")
    return frozenset(homes), summed + call_seconds(problem, figures, figures.weights, whole=False)


def _summed_by_replica(
    problem: Problem,
    one: TiedParameter,
    homes: tuple[int, ...],
    slots: Sequence[tuple[int, ...]],
    place: Place,
) -> tuple[frozenset[int], float]:
    """A framework: besides the stages' own sums, one all-reduce for each replica."""
    figures = _figures(problem, one, homes, slots, place)
    if len({len(slots[s]) for s in homes}) > 1:
        return frozenset(), call_seconds(problem, figures, figures.summed, whole=True)
    replicas = len(slots[homes[0]])
    groups: list[tuple[int, int, list[int]]] = []
    for at in range(replicas):
        used = sorted({slots[s][at] for s in homes})
        node_of = _node_of(homes, slots, place)
        nodes = [node_of[slot] for slot in used if slot in node_of]
        groups.append((len(set(nodes)), len(used), nodes))
    _, size, nodes = max(groups, key=lambda group: group[:2])
    if size == 1:
        return frozenset(), 0.0
    apart = any((a, b) in place.twins for a in homes for b in homes)
    link = problem.cluster.inter_node if apart else problem.cluster.intra_node
    moved = figures.summed
    if problem.training.zero1 and problem.training.sync == "fsdp2":
        moved = moved / replicas
    alone = figures._replace(replicas=size, link=link, nodes=(nodes,))
    return frozenset(), call_seconds(problem, alone, moved, whole=True)


def _figures(
    problem: Problem,
    one: TiedParameter,
    homes: Sequence[int],
    slots: Sequence[tuple[int, ...]],
    place: Place,
) -> Own:
    """All ranks with a copy as one group."""
    apart = any((a, b) in place.pairs for a in homes for b in homes)
    apart = apart or any(place.spread[s] for s in homes)
    link = problem.cluster.inter_node if apart else problem.cluster.intra_node
    summed = summed_gradients(problem.training, one.grad_bytes, one.num_trainable)
    node_of = _node_of(homes, slots, place)
    ranks = {slot for s in homes for slot in slots[s]}
    return Own(homes[0], len(ranks), summed, one.grad_bytes, link, (list(node_of.values()),))


def _node_of(
    homes: Sequence[int], slots: Sequence[tuple[int, ...]], place: Place
) -> dict[int, int]:
    """The node of each slot with a copy; empty without a network record."""
    if not place.nodes:
        return {}
    return {slot: node for s in homes for slot, node in zip(slots[s], place.nodes[s], strict=True)}
