"""Classes of downsets, for graphs with too many downsets to look at each: lower bounds only.

Symbols   chain      consecutive layers with outputs of one size, each the only reader of the one before
          K          the chains that are kept apart;  begun: the chain's first layer is in a downset
          E(D)       the chains in K that downset D has begun: a downset of K in the graph's own order
          class E    all downsets D with E(D) = E
          lo, hi     bounds on a sum over the layers in D, for every D in a class

Every D in a class holds the first layers of chains in E, and everything ahead of these: their sum
is lo. No D holds a chain in K outside E, or anything behind such a chain: the sum over all other
layers is hi. D ⊆ D' implies E(D) ⊆ E(D').

*The cut is bounded too.* Let chain u be begun in a whole class, and let one of its readers be in no
D. Then D splits u, or it has all of u and not that reader. So an output from u crosses the cut, and
u counts with its one output size. Where D has no reader of u, the last layer of u in D is a top.
PipeDream's cut also counts what is read again beside a top (charges.py). So the sum over these
chains is at most out(D).

With all layers in K, classes are downsets, and lo = hi. Fewer chains in K give fewer classes and a
wider [lo, hi]: the layers between count as if they could be divided at will.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autopart.downsets import bits, unpack
from autopart.peers.pipedream.charged_layers import ChargedLayers, Floats
from autopart.peers.pipedream.downset_sums import reread
from autopart.peers.pipedream.downsets import Downsets, Level, levels, list_downsets
from autopart.solvers.fewest_ranks import Flags

BLOCK = 1 << 16
"""Classes per array operation, one flag per chain for each."""


class Chains(NamedTuple):
    """A graph's chains in a topological order."""

    layers: Sequence[Sequence[int]]
    """Layers in each chain."""
    before: Sequence[int]
    """For each chain a bit mask: the chains that it reads."""
    after: Sequence[int]
    """For each chain a bit mask: its readers."""
    outputs: Floats
    """Output bytes for one layer in each chain."""


class Classes(NamedTuple):
    """Downset classes by level, with the empty one first, and bounds for each class."""

    levels: Sequence[Level]
    """Levels with their covers."""
    compute: tuple[Floats, Floats]
    """lo and hi, in seconds."""
    parameters: tuple[Floats, Floats]
    """lo and hi, in bytes."""
    cut: Floats
    """A lower bound on out(D), in bytes."""


def chains(nodes: ChargedLayers) -> Chains:
    """A graph's longest chains."""
    home: list[int] = []
    members: list[list[int]] = []
    for v, sources in enumerate(nodes.before):
        u = sources.bit_length() - 1
        # A layer extends a chain where it is the only reader of its only source, with the same
        # output size.
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


def kept_downsets(chains: Chains, kept: Sequence[int], most: int) -> Downsets | None:
    """The downsets over the kept chains, given in ascending order; None where there are more than
    `most`."""
    place = {chain: at for at, chain in enumerate(kept)}
    nearest: list[int] = []
    # The nearest kept chains ahead of each chain.
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
    return list_downsets(before, after, most)


def classes(nodes: ChargedLayers, chains: Chains, kept: Sequence[int], most: int) -> Classes | None:
    """The classes for the kept chains, in ascending order; None where there are more than `most`."""
    downsets = kept_downsets(chains, kept, most)
    if downsets is None:
        return None
    bounds = [
        _bounds(nodes, chains, kept, unpack(downsets.masks[begin : begin + BLOCK], len(kept)))
        for begin in range(0, len(downsets.masks), BLOCK)
    ]
    joined = [np.concatenate(parts) for parts in zip(*bounds, strict=True)]
    return Classes(levels(downsets), (joined[0], joined[1]), (joined[2], joined[3]), joined[4])


def _bounds(
    nodes: ChargedLayers, chains: Chains, kept: Sequence[int], begun: Flags
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """lo and hi for compute and parameters, and the cut.

    `begun` has a row per class and a column per kept chain.
    """
    place = dict(zip(kept, np.ascontiguousarray(begun.T), strict=True))
    whole, some, possible = _members(chains, place)
    found: list[Floats] = []
    for amounts in (nodes.compute, nodes.parameters):
        low, high = np.zeros(len(begun)), np.zeros(len(begun))
        for chain, layers in enumerate(chains.layers):
            # A chain counts with all its layers, with its first one, or not at all.
            total, first = float(amounts[list(layers)].sum()), float(amounts[layers[0]])
            low += np.where(whole[chain], total, first * some[chain])
            high += total * possible[chain]
        found += [low, high]
    return found[0], found[1], found[2], found[3], _cuts(chains, some, possible)


def _members(chains: Chains, begun: dict[int, Flags]) -> tuple[Flags, Flags, Flags]:
    """Three flags at [chain, class].

    All layers of the chain are in every downset; its first layer is in every downset; any of its
    layers is in some downset.
    """
    count = len(next(iter(begun.values()))) if begun else 1
    whole, some, possible = (np.zeros((len(chains.layers), count), dtype=bool) for _ in range(3))
    # From the last chain: a begun reader needs all layers of the chain.
    for chain in reversed(range(len(chains.layers))):
        for reader in bits(chains.after[chain]):
            whole[chain] |= some[reader]
        some[chain] = begun.get(chain, whole[chain])
    # From the first chain: a chain is possible only where all its sources are.
    for chain, sources in enumerate(chains.before):
        possible[chain] = begun.get(chain, True)
        for source in bits(sources):
            possible[chain] &= possible[source]
    return whole, some, possible


def _cuts(chains: Chains, some: Flags, possible: Flags) -> Floats:
    """For each class a lower bound on out(D)."""
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
