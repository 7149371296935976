"""A layer whose forward runs again in its backward: whole, or without its products.

A product multiplies with a parameter. Products are most layers' expensive part. With
`keeps_products` their results stay from the first forward, and the other operations run again. This
is torch's selective activation checkpointing.

Some products need not be kept: the second forward never reads a result if only sums and views lie
between it and the layer's outputs.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Collection, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from autopart.runtime.capture.call_outputs import calls_opaque_code
from autopart.runtime.measuring.saved_tensors import storage_keys
from autopart.runtime.models.host_generators import HostGenerators, States

aten = torch.ops.aten
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
"""Contexts for the first forward and for the second."""

_PRODUCTS = frozenset({aten.mm, aten.addmm, aten.linear, aten.convolution})
"""Products as kernels see them. In the models that were tried, each multiplies with a parameter."""
_BATCHED = frozenset({aten.bmm, aten.baddbmm})
"""Products only if an operand is a parameter. Attention multiplies two activations with these."""
_CAPTURED_PRODUCTS = frozenset(
    {
        aten.linear,
        aten.addmm,
        aten.mm,
        aten.matmul,
        aten.conv1d,
        aten.conv2d,
        aten.conv3d,
        aten.convolution,
    }
)
"""Products in a captured graph, by name."""
_SUMS_AND_VIEWS = frozenset(
    {
        aten.add,
        aten.alias,
        aten.flatten,
        aten.permute,
        aten.reshape,
        aten.squeeze,
        aten.sub,
        aten.t,
        aten.transpose,
        aten.unflatten,
        aten.unsqueeze,
        aten.view,
    }
)
"""Operations whose backward reads no operand."""

READS_NOTHING = "reads_nothing"
"""Key in the `meta` of nodes that other rooms add: their backward reads no operand either."""


def can_keep_products(part: fx.GraphModule) -> bool:
    """Whether a layer's products can stay while its other operations run again.

    False if an operation writes into a product's memory. False also if the layer calls code that
    was not captured, since its operations cannot be seen.
    """
    nodes = part.graph.nodes
    if calls_opaque_code(part):
        return False
    products = storage_keys(
        _examples(node for node in nodes if _packet(node) in _CAPTURED_PRODUCTS)
    )
    for node in nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            # Storages show aliases that no schema declares: dropout of probability 0 returns its
            # input itself.
            written = _examples(n for n in node.all_input_nodes[:1])
            if not products.isdisjoint(storage_keys(written)):
                return False
    return True


def _examples(nodes: Iterable[fx.Node]) -> list[torch.Tensor]:
    """Return the fake tensors that capture noted as the nodes' results."""
    return _tensors(node.meta.get("val") for node in nodes)


class RecomputedLayer(nn.Module):
    """Keeps the layer's inputs; its forward runs again when its backward begins.

    Invariant: no layer writes into another layer's tensors. Capture merges such layers.
    """

    def __init__(
        self,
        name: str,
        part: fx.GraphModule,
        buffers: Collection[int],
        *,
        keeps_products: bool = False,
    ) -> None:
        """`buffers` are the input positions that hold the model's buffers."""
        super().__init__()
        self.name = name
        self.part: nn.Module = part
        self._buffers_at = frozenset(buffers)
        self._is_random = _is_random(part)
        self._generators = HostGenerators(part.modules()) if calls_opaque_code(part) else None
        self._keeps_products = keeps_products
        if keeps_products:
            _mark_unkept_products(part)

    def forward(self, *inputs: Any) -> Any:
        """Run the layer. Both forwards draw equal random numbers; only the first updates
        buffers."""
        taken = [v for place, v in enumerate(inputs) if place not in self._buffers_at]
        buffers = {place: inputs[place] for place in self._buffers_at}
        written = [*buffers.values(), *self.part.buffers()]

        def run(*others: Any) -> Any:
            # A second forward stops early, possibly inside a marked product: reset the mark.
            _UnkeptProduct.is_running = False
            rest = iter(others)
            return self.part(
                *(buffers[i] if i in buffers else next(rest) for i in range(len(inputs)))
            )

        # Opaque code may draw from generators outside torch, which torch does not restore.
        generators = self._generators
        drawn = None if generators is None else generators.states()

        def contexts() -> Contexts:
            if generators is not None and drawn is not None:
                return nullcontext(), _both(_restored(written), _drawing_again(generators, drawn))
            if not self._keeps_products:
                return nullcontext(), _restored(written)
            first, second = _keeping_products(inputs)
            # `second` matches operations with the first forward. Copies of buffers are none of
            # them, so they are made outside of it.
            return first, _both(_restored(written), second)

        # Buffers are not passed as arguments: torch refuses arguments that change before the second
        # forward.
        return checkpoint(
            run,
            *taken,
            use_reentrant=False,
            preserve_rng_state=self._is_random,
            context_fn=contexts,
        )


