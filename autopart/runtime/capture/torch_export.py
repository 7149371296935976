"""Surroundings for a ``torch.export`` call: silence, an unchanged model, traced assignments.

Some models replace a buffer instead of writing into it. Such assignments become writes.
"""

# pyright: reportPrivateUsage=false

import importlib
import io
import logging
import re
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.modules.module import register_module_buffer_registration_hook

from autopart.runtime.capture.checkpoints import checkpoints_left_out

_ATTRIBUTES = re.compile(r"tensor attributes? (.*?) (?:was|were) assigned during export")
_HARMLESS = ("_NoopSaveInputs", "GeneratedBackwardFor_")
"""Name prefixes of autograd functions that may be traced.

The first computes nothing (torch's checkpointing without reentrance has it). The others belong to
custom operations, which the graph contains as such.
"""
_RECURRENT = "._flat_weights["
"""Attribute in which torch's recurrent modules list their own parameters."""
_MARK = (True,)
"""``non_blocking``, which marks copies that replace assignments, unlike the model's own copies."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Warnings and assignments during an export; complete when the export is over."""

    said: list[warnings.WarningMessage]
    assigned: list[int]
    """One entry for each assignment to a buffer."""


class UncapturableError(Exception):
    """The graph would silently compute something else than the code."""


@contextmanager
def hidden_gradients_refused() -> Generator[None]:
    """Raise UncapturableError where user code changes gradients and the exporter does not see it.

    The exporter would trace the forward of a user's autograd function, or of a tensor with a hook,
    and lose the backward.
    """
    # The compiler's tables must hold torch's own functions, so it is imported first.
    importlib.import_module("torch._dynamo")

    function, tensor = torch.autograd.Function, torch.Tensor
    engine: Any = torch.autograd
    apply, register_hook = function.__dict__["apply"], tensor.register_hook
    grad, backward = engine.grad, engine.backward

    def checked(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__name__.startswith(_HARMLESS):
            return apply.__func__(cls, *args, **kwargs)
        raise UncapturableError(f"it uses the autograd function {cls.__name__}")

    def refused(_tensor: torch.Tensor, _hook: object) -> None:
        raise UncapturableError("it registers a hook for the gradient of a tensor")

    def no_backward(*_: Any, **__: Any) -> None:
        raise UncapturableError("it computes gradients in its forward")

    function.apply = classmethod(checked)  # pyright: ignore[reportAttributeAccessIssue]
    tensor.register_hook = refused  # pyright: ignore[reportAttributeAccessIssue]
    engine.grad = engine.backward = no_backward
    try:
        yield
    finally:
        function.apply = apply
        tensor.register_hook = register_hook
        engine.grad, engine.backward = grad, backward


@contextmanager
def moving_shapes_refused() -> Generator[None]:
    """Raise UncapturableError where a shape or number in a trace depends on values."""
    kinds = ("create_unbacked_symint", "create_unbacked_symfloat", "create_unbacked_symbool")
    before = {kind: getattr(ShapeEnv, kind) for kind in kinds}

    def refused(*_: Any, **__: Any) -> None:
        raise UncapturableError("its shapes depend on the values of tensors")

    for kind in kinds:
        setattr(ShapeEnv, kind, refused)
    try:
        yield
    finally:
        for kind, method in before.items():
            setattr(ShapeEnv, kind, method)


@contextmanager
def export_surroundings(model: nn.Module) -> Generator[Surroundings]:
    """Set up all surroundings that an export needs."""
    with (
        quiet() as said,
        attributes_kept(model),
        hidden_gradients_refused(),
        checkpoints_left_out(),
        assignments_as_writes() as assigned,
    ):
        yield Surroundings(said, assigned)


def refuse_objects(program: torch.export.ExportedProgram) -> None:
    """Raise UncapturableError if the graph contains objects that are no tensors.

    A random generator is one. Its state would change with each microbatch of each stage.
    """
    for value in program.constants.values():
        if not isinstance(value, torch.Tensor):
            raise UncapturableError(f"it uses a {type(value).__name__} of its own")


@contextmanager
def quiet() -> Generator[list[warnings.WarningMessage]]:
    """Hide the exporter's own messages from the user: warnings, logs, printed graphs.

    Yields the warnings as a list.
    """
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as said, redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            yield said
    finally:
        logging.disable(level)


def attribute_notes(said: Iterable[warnings.WarningMessage]) -> tuple[str, ...]:
    """Return a note on tensors that the model keeps in attributes, from the exporter's warnings."""
    found = [_ATTRIBUTES.search(str(warning.message)) for warning in said]
    names = [name for match in found if match for name in match[1].split(", ")]
    told = [name.removeprefix("self.model.") for name in names if _RECURRENT not in name]
    if not told:
        return ()
    return (
        f"the model keeps tensors in attributes while it runs ({', '.join(told)}); stages do not "
        "carry them from one microbatch to the next: register them as buffers if they matter",
    )


@contextmanager
def attributes_kept(model: nn.Module) -> Generator[None]:
    """Undo a traced forward's changes to the modules.

    It leaves fake tensors in attributes, lists and dictionaries.
    """
    kept = [(module, _copied(module.__dict__)) for module in model.modules()]
    try:
        yield
    finally:
        for module, before in kept:
            _restore(module.__dict__, before)


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (value, value.copy() if type(value) in (list, dict) else None)
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in attributes.keys() - before.keys():
        del attributes[name]
    for name, (value, content) in before.items():
        if type(value) is list:
            value[:] = content
        elif type(value) is dict:
            value.clear()
            value.update(content)
        attributes[name] = value


@contextmanager
def assignments_as_writes() -> Generator[list[int]]:
    """Trace ``self.buffer = new``, which the exporter ignores, as a marked copy into the buffer.

    Yields a list that gets one entry for each such assignment.
    """
    assigned: list[int] = []
    first: dict[tuple[int, str], torch.Tensor] = {}

    def hook(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
        old = module._buffers.get(name)
        if old is value or not isinstance(old, FakeTensor) or not isinstance(value, FakeTensor):
            return
        buffer = first.setdefault((id(module), name), old)
        if (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"buffer '{name}' of {type(module).__name__} is replaced by one of another shape "
                f"or dtype ({tuple(buffer.shape)} by {tuple(value.shape)})"
            )
        torch.ops.aten.copy_.default(buffer, value.detach(), *_MARK)
        assigned.append(len(assigned))

    handle = register_module_buffer_registration_hook(hook)
    try:
        yield assigned
    finally:
        handle.remove()


def write_at_the_end(graph: fx.Graph, assigned: list[int]) -> None:
    """Move the marked copies behind all other nodes.

    Until then the old buffer is read, from a copy, because autograd may need it after the write.
    """
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node in list(graph.nodes) if assigned else []:
        if node.target is torch.ops.aten.copy_.default and node.args[2:] == _MARK:
            buffer = node.args[0]
            assert isinstance(buffer, fx.Node) and buffer.op == "get_attr"
            node.replace_all_uses_with(buffer)
            graph.output_node().prepend(node)
            writers.setdefault(buffer, []).append(node)
    for buffer, copies in writers.items():
        _read_from_a_copy(graph, buffer, copies)


def _read_from_a_copy(graph: fx.Graph, buffer: fx.Node, writers: list[fx.Node]) -> None:
    readers = sorted(user for user in buffer.users if user not in writers)
    if readers:
        with graph.inserting_before(readers[0]):
            old = graph.call_function(torch.ops.aten.clone.default, (buffer,))
        old.meta = dict(readers[0].meta)
        for reader in readers:
            reader.replace_input_with(buffer, old)
