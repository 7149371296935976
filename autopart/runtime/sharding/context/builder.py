"""The local graph of a context rank under construction: one attempt to cut every node of a captured graph.

Cut values come from the embeddings of tokens on. Whole values, such as positions, tables and masks, are computed on
each rank. Where work on a rank's positions reads them, the rank takes its chunks. `reads` notes who asked
for which, so that a second attempt can compute no more than the chunks (`following.py`).
"""

# pyright: reportPrivateUsage=false

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import fx

from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.captured_nodes import CapturedNodes
from autopart.runtime.sharding.collectives import own_part, reduce
from autopart.runtime.sharding.context.draws import draw_own_positions
from autopart.runtime.sharding.context.exchange import gather_positions, own_positions
from autopart.runtime.sharding.context.states import (
    CONTEXT,
    EXPERT,
    ContextRefused,
    OwnCounts,
    Rows,
    State,
    check_length,
    check_samples,
)
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.own_draws import own_draws
from autopart.runtime.transforms.recomputed_layer import READS_NOTHING
from autopart.runtime.transforms.seeded_draws import draws

Convert = Callable[[fx.Node], fx.Node]


class ContextBuilder(CapturedNodes):
    """One attempt. The rules call these methods; `ContextRefused` ends the pass."""

    def __init__(
        self,
        captured: Captured,
        degree: int,
        chosen: Mapping[str, Rows],
        experts: Mapping[str, int] | None = None,
        *,
        ring: bool = False,
    ) -> None:
        """With `experts`, the samples are cut, and the parameters in `experts`. Without them, the sequences."""
        super().__init__(captured)
        self.degree = degree
        self.ring = ring
        """Whether keys and values go around a ring where attention can take them so."""
        self.gathering: dict[str, str] = {}
        """Why an operation gathers all the same, by its description."""
        self.experts = {} if experts is None else experts
        self.group = CONTEXT if experts is None else EXPERT
        """The name of the group in which the ranks exchange."""
        self.samples: set[int] = set()
        """Sizes of the dimensions of samples."""
        self.chosen = chosen
        """Whole nodes of which each rank computes its positions only."""
        self.graph = fx.Graph()
        self.layer_of: dict[str, str] = {}
        self.states: dict[fx.Node, State] = {}
        self.elements: dict[fx.Node, Sequence[State]] = {}
        """The states of several results, where they differ."""
        self.whole_nodes: set[fx.Node] = set()
        """Nodes of the local graph that are equal on all ranks."""
        self.reads: dict[tuple[fx.Node, fx.Node], Rows | None] = {}
        """How a node reads a whole one: its own positions, or all (None)."""
        self.has_roots = False
        self.written: set[fx.Node] = set()
        """Whole tensors into which work on a rank's positions writes, so that their readers may want these positions only."""
        self.unsound: str | None = None
        """Why the graph is not exact, as long as a value is computed whole."""
        self._local: dict[fx.Node, fx.Node] = {}
        self._formed: dict[tuple[object, ...], fx.Node] = {}
        self._helpers: dict[str, fx.Node] = {}

    def rows(self, node: fx.Node) -> Rows | None:
        """Return where a node's positions stand; None for a whole one."""
        state = self.states[node]
        return state if isinstance(state, Rows) else None

    def cut_inputs(self, node: fx.Node) -> list[fx.Node]:
        """Return the inputs that are not whole."""
        return [n for n in node.all_input_nodes if self.states[n] is not None]

    def root(self, size: int, dim: int, what: str) -> Rows:
        """Return the rows of a new sequence along `dim`."""
        if self.group == CONTEXT:
            check_length(size, self.degree, what)
        else:
            check_samples(size, self.degree, math.gcd(*self.experts.values()))
        self.samples.add(size)
        self.has_roots = True
        return Rows(dim, size)

    # What a rule may write.

    def put(
        self, node: fx.Node, state: State, target: Any, args: tuple[Any, ...], **kwargs: Any
    ) -> fx.Node:
        """Write the local counterpart of `node`, in a state."""
        return self._enter(node, state, self._emit(node, target, args, kwargs, node.name))

    def put_copied(self, node: fx.Node, state: State, convert: Convert) -> fx.Node:
        """Write the same operation with converted inputs."""
        new = self.graph.node_copy(node, convert)
        new.meta = {key: value for key, value in node.meta.items() if key != "val"}
        if (layer := self.layer(node)) is not None:
            self.layer_of[new.name] = layer
        return self._enter(node, state, new)

    def put_on_rows(
        self, node: fx.Node, rows: Rows, demands: Mapping[fx.Node, Rows | None]
    ) -> fx.Node:
        """Write the same operation on the rank's positions. Where it draws random numbers, they are its own."""
        formed = {n: self.formed(n, node, want) for n, want in demands.items()}
        new = self.put_copied(node, rows, formed.__getitem__)
        if is_random(node):
            given = node.args[5:] if node.target is own_draws else node.args
            given = (*given, *node.kwargs.values())
            own = [demands[n] if isinstance(n, fx.Node) else None for n in given]
            draw_own_positions(new, own, rows, (self.degree, self.group))
        return new

    def put_whole(self, node: fx.Node) -> None:
        """Write the same operation on whole inputs."""
        self.put_copied(node, None, lambda n: self.whole(n, node))

    def put_sum(self, node: fx.Node, target: Any, args: tuple[Any, ...], **kwargs: Any) -> None:
        """Write a result that is summed over the ranks."""
        own = self._emit(node, target, args, kwargs, f"{node.name}__own")
        self.put(node, None, reduce, (own, self.group))

    def emit_copied(self, node: fx.Node, convert: Convert) -> fx.Node:
        """Write the same operation with converted inputs, as a helper for `node`."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), convert)
        return self._emit(node, node.target, args, kwargs, f"{node.name}__own")

    def emit(self, at: fx.Node, target: Any, *args: Any) -> fx.Node:
        """Write a helper operation for `at`, in its layer."""
        return self._emit(at, target, args, {}, f"{at.name}__{target.__name__.split('.')[0]}")

    def local(self, node: fx.Node) -> fx.Node:
        """Return the local counterpart as it is."""
        return self._local[node]

    def formed(self, node: fx.Node, at: fx.Node, want: Rows | None) -> fx.Node:
        """Return `node` as `at` needs it: on its own positions, or whole."""
        return self.whole(node, at) if want is None else self.own(node, at, want)

    def whole(self, node: fx.Node, at: fx.Node) -> fx.Node:
        """Return a whole value for `at`."""
        if self.states[node] is not None:
            self.fail(at, f"needs all positions of '{node.name}'")
        self.reads[node, at] = None
        return self._local[node]

    def own(self, node: fx.Node, at: fx.Node, want: Rows) -> fx.Node:
        """Return a value on the rank's positions for `at`."""
        state = self.states[node]
        if isinstance(state, Rows):
            if state.plain != want.plain:
                self.fail(at, f"reads '{node.name}' at other positions")
            return self._local[node]
        if state is not None or want.kind in ("pool", "sent"):
            self.fail(at, f"reads '{node.name}' beside the positions of single ranks")
        is_new = self.reads.setdefault((node, at), want) == want
        if not is_new:
            self.reads[node, at] = None
        if want.slices > 1:
            self.unsound = f"{self.described(at)} reads '{node.name}' beside slices of the sequence"
        key = (node, self.layer(at), want.plain)
        if key not in self._formed:
            if want.kind == "experts":
                args = (self._local[node], want.dim, (), self.degree, self.group)
                self._formed[key] = self.emit(at, own_part, *args)
                return self._formed[key]
            args = (self._local[node], want.dim, want.outer, self.degree, self.group)
            self._formed[key] = self.emit(at, own_positions, *args)
        return self._formed[key]

    def helper(self, at: fx.Node, target: Any, x: fx.Node, *args: Any) -> fx.Node:
        """Return `target(x, *args)` in the ranks' group, once per layer; `x` is a node of the captured graph or a helper."""
        own = self._local.get(x, x)
        key = (target, own, self.layer(at), *args)
        if key not in self._formed:
            self._formed[key] = self.emit(at, target, own, *args, self.degree, self.group)
            self._formed[key].meta[READS_NOTHING] = True
            self._helpers[self._formed[key].name] = self._formed[key]
        return self._formed[key]

    def sum_over_ranks(self, node: fx.Node, at: fx.Node) -> None:
        """Let the ranks' sum stand for a node from here on. It is whole."""
        self._local[node], self.states[node] = (
            self.emit(at, reduce, self._local[node], self.group),
            None,
        )
        self.whole_nodes.add(self._local[node])

    def named(self, name: str) -> fx.Node:
        """Return a helper by its name."""
        return self._helpers[name]

    def replace(self, node: fx.Node, state: Rows, new: fx.Node) -> None:
        """Let `new` stand for a node from here on, in another state."""
        self._local[node], self.states[node] = new, state

    def gathered(self, nodes: Sequence[fx.Node], at: fx.Node) -> list[fx.Node]:
        """Return cut values with all their positions, in one message; readers' gradients are summed."""
        if self.ring:
            self.gathering.setdefault(self.described(at), "reads all positions at once")
        key = ("gather", *nodes, self.layer(at))
        if key not in self._formed:
            rows = [self.rows(n) for n in nodes]
            for node, own in zip(nodes, rows, strict=True):
                if own is None or own.kind != "chunks" or own.slices > 1 or own.refers:
                    self.fail(at, f"needs all positions of '{node.name}', which cannot be gathered")
            dims, outers = [r.dim for r in rows if r], [r.outer for r in rows if r]
            args = ([self._local[n] for n in nodes], dims, outers, self.degree, self.group)
            self._formed[key] = self.emit(at, gather_positions, *args)
            self._formed[key].meta[READS_NOTHING] = True
        return [
            self._emit(at, operator.getitem, (self._formed[key], place), {}, f"{n.name}__gathered")
            for place, n in enumerate(nodes)
        ]

    def described(self, at: fx.Node) -> str:
        """Return an operation with its layer, for a message."""
        layer = self.layer(at)
        where = "the model" if layer is None else f"layer '{layer}'"
        return f"{where}: {operation_name(at)}"

    def fail(self, at: fx.Node, reason: str) -> NoReturn:
        """End the pass."""
        what = "sequence" if self.group == CONTEXT else "microbatch"
        raise ContextRefused(
            f"{self.group} degree {self.degree}: {self.described(at)} {reason}, so its {what} cannot be cut; "
            f"use {self.group} degree 1"
        )

    def _emit(
        self,
        at: fx.Node,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        name: str,
    ) -> fx.Node:
        new = self.graph.create_node("call_function", target, args, dict(kwargs), name)
        if target is reduce:
            new.meta[READS_NOTHING] = True
        if (layer := self.layer(at)) is not None:
            self.layer_of[new.name] = layer
        return new

    def _enter(self, node: fx.Node, state: State, new: fx.Node) -> fx.Node:
        self._local[node], self.states[node] = new, state
        if state is None:
            self.whole_nodes.add(new)
        return new

    def put_root(self, node: fx.Node, rows: Rows) -> None:
        """Take the rank's positions of an input that the graph has just written whole."""
        args = (self._local[node], rows.dim, rows.outer, self.degree, self.group)
        self._local[node] = self.emit(node, own_positions, *args)
        self.states[node] = rows


def is_random(node: fx.Node) -> bool:
    """Tell whether the node draws random numbers."""
    if node.target is own_draws:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return draws(node.target, node.args, node.kwargs)


def is_counts(state: State) -> bool:
    """Tell whether a state is that of a rank's own counts."""
    return isinstance(state, OwnCounts)
