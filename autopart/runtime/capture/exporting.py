"""What surrounds a call of ``torch.export``: silence, a model left as it was, and buffers that the
model replaces instead of writing into them."""

# pyright: reportPrivateUsage=false

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
from torch.nn.modules.module import register_module_buffer_registration_hook

_ATTRIBUTES = re.compile(r"tensor attributes? (.*?) (?:was|were) assigned during export")
_HARMLESS = ("_NoopSaveInputs", "GeneratedBackwardFor_")
"""How autograd functions begin that may be traced: one computes nothing (torch's checkpointing
without reentrance has it), others belong to custom operations, which are in the graph as such."""
_RECURRENT = "._flat_weights["
"""Where torch's recurrent modules list their own parameters."""
_MARK = (True,)
"""``non_blocking``, which tells the copies that stand for assignments from the model's own."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an export said and did; complete when it is over."""

    said: list[warnings.WarningMessage]
    assigned: list[int]
    """One entry for each assignment to a buffer."""


class UncapturableError(Exception):
    """A graph would silently compute something else than the code."""


@contextmanager
def hidden_gradients_refused() -> Generator[None]:
    """Stop at what changes gradients behind the exporter's back: it would trace the forward of an
    autograd function of the user's, or a tensor with a hook, and forget about the backward."""
    function, tensor = torch.autograd.Function, torch.Tensor
    apply, register_hook = function.__dict__["apply"], tensor.register_hook

    def checked(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__name__.startswith(_HARMLESS):
            return apply.__func__(cls, *args, **kwargs)
        raise UncapturableError(f"it uses the autograd function {cls.__name__}")

    def refused(_tensor: torch.Tensor, _hook: object) -> None:
        raise UncapturableError("it registers a hook for the gradient of a tensor")

    function.apply = classmethod(checked)  # pyright: ignore[reportAttributeAccessIssue]
    tensor.register_hook = refused  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        function.apply = apply
        tensor.register_hook = register_hook


@contextmanager
def export_surroundings(model: nn.Module) -> Generator[Surroundings]:
    """All that an export needs around it."""
    with (
        quiet() as said,
        attributes_kept(model),
        hidden_gradients_refused(),
        assignments_as_writes() as assigned,
    ):
        yield Surroundings(said, assigned)


@contextmanager
def quiet() -> Generator[list[warnings.WarningMessage]]:
    """Keep from the user what the exporter says about itself: warnings, logs, printed graphs.

    Yields the list of warnings.
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
    """Of the exporter's warnings the one that concerns the model: tensors kept in attributes."""
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
    """Take back what a traced forward leaves in the modules: fake tensors as attributes, in lists
    and in dictionaries."""
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
    """Trace ``self.buffer = new``, which the exporter forgets, as a marked copy into the buffer.

    Yields a list that holds one entry for each such assignment that was seen.
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
    """Move the marked copies behind everything else; until then the old buffer is read, from a
    copy of it, because autograd may need it after the write."""
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