class _UnkeptProduct:
    """Whether a product that need not be kept runs now."""

    is_running = False


def _keeping_products(inputs: Iterable[Any]) -> Contexts:
    parameters = storage_keys(value for value in inputs if isinstance(value, nn.Parameter))

    def policy(_: object, operation: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
        packet = getattr(operation, "overloadpacket", operation)
        is_product = packet in _PRODUCTS or (
            packet in _BATCHED and not parameters.isdisjoint(storage_keys(_tensors(arguments)))
        )
        keep = is_product and not _UnkeptProduct.is_running
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    first, second = create_selective_checkpoint_contexts(policy)
    return first, second


def _mark_unkept_products(part: fx.GraphModule) -> None:
    """Mark products with only sums and views between them and the layer's outputs."""
    # Step 1: walk backwards and collect sums and views that lead to nothing but outputs.
    passing = {part.graph.output_node()}
    for node in reversed(part.graph.nodes):
        is_sum = _packet(node) in _SUMS_AND_VIEWS or node.meta.get(READS_NOTHING)
        if is_sum and passing.issuperset(node.users):
            passing.add(node)
    # Step 2: surround each product that only these read with calls that set and clear the mark.
    for node in list(part.graph.nodes):
        if _packet(node) in _CAPTURED_PRODUCTS and passing.issuperset(node.users):
            with part.graph.inserting_before(node):
                part.graph.call_function(_set_unkept, (True,))
            with part.graph.inserting_after(node):
                part.graph.call_function(_set_unkept, (False,))
    part.recompile()


def _set_unkept(is_running: bool) -> None:
    _UnkeptProduct.is_running = is_running


def _packet(node: fx.Node) -> object:
    of = _operation(node)
    return None if of is None else of.overloadpacket


def _operation(node: fx.Node) -> torch._ops.OpOverload | None:
    """The node's operation. A split one, or one on slices, takes it as its first argument."""
    of = node.target if isinstance(node.target, torch._ops.OpOverload) else (*node.args, None)[0]
    is_call = node.op == "call_function"
    return of if is_call and isinstance(of, torch._ops.OpOverload) else None


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _is_random(part: fx.GraphModule) -> bool:
    """Whether the part may draw random numbers. Uncaptured modules and regions count as random."""
    return any(
        node.op in ("call_module", "get_attr")
        or torch.Tag.nondeterministic_seeded in getattr(_operation(node), "tags", ())
        for node in part.graph.nodes
    )


@contextmanager
def _both(
    outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]
) -> Generator[None]:
    with ExitStack() as stack:
        stack.enter_context(outer)
        stack.enter_context(inner)
        yield


@contextmanager
def _drawing_again(generators: HostGenerators, states: States) -> Generator[None]:
    """Draw the numbers that follow `states` in the block, then go on as if nothing was drawn."""
    with generators.restored():
        generators.restore(states)
        yield


@contextmanager
def _restored(buffers: Iterable[torch.Tensor]) -> Generator[None]:
    """Restore the buffers' values when the block ends.

    The copy goes through ``data``. Autograd would otherwise report an error for other microbatches
    in flight that have saved the buffers.
    """
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)
