"""Fake modules during an export, and calls of the real modules after it."""

from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from autopart.runtime.capture.call_outputs import OutputTemplate, template_of
from autopart.runtime.capture.call_recorder import ModuleCall
from autopart.runtime.capture.opaque_operation import OpaqueOperation, opaque_nodes, put_call
from autopart.runtime.capture.torch_export import UncapturableError
from autopart.runtime.capture.tracing import Traced
from autopart.runtime.models.attributes import attach, has, persistent_buffers

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


def can_be_faked(calls: Sequence[ModuleCall]) -> bool:
    """Tell whether a graph can contain the module's calls.

    Inputs must be tensors and plain constants in plain containers, and must stay unchanged. Outputs
    must contain tensors whose shapes follow from the inputs.
    """
    shapes: dict[str, OutputTemplate] = {}
    for call in calls:
        key, template = _key("", call.args, call.kwargs), template_of(call.output)
        if not _is_expressible(call) or shapes.setdefault(key, template) != template:
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


class FakeModules:
    """Fakes for some modules, made from their recorded calls."""

    def __init__(
        self, root: nn.Module, calls: Mapping[str, list[ModuleCall]], operation: OpaqueOperation
    ) -> None:
        self._root = root
        self._operation = operation
        self._paths = list(calls)
        self._alike: dict[str, OutputTemplate | None] = {}
        """The template of all recorded calls of a module; None where they differ."""
        for path, made in calls.items():
            templates = [template_of(call.output) for call in made]
            same = all(template == templates[0] for template in templates)
            self._alike[path] = templates[0] if same else None
            for call, template in zip(made, templates, strict=True):
                key = _key(path, call.args, call.kwargs)
                operation.templates.setdefault(key, template)
        self._given: dict[str, tuple[list[Any], pytree.TreeSpec]] = {}

    @contextmanager
    def installed(self) -> Generator[None]:
        """Replace the modules inside the block. Each call leaves one operation in a trace."""
        with ExitStack() as stack:
            for path in self._paths:
                stack.enter_context(_replaced(self._root, path, self._forward(path)))
            yield

    def replaced(self, traced: Traced) -> Traced:
        """Return the trace with calls of the real modules in place of fakes."""
        for node, inputs, key in opaque_nodes(traced.module.graph):
            if key in self._given:
                self._call_module(traced, node, inputs, key)
        traced.module.recompile()
        return traced

    def _forward(self, path: str) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            key = _key(path, args, kwargs)
            # The model may give other arguments while it is traced, such as a mask that it can
            # leave out otherwise. The output is the same if all recorded calls agree.
            alike = self._alike[path]
            if key not in self._operation.templates:
                if alike is None:
                    raise UncapturableError(f"'{path}' takes other arguments in a trace")
                self._operation.templates[key] = alike
            leaves, structure = pytree.tree_flatten((args, kwargs))
            self._given[key] = leaves, structure
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            return self._operation(tensors, key)

        return forward

    def _call_module(
        self, traced: Traced, node: fx.Node, inputs: Sequence[fx.Node], key: str
    ) -> None:
        module = traced.module
        given, (leaves, structure) = iter(inputs), self._given[key]
        filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, structure)
        path = _path(key)
        real = self._root.get_submodule(path)
        attach(module, path, real)
        _attach_first_names(traced, real)
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, args, kwargs)
        put_call(node, call, self._operation.templates[key])


def _attach_first_names(traced: Traced, real: nn.Module) -> None:
    """Give the graph each tied tensor of a called module under the user's first name for it."""
    persistent = persistent_buffers(real)
    for tensor in (*real.parameters(), *real.buffers()):
        name = traced.names.get(id(tensor))
        if name is not None and not has(traced.module, name):
            attach(traced.module, name, tensor, persistent=id(tensor) in persistent)


@contextmanager
def _replaced(root: nn.Module, path: str, forward: Any) -> Generator[None]:
    """Give a module another forward and no hooks. Its own hooks run with its own forward."""
    module = root.get_submodule(path)
    own = module.__dict__.get("forward")
    hooks = {name: module.__dict__[name] for name in _HOOKS}
    module.__dict__.update({name: OrderedDict() for name in _HOOKS})
    module.forward = forward
    try:
        yield
    finally:
        module.__dict__.update(hooks)
        if own is None:
            del module.__dict__["forward"]
        else:
            module.forward = own


def _key(path: str, args: Any, kwargs: Any) -> str:
    """Return a key that differs between calls that may return different shapes."""
    leaves, structure = pytree.tree_flatten((args, kwargs))
    told = [
        f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves
    ]
    return f"{path}: {structure} {told}"


def _path(key: str) -> str:
    return key.partition(":")[0]
