"""Sums over the layers in downsets, and the bytes at the cut after each downset.

Few downsets: each sum comes from an earlier downset by one addition. Many downsets: sums over
packed bits, eight layers at a time from a table with 256 entries.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.downsets import bits, merge_bits, pack, sum_bits
from autopart.peers.pipedream.charged_layers import ChargedLayers, Floats

Places = npt.NDArray[np.intp]

MANY = 2000
"""Number of downsets from which on their cuts are summed by tables."""


class DownsetSums(NamedTuple):
    """Sums over the layers in downsets: one entry per downset in each array."""

    compute: Floats
    """Seconds."""
    parameters: Floats
    """Bytes."""
    outputs: Floats
    """Bytes."""
    cut: Floats
    """out(D) in bytes (charges.py)."""


def grown_sums(
    nodes: ChargedLayers,
    grown: Sequence[tuple[int, int]],
    tops: Sequence[int],
    pieces: Sequence[Sequence[int]] | None = None,
) -> DownsetSums:
    """Sums for downsets that grow from one another, the empty one first.

    Downset i + 1 is downset `grown[i][0]` with layer `grown[i][1]` added, or with all layers in
    that `pieces` entry. `tops` are bit masks: for each downset its layers that no other layer in it
    reads.
    """
    sums: list[Floats] = []
    for amounts in (nodes.compute, nodes.parameters, nodes.outputs):
        each: list[float] = amounts.tolist()
        if pieces is not None:
            each = [math.fsum(each[v] for v in piece) for piece in pieces]
        total = [0.0]
        # One addition per downset: its parent stands ahead of it.
        for parent, piece in grown:
            total.append(total[parent] + each[piece])
        sums.append(np.array(total))
    compute, parameters, outputs = sums
    many = len(tops) > MANY
    cuts = _many_cuts(nodes, tops) if many else np.array(cut_bytes(nodes, tops))
    return DownsetSums(compute, parameters, outputs, cuts)


def mask_sums(nodes: ChargedLayers, masks: Sequence[int], tops: Sequence[int]) -> DownsetSums:
    """Sums for any downsets, given as bit masks; `tops` as in `grown_sums`."""
    rows = pack(masks, len(nodes.compute))
    compute, parameters, outputs = (
        sum_bits(rows, amounts) for amounts in (nodes.compute, nodes.parameters, nodes.outputs)
    )
    return DownsetSums(compute, parameters, outputs, _many_cuts(nodes, tops))


def join_sums(
    nodes: ChargedLayers, ahead: Sequence[int], left: Places, right: Places
) -> tuple[Floats, Floats]:
    """Compute and out(D) for unions of two layers with everything ahead of them.

    `ahead` has a bit mask for each layer: the layer and everything ahead of it. Neither layer in a
    pair `left[i]`, `right[i]` may be ahead of the other.
    """
    width = len(nodes.compute)
    rows = pack(ahead, width)
    around = pack(
        [1 << v | mask for v, mask in enumerate(reread(nodes.before, nodes.after))], width
    )
    compute = sum_bits(rows[left] | rows[right], nodes.compute)
    return compute, sum_bits(around[left] | around[right], nodes.outputs)


def _many_cuts(nodes: ChargedLayers, tops: Sequence[int]) -> Floats:
    """As `cut_bytes`, by tables."""
    width = len(nodes.compute)
    around = [1 << v | mask for v, mask in enumerate(reread(nodes.before, nodes.after))]
    return sum_bits(merge_bits(pack(tops, width), around, width), nodes.outputs)


def cut_bytes(nodes: ChargedLayers, tops: Sequence[int]) -> list[float]:
    """out(D) for each downset, from its tops.

    The sum covers the tops' own outputs. It also covers outputs from layers ahead of a top that
    have readers elsewhere.
    """
    again = reread(nodes.before, nodes.after)
    some = sum(1 << v for v, mask in enumerate(again) if mask)
    amounts = nodes.outputs.tolist()
    known: dict[int, float] = {0: 0.0}
    cuts: list[float] = []
    for top in tops:
        around = top
        # Step 1: the layers around the cut, as bits.
        for v in bits(top & some):
            around |= again[v]
        # Step 2: their outputs: one addition where the rest is known, else a full sum.
        if around not in known:
            lowest = around & -around
            rest = known.get(around ^ lowest)
            if rest is None:
                rest = math.fsum(amounts[v] for v in bits(around ^ lowest))
            known[around] = rest + amounts[lowest.bit_length() - 1]
        cuts.append(known[around])
    return cuts


def reread(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """For each layer v a bit mask: layers ahead of v with a reader that is neither v nor ahead of
    v.

    `before` and `after` hold bit masks: the layers that each one reads, and its readers.
    """
    ahead: list[int] = []
    found: list[int] = []
    for v, sources in enumerate(before):
        down, candidates = 1 << v, sources
        # Candidates come from the layers that v reads, so that each is looked at once per edge.
        for u in bits(sources):
            down |= ahead[u]
            candidates |= found[u]
        ahead.append(down)
        found.append(sum(1 << u for u in bits(candidates) if after[u] & ~down))
    return found
