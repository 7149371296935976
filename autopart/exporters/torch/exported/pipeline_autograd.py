"""The model's autograd functions, with backwards that no graph contains.

Written by autopart, for `pipeline_capture.py`.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

_NAMESPACE = "autopart_pipeline"
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))


class AsWritten(nn.Module):
    """One call of an autograd function, with its own backward."""

    def __init__(self, function: Any, args: tuple[Any, ...]) -> None:
        super().__init__()
        self.function = function
        leaves, self.structure = pytree.tree_flatten(args)
        self.leaves = [None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in leaves]
        self.made: Any = None  # the results as recorded, with a mark for each tensor

    def call(self, apply: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> Any:
        """The function's own results."""
        given = iter(tensors)
        leaves = [next(given) if leaf is None else leaf[0] for leaf in self.leaves]
        return apply(*pytree.tree_unflatten(leaves, self.structure))

    def forward(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = pytree.tree_leaves(self.call(self.function.apply, tensors))
        return [result for result in results if isinstance(result, torch.Tensor)]


class AutogradFunctions:
    """Records calls of autograd functions while torch.export runs, which would drop backwards."""

    def __init__(self) -> None:
        self.calls: list[AsWritten] = []
        self.apply: Any = torch.autograd.Function.__dict__["apply"]

    @contextmanager
    def recorded(self) -> Any:
        """Leave one operation per call in the graph. Raise ValueError for calls that no graph has.

        A hook for the gradient of a tensor, and a buffer that is replaced, are refused too:
        torch.export drops them.
        """

        def as_one_operation(function: Any, *args: Any) -> Any:
            if function is CheckpointFunction:
                return _without_checkpoint(*args)
            # Torch's own checkpointing computes nothing in the first. Others are custom operations.
            if function.__name__.startswith(("_NoopSaveInputs", "GeneratedBackwardFor_")):
                return self.apply.__func__(function, *args)
            if function.__name__ == "BackwardHookFunction":
                raise ValueError("a module has a backward hook, which a graph loses")
            return self._record(function, args)

        def refused(*_: Any) -> None:
            raise ValueError(
                "it registers a hook for the gradient of a tensor, which a graph loses"
            )

        def assigned(module: nn.Module, name: str, value: Any) -> None:
            old = module._buffers.get(name)  # pyright: ignore[reportPrivateUsage]
            is_fake = isinstance(old, FakeTensor) and isinstance(value, FakeTensor)
            if is_fake and old is not value:
                raise ValueError(f"it assigns buffer '{name}', which a graph loses: write into it")

        function: Any = torch.autograd.Function
        tensor: Any = torch.Tensor
        kept = tensor.register_hook
        library = torch.library.Library(_NAMESPACE, "FRAGMENT")
        library.define("call(Tensor[] given, int number) -> Tensor[]")
        torch.library.register_fake(f"{_NAMESPACE}::call", self._shapes, lib=library)
        function.apply = classmethod(as_one_operation)
        tensor.register_hook = refused
        assignments = register_module_buffer_registration_hook(assigned)
        try:
            yield
        finally:
            assignments.remove()
            function.apply = self.apply
            tensor.register_hook = kept
            library._destroy()  # pyright: ignore[reportPrivateUsage]

    def replace_in(self, graph: fx.GraphModule) -> None:
        """Replace the recorded operations by calls of the functions."""
        for part in [part for part in graph.modules() if isinstance(part, fx.GraphModule)]:
            for node in list(part.graph.nodes):
                if str(node.target).startswith(f"{_NAMESPACE}.call"):
                    given, number = node.args
                    part.add_module(f"function_{number}", self.calls[number])
                    with part.graph.inserting_before(node):
                        call = part.graph.call_module(f"function_{number}", (given,))
                    call.meta = node.meta
                    node.replace_all_uses_with(call)
                    part.graph.erase_node(node)
            part.recompile()

    def _record(self, function: Any, args: tuple[Any, ...]) -> Any:
        for leaf in pytree.tree_leaves(args):
            if not isinstance(leaf, (torch.Tensor, *_CONSTANTS)):
                kind = type(leaf).__name__
                raise ValueError(f"its autograd function {function.__name__} takes a {kind}")
        call = AsWritten(function, args)
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        self.calls.append(call)
        made = iter(getattr(torch.ops, _NAMESPACE).call(tensors, len(self.calls) - 1))

        def filled(leaf: Any) -> Any:
            return next(made) if leaf is _TENSOR else leaf

        return pytree.tree_map(filled, call.made)

    def _shapes(self, given: list[torch.Tensor], number: int) -> list[torch.Tensor]:
        call, versions = self.calls[number], [tensor._version for tensor in given]
        with torch.no_grad():
            results = call.call(lambda *args: self.apply.__func__(call.function, *args), given)
        if versions != [tensor._version for tensor in given]:
            raise ValueError(f"its autograd function {call.function.__name__} changes an argument")
        tensors = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
        call.made = pytree.tree_map_only(torch.Tensor, lambda _: _TENSOR, results)
        return [torch.empty_like(tensor) for tensor in tensors]


def _without_checkpoint(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
    """The results of a function under a reentrant checkpoint. The plan says what runs again.

    Torch gives no gradients through such a checkpoint if no tensor among its arguments needs one.
    Results have gradients if they are a tensor, or tensors in a tuple.
    """
    has_gradient = any(isinstance(x, torch.Tensor) and x.requires_grad for x in args)
    made = function(*args)
    if has_gradient and isinstance(made, torch.Tensor):
        return made
    if has_gradient and isinstance(made, tuple):
        return tuple(x if isinstance(x, torch.Tensor) else _detached(x) for x in made)
    return _detached(made)


def _detached(made: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, made)


class _Tensor:
    """Stands for a tensor among recorded results."""


_TENSOR = _Tensor()
