"""Models that cannot be exported whole: the offending modules are run as they are.

A module whose control flow depends on tensor values (``if x.sum() > 0``) stops the exporter. Then
the model is run once for real, each module is exported alone with what it was given, and those that
fail although all modules inside them succeed are the offenders. During export one operation stands
in for the block around an offender; afterwards a call of the original module takes its place. Where
the root's own code offends, the whole model is one call.
"""

import copy
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.errors import AutopartError, ModelError
from autopart.runtime.capture.calls import ModuleCall, record_calls
from autopart.runtime.capture.exporting import UncapturableError, export_surroundings
from autopart.runtime.capture.standin import StandIns, can_stand_in
from autopart.runtime.capture.tracing import Traced, trace_loss
from autopart.runtime.capture.whole import trace_whole
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.runtime.models.user_code import describe_error, error_place

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_DATA_DEPENDENT = (
    "GuardOnDataDependentSymNode",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
)
_LONGEST_REASON = 160

Calls = Mapping[str, list[ModuleCall]]


def trace_model(model: TrainingModel, batch: Batch) -> Traced:
    """The flat graph of the model's loss, with calls of the modules that cannot be exported.

    Raises ModelError where the model itself fails on the batch, or cannot be exported and has no
    real tensors to be run with.
    """
    try:
        return trace_loss(model, batch)
    except AutopartError:
        raise
    # The exporter runs the user's code and has errors of its own: anything may come out of it.
    except Exception as error:
        return _trace_around(model, batch, error)


def _trace_around(model: TrainingModel, batch: Batch, error: Exception) -> Traced:
    with _without_cache(model):
        calls = _recorded(model, batch, error)
        reasons: dict[str, str] = {}
        while True:
            stand_ins = StandIns(model.model, {path: calls[path] for path in reasons})
            with stand_ins.installed():
                if reasons:
                    try:
                        traced = trace_loss(model, batch)
                    except Exception as next_error:  # as above
                        error = next_error
                    else:
                        return _noted(stand_ins.replaced(traced), reasons)
                found = _offenders(model.model, calls, reasons)
            if not found:
                return trace_whole(model, batch, _reason(error))
            reasons = _outermost({**reasons, **found})


def _recorded(model: TrainingModel, batch: Batch, error: Exception) -> Calls:
    try:
        return record_calls(model, batch)
    except ModelError as failed:
        if not any(parameter.is_meta for parameter in model.parameters()):
            raise
        raise ModelError(
            f"{model.name}: the model cannot be captured on the meta device, where it cannot be "
            f"run to look inside it: {_reason(error)}; use --device cpu"
        ) from failed


def _noted(traced: Traced, reasons: Mapping[str, str]) -> Traced:
    notes = tuple(
        f"'{path}' is run as it is, in one layer, because it cannot be captured: {reason}"
        for path, reason in reasons.items()
    )
    return replace(traced, notes=(*traced.notes, *notes))


@contextmanager
def _without_cache(model: TrainingModel) -> Generator[None]:
    """Hugging Face models make a key/value cache even in training, an object that blocks write
    into and that a graph cannot hold. The loss does not depend on it."""
    config: Any = getattr(model.model, "config", None)
    if getattr(config, "use_cache", None) is not True:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = True


def _offenders(root: nn.Module, calls: Calls, known: Mapping[str, str]) -> dict[str, str]:
    """Modules to be run as they are, and why: blocks around those that cannot be exported."""
    modules = dict(root.named_modules(remove_duplicate=False))
    found: dict[str, str] = {}
    for path, reason in _failing_below(root, "", calls, known):
        block = _block_around(path, modules, calls)
        if block is None:
            return {}
        found[block] = reason
    return found


def _outermost(reasons: Mapping[str, str]) -> dict[str, str]:
    inside = {p for p in reasons for q in reasons if p != q and p.startswith(f"{q}.")}
    return {path: reason for path, reason in reasons.items() if path not in inside}


def _failing_below(
    module: nn.Module, path: str, calls: Calls, known: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """The innermost modules below `module` that cannot be exported alone."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if below in known:
            continue
        if below not in calls:
            yield from _failing_below(child, below, calls, known)
            continue
        reason = _why_not_alone(child, calls[below][0])
        if reason is not None:
            inner = list(_failing_below(child, below, calls, known))
            yield from inner or [(below, reason)]


def _block_around(path: str, modules: Mapping[str, nn.Module], calls: Calls) -> str | None:
    """The nearest element of a list of modules around `path`, or else `path` itself; where that
    cannot be called from a graph, what is around it. None where only the root is."""
    steps = path.split(".")
    above = [".".join(steps[:end]) for end in range(len(steps), 0, -1)]
    elements = [p for p in above if isinstance(modules[p.rpartition(".")[0]], _LISTS)]
    start = elements[0] if elements else path
    for candidate in above[above.index(start) :]:
        if can_stand_in(calls.get(candidate, ())):
            return candidate
    return None


class _Alone(nn.Module):
    """One recorded call as a module of tensors only."""

    def __init__(self, module: nn.Module, call: ModuleCall) -> None:
        super().__init__()
        self.module = module
        leaves, self._structure = pytree.tree_flatten((call.args, call.kwargs))
        self._constants = [None if isinstance(x, torch.Tensor) else (x,) for x in leaves]
        self.tensors = tuple(
            x.detach().requires_grad_(x.requires_grad)
            for x in leaves
            if isinstance(x, torch.Tensor)
        )

    def forward(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        given = (tensor.clone() for tensor in tensors)  # what writes in place refuses leaves
        leaves = [next(given) if c is None else copy.copy(c[0]) for c in self._constants]
        args, kwargs = pytree.tree_unflatten(leaves, self._structure)
        output = self.module(*args, **kwargs)
        return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _why_not_alone(module: nn.Module, call: ModuleCall) -> str | None:
    alone = _Alone(module, call)
    try:
        with export_surroundings(alone):
            torch.export.export(alone, alone.tensors, strict=False)
    except Exception as error:  # the exporter runs the user's code, as above
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    if isinstance(error, UncapturableError):
        text = str(error)
    elif type(error).__name__ in _DATA_DEPENDENT or "data-dependent" in str(error):
        text = "what it does depends on the values of tensors"
    else:
        text = describe_error(error)
        text = text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " …"
    place = error_place(error)
    return f"{text} ({place})" if place else text
