"""Classes of downsets, for graphs with too many downsets to look at each: lower bounds only.

Symbols   chain      a run of layers with outputs of one size, each the only reader of the one before
          K          the chains that are kept apart;  begun: its first layer is in a downset
          E(D)       the chains of K that downset D has begun: a downset of K in the graph's own order
          class E    all downsets D with E(D) = E
          lo, hi     bounds on a sum over the layers of D, for every D of a class

Layers that every D of a class holds: the first ones of chains in E, and all that is ahead of these.
Layers that no D holds: those that are behind a chain of K outside of E, and that chain. Sums over the
former and over all but the latter are lo and hi. D ⊆ D' implies E(D) ⊆ E(D').

*The cut is bounded too.* Let chain u be begun in all of a class and one of its readers be in none. Then
D splits u or has all of it and not that reader, so that the output of a layer of u crosses the cut: u
counts with that one size, all of them once. Where no reader of u is in D, the last of its layers in D is one
that nothing in D reads, and PipeDream's cut counts what is read again beside it too
(loads/pipedream.py). So the sum over these chains is at most out(D).

With K all layers, classes are downsets and lo = hi. The fewer chains are in K, the fewer classes there
are, and the wider [lo, hi] is: layers between are taken as if they could be divided at will.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.loads.pipedream import Floats, Nodes, reread
from autopart.solvers.replication.downsets import Level, States, bits, downsets, levels, unpack
from autopart.solvers.replication.dual import Flags

BLOCK = 1 << 16
"""Classes whose flags are held at once, one flag for each chain."""


class Chains(NamedTuple):
    """The chains of a graph in a topological order."""

    layers: Sequence[Sequence[int]]
    before: Sequence[int]
    """For each chain the bits of those that it reads."""
    after: Sequence[int]
    """For each chain the bits of its readers."""
    outputs: Floats
    """Bytes of each of a chain's layers."""


class Classes(NamedTuple):
    """Classes of downsets by level, the one with nothing begun first; bounds for each of them."""

    levels: Sequence[Level]
    compute: tuple[Floats, Floats]
    """lo and hi, seconds."""
    parameters: tuple[Floats, Floats]
    """lo and hi, bytes."""
    cut: Floats
    """At most out(D), bytes."""


def chains(nodes: Nodes) -> Chains:
    """The longest chains of a graph."""
    home: list[int] = []
    members: list[list[int]] = []
    for v, sources in enumerate(nodes.before):
        u = sources.bit_length() - 1
        alone = sources.bit_count() == 1 and nodes.after[u].bit_count() == 1
        if alone and nodes.outputs[u] == nodes.outputs[v]:
            home.append(home[u])
            members[home[u]].append(v)
        else:
            home.append(len(members))
            members.append([v])
    before, after = [0] * len(members), [0] * len(members)
    for v, sources in enumerate(nodes.before):
        for u in bits(sources):
            if home[u] != home[v]:
                before[home[v]] |= 1 << home[u]
                after[home[u]] |= 1 << home[v]
    outputs = nodes.outputs[[layers[0] for layers in members]]
    return Chains(members, before, after, outputs)


def kept_downsets(chains: Chains, kept: Sequence[int], most: int) -> States | None:
    """The downsets of the kept chains, given ascending; None where there are more than `most`."""
    place = {chain: at for at, chain in enumerate(kept)}
    nearest: list[int] = []
    for sources in chains.before:
        mask = 0
        for u in bits(sources):
            mask |= 1 << place[u] if u in place else nearest[u]
        nearest.append(mask)
    before = [nearest[chain] for chain in kept]
    after = [0] * len(kept)
    for at, sources in enumerate(before):
        for earlier in bits(sources):
            after[earlier] |= 1 << at
    return downsets(before, after, most)


def classes(nodes: Nodes, chains: Chains, kept: Sequence[int], most: int) -> Classes | None:
    """The classes for the chains that are kept, ascending; None where there are more than `most`."""
    states = kept_downsets(chains, kept, most)
    if states is None:
        return None
    bounds = [
        _bounds(nodes, chains, kept, unpack(states.masks[begin : begin + BLOCK], len(kept)))
        for begin in range(0, len(states.masks), BLOCK)
    ]
    joined = [np.concatenate(parts) for parts in zip(*bounds, strict=True)]
    return Classes(levels(states), (joined[0], joined[1]), (joined[2], joined[3]), joined[4])


def _bounds(
    nodes: Nodes, chains: Chains, kept: Sequence[int], begun: Flags
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """lo and hi of compute and of parameters, and the cut, for rows of kept chains that are begun."""
    place = dict(zip(kept, np.ascontiguousarray(begun.T), strict=True))
    whole, some, possible = _held(chains, place)
    found: list[Floats] = []
    for amounts in (nodes.compute, nodes.parameters):
        low, high = np.zeros(len(begun)), np.zeros(len(begun))
        for chain, layers in enumerate(chains.layers):
            total, first = float(amounts[list(layers)].sum()), float(amounts[layers[0]])
            low += np.where(whole[chain], total, first * some[chain])
            high += total * possible[chain]
        found += [low, high]
    return found[0], found[1], found[2], found[3], _cuts(chains, some, possible)


def _held(chains: Chains, begun: dict[int, Flags]) -> tuple[Flags, Flags, Flags]:
    """By chain and class: whether all of it is in every downset, its first layer, and whether any of
    it is in some."""
    count = len(next(iter(begun.values()))) if begun else 1
    whole, some, possible = (np.zeros((len(chains.layers), count), dtype=bool) for _ in range(3))
    for chain in reversed(range(len(chains.layers))):
        for reader in bits(chains.after[chain]):
            whole[chain] |= some[reader]
        some[chain] = begun.get(chain, whole[chain])
    for chain, sources in enumerate(chains.before):
        possible[chain] = begun.get(chain, True)
        for source in bits(sources):
            possible[chain] &= possible[source]
    return whole, some, possible


def _cuts(chains: Chains, some: Flags, possible: Flags) -> Floats:
    again = reread(chains.before, chains.after)
    crossing = np.zeros_like(some)
    for chain, readers in enumerate(chains.after):
        without = [~possible[reader] for reader in bits(readers)]
        crossing[chain] |= some[chain] & (np.any(without, axis=0) if without else True)
        last = some[chain] & np.all(without, axis=0) if without else some[chain]
        for source in bits(again[chain]):
            crossing[source] |= last
    total = np.zeros(some.shape[1])
    for chain in np.flatnonzero(chains.outputs).tolist():
        total += chains.outputs[chain] * crossing[chain]
    return total
