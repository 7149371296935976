"""The local graph under construction: one attempt to shard every node of a captured graph.

Rules read the states of a node's inputs and write the node's local counterpart. They ask for inputs
in the form that they need, and the collectives between the forms are written here:

    replicated ──copy──▶ read by sharded work        partial ──reduce──▶ replicated
    sequence ──gather──▶ replicated                  partial ──scatter──▶ sequence

A replicated value that several operations of one layer read is copied or gathered once. So query,
key and value share one collective, and a sum over layers counts exactly what a stage runs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import fx

from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.captured_nodes import CapturedNodes
from autopart.runtime.sharding.collectives import (
    LINEAR,
    Parts,
    copy,
    gather,
    own_part,
    reduce,
    scatter,
    take,
)
from autopart.runtime.sharding.nodes import (
    indivisible,
    kept_by_plan,
    nodes_with_gradient,
    operation_name,
)
from autopart.runtime.sharding.own_draws import draw_own
from autopart.runtime.sharding.states import (
    PARTIAL,
    REPLICATED,
    Choices,
    ParameterShard,
    Refused,
    ShardState,
    sequence,
)
from autopart.runtime.transforms.recomputed_layer import READS_NOTHING
from autopart.runtime.transforms.seeded_draws import draws

GROUP = "tensor"
"""The name under which local graphs expect their group."""
SEQUENCE_DIM = 1
"""The sequence in values (batch, sequence, width)."""


class LocalGraph(CapturedNodes):
    """One attempt. `write` of each rule calls these methods; `Refused` ends the attempt."""

    def __init__(
        self, captured: Captured, degree: int, choices: Choices, *, sequence_parallel: bool
    ) -> None:
        super().__init__(captured)
        self.degree = degree
        self.choices = choices
        self.sequence_parallel = sequence_parallel
        self.graph = fx.Graph()
        self.layer_of: dict[str, str] = {}
        """Layer name for each node of the local graph that belongs to a layer."""
        self.shards: dict[str, ParameterShard] = {}
        """The sharded parameters, by their names in the captured graph."""
        self.kept_whole: dict[str, str] = {}
        """The operations with parameters that stay whole, by node name, each with its reason."""
        self.seeds: set[str] = set()
        self.states: dict[fx.Node, ShardState] = {}
        self._local: dict[fx.Node, fx.Node] = {}
        self._biases: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self._views: dict[fx.Node, fx.Node] = {}
        self._formed: dict[tuple[object, ...], fx.Node] = {}
        self._blamed: dict[str, str] = {}
        self._read_whole: dict[str, str] = {}
        self._crossing = {value.name for value in captured.values}
        self._trained = nodes_with_gradient(captured.module)

    # What a rule may ask, besides what `CapturedNodes` tells.
    def inputs(self, node: fx.Node, kind: str) -> list[fx.Node]:
        """Return the node's inputs whose state has this kind."""
        return [n for n in node.all_input_nodes if self.states[n].kind == kind]

    def is_refused(self, node: fx.Node) -> bool:
        """Tell whether the seed is banned. Its operation then runs whole."""
        return node.name in self.choices.banned

    def weight(self, node: fx.Node) -> fx.Node | None:
        """Return the parameter that the node is or that it moves the dimensions of; None for others."""
        source = self._views.get(node, node)
        return source if self.is_parameter(source) else None

    # What a rule may write.
    def put(
        self, node: fx.Node, state: ShardState, target: Any, args: tuple[Any, ...], **kwargs: Any
    ) -> None:
        """Write the local counterpart of `node`, in a state."""
        self._enter(node, state, self._emit(node, target, args, kwargs, node.name))

    def put_copied(
        self, node: fx.Node, state: ShardState, convert: Callable[[fx.Node], fx.Node]
    ) -> None:
        """Write the same operation with converted inputs."""
        new = self.graph.node_copy(node, convert)
        if (layer := self.layer(node)) is not None:
            self.layer_of[new.name] = layer
        self._enter(node, state, new)

    def put_sliced(
        self,
        node: fx.Node,
        state: ShardState,
        convert: Callable[[fx.Node], tuple[fx.Node, ShardState | None]],
    ) -> None:
        """Write the same operation on slices. `convert` has each input's state, None for a whole one.

        Where it draws random numbers, each rank draws those of its own slice.
        """
        formed = {n: convert(n) for n in node.all_input_nodes}
        self.put_copied(node, state, lambda n: formed[n][0])
        if draws(node.target, node.args, node.kwargs):
            given = (*node.args, *node.kwargs.values())
            states = [formed[n][1] if isinstance(n, fx.Node) else None for n in given]
            draw_own(self._local[node], states, state, self.degree, GROUP)

    def put_whole(self, node: fx.Node, reason: str = "") -> None:
        """Write the same operation on whole inputs. A reason counts where it reads parameters."""
        self.put_copied(node, REPLICATED, lambda n: self.whole(n, node))
        named = [n for n in node.all_input_nodes if self.weight(n)]
        if named and self.layer(node) is not None:
            self.kept_whole[node.name] = self.choices.banned.get(node.name) or reason

    def put_partial(
        self,
        node: fx.Node,
        target: Any,
        args: tuple[Any, ...],
        biases: tuple[fx.Node, ...] = (),
    ) -> None:
        """Write a result that must be summed over the ranks. `biases` are added after the sum."""
        new = self._emit(node, target, args, {}, f"{node.name}__partial")
        self._biases[node] = biases
        self._enter(node, PARTIAL, new)

    def put_view_by_readers(self, node: fx.Node, source: fx.Node) -> None:
        """Let each reader of a view make it, as it needs it: of a sequence value, or of a parameter."""
        if node.name in self._crossing:
            self.put_whole(node)
            return
        self._views[node] = source
        self.states[node] = REPLICATED

    def local(self, node: fx.Node) -> fx.Node:
        """Return the local counterpart as it is."""
        return self._local[node]

    def biases(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the biases that wait for the sum of a partial node."""
        return self._biases[node]

    def emit(self, at: fx.Node, target: Any, *args: Any) -> fx.Node:
        """Write a helper operation for `at`, in its layer."""
        return self._emit(at, target, args, {}, f"{at.name}__{target.__name__.split('.')[0]}")

    def whole(self, node: fx.Node, at: fx.Node, *, for_sharded: bool = False) -> fx.Node:
        """Return the whole value of `node` for the operation `at`.

        `for_sharded` says that the ranks' readers differ, so that their gradients must be summed.
        """
        self.settle(node)
        state = self.states[node]
        if state.kind == "sharded":
            self.fail(at, f"{operation_name(at)} needs all of '{node.name}'")
        key = (node, self.layer(at), for_sharded)
        if key not in self._formed:
            self._formed[key] = self._whole(node, at, for_sharded=for_sharded)
        return self._formed[key]

    def slice_of(self, node: fx.Node, at: fx.Node, like: ShardState) -> fx.Node:
        """Return each rank's slice of a replicated value along `like.dim`."""
        self.settle(node)
        if like.copies > 1:
            self.fail(at, f"'{node.name}' is whole, and several ranks would hold its slices")
        key = (node, self.layer(at), like)
        if key not in self._formed:
            is_leaf = node.op == "get_attr" or node not in self._trained
            cut = own_part if is_leaf else take
            source = self.whole(node, at, for_sharded=is_leaf)
            self._formed[key] = self.emit(at, cut, source, like.dim, like.parts, self.degree, GROUP)
        return self._formed[key]

    def settle(self, node: fx.Node) -> None:
        """Sum a partial value over the ranks, in the layer that made it."""
        if self.states[node] != PARTIAL:
            return
        shape, biases = self.shape(node), self._biases.pop(node)
        is_sequence = (
            self.sequence_parallel
            and len(shape) == SEQUENCE_DIM + 2
            and shape[SEQUENCE_DIM] % self.degree == 0
        )
        name = f"{node.name}__sum" if biases else node.name
        partial = self._local[node]
        if is_sequence:
            args = (partial, SEQUENCE_DIM, self.degree, GROUP)
            new = self._emit(node, scatter, args, {}, name)
        else:
            new = self._emit(node, reduce, (partial, GROUP), {}, name)
        self.states[node] = sequence(SEQUENCE_DIM) if is_sequence else REPLICATED
        for place, bias in enumerate(biases):
            last = place == len(biases) - 1
            added = self.whole(bias, node, for_sharded=is_sequence)
            name = node.name if last else f"{node.name}__biased"
            new = self._emit(node, torch.ops.aten.add.Tensor, (new, added), {}, name)
        self._local[node] = new

    def shard_parameter(self, node: fx.Node, at: fx.Node, like: ShardState) -> fx.Node:
        """Shard a parameter along `like.dim` and return it."""
        name = str(node.target)
        if not self.is_parameter(node):
            self.fail(at, f"'{node.name}' is computed, no parameter")
        if self.style(node) == "replicate":
            self.fail(at, kept_by_plan(name))
        shard = ParameterShard(like.dim, like.parts, like.copies)
        if self.shards.get(name, shard) != shard:
            self.fail(at, f"'{name}' would be sharded in two ways")
        if name in self._read_whole:
            self.fail(at, f"{self._read_whole[name]} reads all of '{name}'")
        slices = self.degree // like.copies
        for size in like.parts or (self.shape(node)[like.dim],):
            if size % slices:
                self.fail(at, indivisible(f"'{name}' has", size, self.degree))
        self.shards[name] = shard
        self._blamed.setdefault(name, self._seed_of(at))
        return self._local[node]

    def add_seed(self, node: fx.Node) -> None:
        """Note that `node` splits a weight by columns, without being asked to."""
        self.seeds.add(node.name)

    def fail(self, at: fx.Node, reason: str, parts: Parts = (), copies: int = 1) -> NoReturn:
        """End the attempt: the seed of the first sharded input of `at` is to blame."""
        raise Refused(self._seed_of(at), reason, parts, copies)

    # How they are written.

    def _whole(self, node: fx.Node, at: fx.Node, *, for_sharded: bool) -> fx.Node:
        if node in self._views:
            source = self.whole(self._views[node], at, for_sharded=for_sharded)
            return self._emit(at, node.target, (source, *node.args[1:]), dict(node.kwargs), "")
        state, local = self.states[node], self._local[node]
        if state.kind == "sequence":
            return self.emit(at, gather, local, state.dim, for_sharded, self.degree, GROUP)
        if self.is_parameter(node):
            self._note_whole_read(str(node.target), at)
        return self.emit(at, copy, local, GROUP) if for_sharded and node in self._trained else local

    def _note_whole_read(self, name: str, at: fx.Node) -> None:
        if name in self.shards:
            raise Refused(self._blamed[name], f"{operation_name(at)} reads all of '{name}'")
        self._read_whole.setdefault(name, operation_name(at))

    def _emit(
        self,
        at: fx.Node,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        name: str,
    ) -> fx.Node:
        new = self.graph.create_node(
            "call_function", target, args, dict(kwargs), name or f"{at.name}__view"
        )
        if target in LINEAR:
            new.meta[READS_NOTHING] = True
        if (layer := self.layer(at)) is not None:
            self.layer_of[new.name] = layer
        return new

    def _enter(self, node: fx.Node, state: ShardState, new: fx.Node) -> None:
        self._local[node], self.states[node] = new, state

    def _seed_of(self, at: fx.Node) -> str:
        seen: set[fx.Node] = set()
        waiting = [n for n in reversed(at.all_input_nodes) if self.states[n].kind == "sharded"]
        while waiting:
            node = waiting.pop()
            if node.name in self.seeds:
                return node.name
            if node not in seen:
                seen.add(node)
                found = [n for n in node.all_input_nodes if self.states[n].kind == "sharded"]
                waiting.extend(found)
        return at.name
