"""A layer whose forward runs again in its backward: all of it, or all but its products.

Products are what multiplying with a parameter gives: the expensive part of most layers. With
`keeps_products` their results stay from the first forward (torch's selective activation
checkpointing), and only what lies between them runs again. A product whose result nothing but sums
and views take on its way out of the layer is not kept: running the rest again never asks for it.
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

from autopart.runtime.profiling.stash import storage_keys

aten = torch.ops.aten
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
"""Around the first forward, and around the second."""

_PRODUCTS = frozenset({aten.mm, aten.addmm, aten.linear, aten.convolution})
"""Where they reach a kernel; in the models at hand, all of them multiply with parameters."""
_BATCHED = frozenset({aten.bmm, aten.baddbmm})
"""Products only where an operand is a parameter: attention multiplies activations with them."""
_CAPTURED = frozenset(
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
"""What products are called in a captured graph."""
_PASSING = frozenset(
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
"""Operations whose backward needs none of their operands."""


def can_keep_products(part: fx.GraphModule) -> bool:
    """Whether the products of a layer can stay while the rest runs again: not where something is
    written into them, and not where a module runs as it is, in which nobody sees what happens."""
    for node in part.graph.nodes:
        if node.op == "call_module":
            return False
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            written = node.args[0]
            while isinstance(written, fx.Node) and _packet(written) in _PASSING:
                written = written.args[0]
            if isinstance(written, fx.Node) and _packet(written) in _CAPTURED:
                return False
    return True


class RecomputedLayer(nn.Module):
    """Keeps what the layer takes; its forward runs again when its backward begins.

    No layer writes into what another one made: capturing a model puts such layers together.
    """

    def __init__(
        self,
        name: str,
        part: fx.GraphModule,
        buffers: Collection[int],
        *,
        keeps_products: bool = False,
    ) -> None:
        """`buffers` are the places of the model's buffers among the inputs."""
        super().__init__()
        self.name = name
        self.part: nn.Module = part
        self._buffers_at = frozenset(buffers)
        self._is_random = _is_random(part)
        self._keeps_products = keeps_products
        if keeps_products:
            _pass_needless_products(part)

    def forward(self, *inputs: Any) -> Any:
        """The same random numbers are drawn both times, and statistics are kept of the first."""
        taken = [v for place, v in enumerate(inputs) if place not in self._buffers_at]
        buffers = {place: inputs[place] for place in self._buffers_at}
        written = [*buffers.values(), *self.part.buffers()]

        def run(*others: Any) -> Any:
            _Needless.now = False  # A second run may have ended in the middle of a product.
            rest = iter(others)
            return self.part(
                *(buffers[i] if i in buffers else next(rest) for i in range(len(inputs)))
            )

        def contexts() -> Contexts:
            if not self._keeps_products:
                return nullcontext(), _kept(written)
            first, second = _keeping_products(inputs)
            # Copies of buffers are no operations of the layer: they are made outside of `second`.
            return first, _both(_kept(written), second)

        # No buffers among the arguments: torch refuses those that change before the second run.
        return checkpoint(
            run,
            *taken,
            use_reentrant=False,
            preserve_rng_state=self._is_random,
            context_fn=contexts,
        )


class _Needless:
    """Whether the product that runs at present is one that need not be kept."""

    now = False


def _keeping_products(inputs: Iterable[Any]) -> Contexts:
    parameters = storage_keys(value for value in inputs if isinstance(value, nn.Parameter))

    def policy(_: object, operation: Any, *arguments: Any, **__: Any) -> CheckpointPolicy:
        packet = getattr(operation, "overloadpacket", operation)
        is_product = packet in _PRODUCTS or (
            packet in _BATCHED and not parameters.isdisjoint(storage_keys(_tensors(arguments)))
        )
        keep = is_product and not _Needless.now
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    first, second = create_selective_checkpoint_contexts(policy)
    return first, second


def _pass_needless_products(part: fx.GraphModule) -> None:
    """Mark the products of the graph whose results nothing but sums and views take on."""
    passing = {part.graph.output_node()}
    for node in reversed(part.graph.nodes):
        if _packet(node) in _PASSING and passing.issuperset(node.users):
            passing.add(node)
    for node in list(part.graph.nodes):
        if _packet(node) in _CAPTURED and passing.issuperset(node.users):
            with part.graph.inserting_before(node):
                part.graph.call_function(_set_needless, (True,))
            with part.graph.inserting_after(node):
                part.graph.call_function(_set_needless, (False,))
    part.recompile()


def _set_needless(now: bool) -> None:
    _Needless.now = now


def _packet(node: fx.Node) -> object:
    """The operation that the node runs, itself or through a twin of ours that takes it first."""
    of = node.target if isinstance(node.target, torch._ops.OpOverload) else (*node.args, None)[0]
    is_call = node.op == "call_function"
    return of.overloadpacket if is_call and isinstance(of, torch._ops.OpOverload) else None


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _is_random(part: fx.GraphModule) -> bool:
    """Whether the part may draw random numbers; what a module or a region does inside is unknown."""
    return any(
        node.op == "call_module"
        or node.op == "get_attr"
        or (
            isinstance(node.target, torch._ops.OpOverload)
            and torch.Tag.nondeterministic_seeded in node.target.tags
        )
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
def _kept(buffers: Iterable[torch.Tensor]) -> Generator[None]:
    """Put the buffers back as they were. Through ``data``: other microbatches in flight may have
    saved them, and would take a change for a fault."""
    before = [(buffer, buffer.detach().clone()) for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.data.copy_(value)
