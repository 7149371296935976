"""Classes of cuts: lower totals for all stages of a graph that has too many cuts to list.

Symbols   K        some layers, the kept ones; the other layers are light
          E        a class: all downsets D that have the same layers of K
          low(E)   the layers in every D of the class: E, and all layers ahead of E
          high(E)  the layers in some D of the class: all except K - E and the layers behind K - E

A stage between cuts in the classes E and E' has at least the layers low(E') - high(E). Its traffic
has at least the values that surely cross. So totals over these are lower totals for the stage. Each
path over cuts leads through a path of classes. A bound that grows with a stage's totals holds for
it. The same class may come twice in a row where its downsets differ in light layers.

K has as many layers as the most classes allow, the longest first. Layers without work come last,
and may make fewer classes. Layers named by demands and layers
with tied parameters come before all others: whether a stage has them is then certain. The empty
downset and the whole graph are classes of their own.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autopart.cost.cuts import Cuts
from autopart.cost.stage_totals import Array, StageTotals, Traffic, layer_sizes, plain_totals
from autopart.cost.transients import has_split_backward
from autopart.downsets import Flags, downsets_of, nodes_ahead, unpack
from autopart.records.layer_graph import LayerGraph, edges, positions

MOST_CLASSES = 1_200
"""The most classes, besides the empty downset and the whole graph."""

CLASSES_WITHOUT_WORK = 600
"""The most classes where layers without work are kept, too."""


@functools.lru_cache(maxsize=4)
def class_cuts(graph: LayerGraph, named: frozenset[str]) -> Cuts | None:
    """Classes as cuts, with lower totals for the stages between them.

    `named` are layers whose stage a demand asks for. None where these alone make more classes.
    """
    ahead = nodes_ahead(len(graph.layers), edges(graph))
    kept, masks = _kept_layers(graph, named, ahead)
    if masks is None:
        return None
    # Step 1: for each class the layers in all its downsets, and in some.
    has = unpack(masks, len(kept))
    low = has.astype(float) @ ahead[kept].astype(float) > 0
    low[:, kept] = has
    high = (~has).astype(float) @ ahead[:, kept].T.astype(float) == 0
    high[:, kept] = has
    # Step 2: the empty downset and the whole graph stand apart.
    n = len(graph.layers)
    has_empty, has_full = not high[0].any(), bool(low[-1].all())
    none, full = np.zeros((1, n), dtype=bool), np.ones((1, n), dtype=bool)
    low = np.vstack([none[has_empty:], low, full[has_full:]])
    high = np.vstack([none[has_empty:], high, full[has_full:]])
    return Cuts(low, _nested(kept, low, high), True, _lower_totals(graph, low, high))


def _kept_layers(
    graph: LayerGraph, named: frozenset[str], ahead: Flags
) -> tuple[npt.NDArray[np.int64], list[int] | None]:
    """The layers K, and all their downsets as bits in the order of K; no downsets where too many."""
    sizes = layer_sizes(graph)
    work = sizes.forward_time + sizes.backward_time
    place = positions(graph)
    first = {place[name] for name in named}
    first |= {place[name] for tied in graph.tied for name in tied.layers}
    longest = np.argsort(-work, kind="stable").tolist()
    order = [*sorted(first), *(at for at in longest if at not in first)]

    def downsets(count: int) -> tuple[npt.NDArray[np.int64], list[int] | None]:
        kept = np.sort(np.array(order[:count], dtype=np.int64))
        pairs = zip(*np.nonzero(ahead[np.ix_(kept, kept)]), strict=True)
        most = MOST_CLASSES
        if count > len(first) and work[order[count - 1]] == 0:
            most = min(most, CLASSES_WITHOUT_WORK)
        return kept, downsets_of(count, [(int(u), int(w)) for w, u in pairs], most)

    # A layer more never makes fewer downsets, so the largest number is found by halving.
    few, many = max(1, len(first)), len(order) + 1
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if downsets(middle)[1] is None else (middle, many)
    return downsets(few)


def _nested(kept: npt.NDArray[np.int64], low: Flags, high: Flags) -> Flags:
    """Whether a stage may lie between two classes, shape (N, N)."""
    has = low[:, kept].astype(float)
    inside = has @ (1 - has.T) == 0
    equal = inside & inside.T
    # Classes with the same layers of K: the empty downset before all, the whole graph behind all,
    # and one class twice where its downsets differ.
    place = np.arange(len(low))
    apart = (high & ~low).any(axis=1)
    before = place[:, None] < place[None, :]
    twice = np.diag(apart)
    nested: Flags = (inside & ~equal) | (equal & before) | twice
    return nested


class _SurelyInside:
    """Sums over the layers surely on each stage between two classes (`StageSums`), shape (N, N)."""

    def __init__(self, graph: LayerGraph, low: Flags, high: Flags) -> None:
        self.graph, self.place = graph, positions(graph)
        self._outside, self._low = (~high).astype(float), low.astype(float)
        values = [v for v in graph.values if v.consumers]
        self._makers = np.array([self.place[v.producer] for v in values], dtype=np.int64)
        self._crosses = low[:, self._makers]
        """Whether each value surely crosses each cut: it is made ahead, and some reader is not."""
        for at, v in enumerate(values):
            readers = [self.place[name] for name in v.consumers]
            self._crosses[:, at] &= ~high[:, readers].all(axis=1)
        keepers = [[self.place[name] for name in v.kept_by] for v in values]
        size = np.array([v.bytes for v in values], dtype=np.int64)
        back = np.array([v.has_gradient for v in values], dtype=np.int64)
        self._bytes = size
        self._kept, self._may_keep = (
            np.array([[bool(one[ks].any()) for ks in keepers] for one in ahead], dtype=bool)
            for ahead in (low, high)
        )
        columns = (size, np.ones_like(size), size * back, back)
        self._traffic = [self._crosses.astype(np.int64) @ column for column in columns]

    def seconds(self, per_layer: npt.NDArray[np.float64]) -> Array:
        return (self._outside * per_layer) @ self._low.T

    def bytes(self, per_layer: npt.NDArray[np.int64]) -> Array:
        # Whole numbers below 2 ** 53 stay exact in the faster product of floats.
        return np.rint(self.seconds(per_layer.astype(float))).astype(np.int64)

    def holds_tied(self, number: int) -> Array:
        return self._holds(self.graph.tied[number].layers)

    def reads_input(self, number: int) -> Array:
        return self._holds(self.graph.inputs[number].consumers)

    def _holds(self, names: Sequence[str]) -> Array:
        at = [self.place[name] for name in set(names)]
        return (self._outside[:, at] @ self._low[:, at].T > 0).astype(np.int64)

    def received(self) -> Traffic[Array]:
        return Traffic(*(column[:, None] for column in self._traffic))

    def sent(self) -> Traffic[Array]:
        return Traffic(*(column[None, :] for column in self._traffic))

    def kept_values(self) -> Array:
        return self._made(self._kept)

    def outputs(self) -> Array:
        return self._made(self._crosses & ~self._may_keep)

    def _made(self, counted: Flags) -> Array:
        """Bytes in values that are surely made on the stage, and are counted at the cut behind it."""
        made = self._outside[:, self._makers] * self._bytes
        return np.rint(made @ counted.T.astype(float)).astype(np.int64)

    def relayed_gradients(self) -> Array:
        return self.nothing()

    def nothing(self) -> Array:
        return np.zeros((len(self._low), len(self._low)), dtype=np.int64)


def _lower_totals(graph: LayerGraph, low: Flags, high: Flags) -> StageTotals[Array]:
    """Totals that no stage between cuts in two classes is below; maxima count as 0."""
    sums = _SurelyInside(graph, low, high)
    totals = plain_totals(graph, sums)
    waiting = totals.stash_bytes
    if has_split_backward(graph):
        waiting = sums.bytes(layer_sizes(graph).waiting_bytes)
    return totals._replace(waiting_bytes=waiting)
