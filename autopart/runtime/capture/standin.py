"""Stand-ins for modules that cannot be exported, and calls of the modules in their place."""

import operator
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.runtime.capture.calls import ModuleCall
from autopart.runtime.capture.tracing import Traced
from autopart.runtime.capture.yields import META_KEY, Yields, empty_tensors, with_tensors, yields_of
from autopart.runtime.models.attributes import attach

_NAMESPACE = "autopart_standin"
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


def can_stand_in(calls: Sequence[ModuleCall]) -> bool:
    """Whether a graph can hold a module's calls: tensors and plain constants in plain containers go
    in, tensors come out whose shapes follow from that, and nothing that went in is changed."""
    shapes: dict[str, Yields] = {}
    for call in calls:
        key, yielded = _key("", call.args, call.kwargs), yields_of(call.output)
        if not _is_expressible(call) or shapes.setdefault(key, yielded) != yielded:
            return False
    return bool(calls)


def _is_expressible(call: ModuleCall) -> bool:
    given = [call.args, call.kwargs]
    leaves_out = pytree.tree_leaves(call.output)
    return (
        not call.writes_inputs
        and all(map(_is_plain, given))
        and any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(given))
        and any(isinstance(leaf, torch.Tensor) for leaf in leaves_out)
        and all(isinstance(leaf, (torch.Tensor, *_CONSTANTS)) for leaf in leaves_out)
    )


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return isinstance(value, (torch.Tensor, *_CONSTANTS))


class StandIns:
    """Stand-ins for some modules of a model, made from their recorded calls."""

    def __init__(self, root: nn.Module, calls: Mapping[str, list[ModuleCall]]) -> None:
        self._root = root
        self._yields: dict[str, Yields] = {}
        self._paths = list(calls)
        for path, made in calls.items():
            for call in made:
                key = _key(path, call.args, call.kwargs)
                self._yields.setdefault(key, yields_of(call.output))
        self._given: dict[str, tuple[list[Any], pytree.TreeSpec]] = {}

    @contextmanager
    def installed(self) -> Generator[None]:
        """Let the modules' calls leave one operation each in a trace."""
        library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        try:
            library.define("call(Tensor[] inputs, str key) -> Tensor[]")
            torch.library.register_fake(f"{_NAMESPACE}::call", self._fake, lib=library)
            with ExitStack() as stack:
                for path in self._paths:
                    stack.enter_context(_forward_replaced(self._root, path, self._forward(path)))
                yield
        finally:
            library._destroy()  # pyright: ignore[reportPrivateUsage]

    def replaced(self, traced: Traced) -> Traced:
        """The trace with calls of the modules themselves where stand-ins were."""
        graph = traced.module.graph
        for node in list(graph.nodes):
            if str(node.target).startswith(f"{_NAMESPACE}.call"):
                self._call_module(traced.module, node)
        traced.module.recompile()
        return traced

    def _fake(self, inputs: list[torch.Tensor], key: str) -> list[torch.Tensor]:
        return empty_tensors(self._yields[key])

    def _forward(self, path: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            key = _key(path, args, kwargs)
            leaves, structure = pytree.tree_flatten((args, kwargs))
            self._given[key] = leaves, structure
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            made = getattr(torch.ops, _NAMESPACE).call(tensors, key)
            return with_tensors(self._yields[key], made)

        return forward

    def _call_module(self, module: fx.GraphModule, node: fx.Node) -> None:
        inputs, key = node.args
        assert isinstance(inputs, list | tuple) and isinstance(key, str)
        given, (leaves, structure) = iter(inputs), self._given[key]
        filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, structure)
        path = _path(key)
        attach(module, path, self._root.get_submodule(path))
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, args, kwargs)
            call.meta = {**node.meta, META_KEY: self._yields[key]}
            parts = [_part(module.graph, call, steps) for steps in self._yields[key].paths()]
        for user in list(node.users):
            place = user.args[1]
            assert isinstance(place, int), "an operation that returns a list is only indexed"
            user.replace_all_uses_with(parts[place])
            module.graph.erase_node(user)
        module.graph.erase_node(node)


@contextmanager
def _forward_replaced(root: nn.Module, path: str, forward: Any) -> Generator[None]:
    module = root.get_submodule(path)
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own


def _part(graph: fx.Graph, node: fx.Node, steps: tuple[Any, ...]) -> fx.Node:
    """One tensor out of a structured output."""
    for step in steps:
        if isinstance(step, pytree.GetAttrKey):
            target, key = getattr, step.name
        else:
            target, key = operator.getitem, step.key if hasattr(step, "key") else step.idx
        part = graph.call_function(target, (node, key))
        part.meta = {k: v for k, v in node.meta.items() if k != META_KEY}
        node = part
    return node


def _key(path: str, args: Any, kwargs: Any) -> str:
    """What tells apart calls that may return other shapes."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    told = [
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves
    ]
    return f"{path}: {structure} {told}"


def _path(key: str) -> str:
    return key.partition(":")[0]
