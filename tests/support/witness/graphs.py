"""A layer graph in the witness's own words: layers by position, values, cuts and partitions.

Nothing here comes from `autopart.cost`. The formulas follow docs/cost-model.md.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.problem import Demands


class ValueFacts(NamedTuple):
    """One value, with layers by position."""

    name: str
    maker: int
    readers: tuple[int, ...]
    size: int
    has_gradient: bool
    needed_by: frozenset[int]
    """Layers whose backward needs it."""
    kept_by: frozenset[int]
    """Layers whose backward needs it, or the value whose storage it shares."""
    own_result: bool
    """Whether its maker's backward needs it."""
    extra: int
    extra_by: tuple[int, ...]


class Crossing(NamedTuple):
    """Bytes and tensors over one cut for one microbatch."""

    bytes: int
    tensors: int
    gradient_bytes: int
    gradient_tensors: int


class Facts:
    """One layer graph by positions."""

    def __init__(self, graph: LayerGraph) -> None:
        place = {layer.name: at for at, layer in enumerate(graph.layers)}
        needed = {
            value.name: frozenset(place[name] for name in value.kept_by) for value in graph.values
        }
        self.graph = graph
        self.layers: tuple[Layer, ...] = graph.layers
        self.values = [
            ValueFacts(
                name=value.name,
                maker=place[value.producer],
                readers=tuple(sorted({place[name] for name in value.consumers})),
                size=value.bytes,
                has_gradient=value.has_gradient,
                needed_by=needed[value.name],
                kept_by=needed[value.name] | needed.get(value.part_of or "", frozenset()),
                own_result=value.producer in value.kept_by,
                extra=value.grad_extra_bytes,
                extra_by=tuple(place[name] for name in value.grad_extra_by),
            )
            for value in graph.values
        ]
        self.tied = [tuple(sorted({place[name] for name in one.layers})) for one in graph.tied]
        self.inputs = [
            (frozenset(place[name] for name in one.consumers), one.bytes) for one in graph.inputs
        ]
        self.edges = sorted({(v.maker, reader) for v in self.values for reader in v.readers})
        self.gradients_counted = all(la.backward_workspace_bytes is not None for la in self.layers)
        self.splits_profiled = all(la.split_backward is not None for la in self.layers)

    def crossing(self, ahead: int) -> Crossing:
        """The traffic over the cut behind the layers in `ahead`, one bit per layer."""
        over = [v for v in self.values if self.crosses(v, ahead)]
        back = [v for v in over if v.has_gradient]
        return Crossing(sum(v.size for v in over), len(over), sum(v.size for v in back), len(back))

    def crosses(self, value: ValueFacts, ahead: int) -> bool:
        """Whether a value is made ahead of a cut and read behind it."""
        made = bool(ahead >> value.maker & 1)
        return made and any(not ahead >> reader & 1 for reader in value.readers)


def members_of(before: int, after: int) -> list[int]:
    """The layers between two cuts, in the order of execution."""
    inside = after & ~before
    return [at for at in range(inside.bit_length()) if inside >> at & 1]


def partitions(facts: Facts, num_stages: int) -> tuple[tuple[int, ...], ...]:
    """Every partition into so many stages without an edge back, as masks of the layers ahead of each cut."""
    return _partitions(tuple(facts.edges), len(facts.layers), num_stages)


@functools.lru_cache(maxsize=4096)
def _partitions(
    edges: tuple[tuple[int, int], ...], num_layers: int, num_stages: int
) -> tuple[tuple[int, ...], ...]:
    found = [
        cuts
        for homes in _homes(edges, num_layers, num_stages, ())
        if len(set(homes)) == num_stages and (cuts := _cuts(homes, num_stages))
    ]
    return tuple(found)


def _homes(
    edges: tuple[tuple[int, int], ...], num_layers: int, num_stages: int, homes: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """Every stage for each layer: none ahead of a layer that it reads from."""
    at = len(homes)
    if at == num_layers:
        yield homes
        return
    first = max((homes[u] for u, w in edges if w == at), default=0)
    for home in range(first, num_stages):
        yield from _homes(edges, num_layers, num_stages, (*homes, home))


def _cuts(homes: tuple[int, ...], num_stages: int) -> tuple[int, ...]:
    return tuple(
        sum(1 << at for at, home in enumerate(homes) if home < stage)
        for stage in range(num_stages + 1)
    )


def keeps_pins(facts: Facts, demands: Demands, cuts: tuple[int, ...]) -> bool:
    """Whether a partition keeps pins and groups."""
    home = {
        facts.layers[at].name: stage
        for stage in range(len(cuts) - 1)
        for at in members_of(cuts[stage], cuts[stage + 1])
    }
    if any(home[pin.layer] != pin.stage for pin in demands.pins):
        return False
    if any(len({home[name] for name in group}) > 1 for group in demands.same_stage):
        return False
    return all(
        len({home[name] for name in group}) == len(set(group)) for group in demands.different_stage
    )
