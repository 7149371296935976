"""One operation that stands in a trace for code that no graph can hold.

Its fake results come from templates. After the trace, calls of the real code take its place.
"""

import operator
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from autopart.runtime.capture.call_outputs import (
    META_KEY,
    OutputTemplate,
    empty_tensors,
    with_tensors,
)

_NAMESPACE = "autopart_fake"


class OpaqueOperation:
    """The operation, with one template for each key."""

    current: "OpaqueOperation | None" = None
    """The operation whose templates count now."""

    def __init__(self) -> None:
        self.templates: dict[str, OutputTemplate] = {}

    @contextmanager
    def defined(self) -> Generator[None]:
        """Define the operation for torch inside the block."""
        _define()
        OpaqueOperation.current = self
        try:
            yield
        finally:
            OpaqueOperation.current = None

    def __call__(self, tensors: Sequence[torch.Tensor], key: str) -> Any:
        """Leave one operation in the trace and return fake outputs."""
        made = getattr(torch.ops, _NAMESPACE).call(list(tensors), key)
        return with_tensors(self.templates[key], made)


@cache
def _define() -> torch.library.Library:
    """Define the operation once: torch cannot define it again after it has been called."""
    library = torch.library.Library(_NAMESPACE, "FRAGMENT")
    library.define("call(Tensor[] inputs, str key) -> Tensor[]")
    torch.library.register_fake(f"{_NAMESPACE}::call", _fake, lib=library)
    return library


def _fake(inputs: list[torch.Tensor], key: str) -> list[torch.Tensor]:
    assert OpaqueOperation.current is not None
    return empty_tensors(OpaqueOperation.current.templates[key])


def opaque_nodes(graph: fx.Graph) -> Iterator[tuple[fx.Node, Sequence[fx.Node], str]]:
    """Yield each opaque operation in a trace with its inputs and its key."""
    for node in list(graph.nodes):
        if str(node.target).startswith(f"{_NAMESPACE}.call"):
            inputs, key = node.args
            assert isinstance(inputs, list | tuple) and isinstance(key, str)
            yield node, inputs, key  # pyright: ignore[reportReturnType]


def put_call(node: fx.Node, call: fx.Node, template: OutputTemplate) -> None:
    """Replace an opaque operation by the call of real code, which stands before it."""
    # Step 1: one node for each tensor of the call's output.
    call.meta = {**node.meta, META_KEY: template, **call.meta}
    with node.graph.inserting_before(node):
        parts = [_part(node.graph, call, steps) for steps in template.paths()]
    for user in list(node.users):
        # Step 2: users of the fake's results take the real results.
        place = user.args[1]
        assert isinstance(place, int), "an operation that returns a list is only indexed"
        user.replace_all_uses_with(parts[place])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _part(graph: fx.Graph, node: fx.Node, steps: tuple[Any, ...]) -> fx.Node:
    """Take one tensor out of a structured output."""
    for step in steps:
        if isinstance(step, pytree.GetAttrKey):
            target, key = getattr, step.name
        else:
            target, key = operator.getitem, step.key if hasattr(step, "key") else step.idx
        part = graph.call_function(target, (node, key))
        part.meta = {k: v for k, v in node.meta.items() if k != META_KEY}
        node = part
    return node
