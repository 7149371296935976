"""Models that cannot be exported whole: the offending modules run unchanged.

A module whose control flow depends on tensor values (``if x.sum() > 0``) stops the exporter. Then
the model runs once for real, and each module is exported alone with its recorded inputs. Offenders
are modules that fail although all modules inside them succeed. In the next export, a fake replaces
the block around each offender. Afterwards a call to the original module replaces the fake. If the
root's own code offends, the whole model becomes one call.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from autopart.errors import AutopartError, ModelError
from autopart.runtime.capture.call_recorder import ModuleCall, record_calls
from autopart.runtime.capture.dataflow import facts_and_writes
from autopart.runtime.capture.fake_modules import FakeModules, can_be_faked
from autopart.runtime.capture.lone_export import hook_of, reason_of, why_not_alone
from autopart.runtime.capture.loss_comparison import check_loss
from autopart.runtime.capture.one_layer_fallback import trace_whole
from autopart.runtime.capture.opaque_operation import OpaqueOperation
from autopart.runtime.capture.statement_calls import StatementCalls
from autopart.runtime.capture.torch_export import (
    UncapturableError,
    moving_shapes_refused,
    quiet,
)
from autopart.runtime.capture.tracing import Traced, trace_loss
from autopart.runtime.capture.used_modules import UnmovableError
from autopart.runtime.models.host_generators import HostGenerators
from autopart.runtime.models.model import Batch, TrainingModel

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_TRACES = 30
"""Largest number of traces of one model. Each needs one part more that runs unchanged."""

Calls = Mapping[str, list[ModuleCall]]


def trace_model(model: TrainingModel, batch: Batch) -> Traced:
    """Return the flat graph of the model's loss, with calls of modules that cannot be exported.

    Raises ModelError where the model itself fails on the batch, or where it cannot be exported and
    has no real tensors to run with.
    """
    # Generators outside torch are left as they were: modules run alone, and may draw.
    with HostGenerators(model.modules()).restored():
        try:
            return _repeatable(trace_loss(model, batch))
        except AutopartError:
            raise
        # The exporter runs the user's code, which may raise anything, and has errors of its own. No
        # error is lost: a note tells it as the reason for each part that then runs unchanged.
        except Exception as error:
            return _trace_around(model, batch, error)


def _trace_around(model: TrainingModel, batch: Batch, error: Exception) -> Traced:
    with _without_cache(model):
        calls = _recorded(model, batch, error)
        try:
            return _Attempt(model, batch, calls).run(error)
        except _NothingFinerError as failed:
            return trace_whole(model, batch, reason_of(failed.error))


class _UnrepeatableError(Exception):
    """The exporter allows a shape that depends on values, but its graph cannot run on fakes."""


def _repeatable(traced: Traced) -> Traced:
    """Return the trace. Raises _UnrepeatableError where it cannot run once more on fake tensors."""
    if not any(map(_is_symbolic, traced.module.graph.nodes)):
        return traced
    try:
        with quiet():
            facts_and_writes(traced)
    except Exception as error:  # torch's decompositions may raise anything here
        raise _UnrepeatableError from error
    return traced


def _is_symbolic(node: fx.Node) -> bool:
    value = node.meta.get("val")
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    return any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)


class _NothingFinerError(Exception):
    """No parts can run by themselves so that the rest can be exported."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Attempt:
    """A trace with more and more modules and statements that run unchanged."""

    def __init__(self, model: TrainingModel, batch: Batch, calls: Calls) -> None:
        self._model, self._batch, self._calls = model, batch, calls
        self._operation = OpaqueOperation()
        self._statements = StatementCalls(model, batch, self._operation)
        self._reasons: dict[str, str] = {}
        self._fine: set[str] = set()
        """Modules that could be exported alone."""
        self._is_strict = False
        """Whether shapes that depend on values end a trace."""

    def run(self, error: Exception) -> Traced:
        """Return the trace. Raises _NothingFinerError where only one call of the model is left."""
        cause = error
        for _ in range(_MOST_TRACES):
            cause = error
            if isinstance(error, _UnrepeatableError) and not self._is_strict:
                self._is_strict = True
                self._fine.clear()
            # Step 1: export with fakes for all offenders known so far.
            traced, found, error = self._trace(error, coarse=False)
            try:
                if traced is not None:
                    return self._checked(traced)
            except UncapturableError as other_loss:
                error = other_loss
                break
            # Step 2: add further modules that offend.
            if found:
                self._reasons = _outermost({**self._reasons, **found})
                continue
            if isinstance(error, _UnrepeatableError) and not self._is_strict:
                continue
            # Step 3: where none do, statements of a module with layers inside offend.
            try:
                self._statements.widen(error, reason_of(error))
            # Pieces of the user's code run alone here, and may raise anything. The reason that is
            # told stays the error of the trace.
            except Exception:
                break
        return self._coarse(cause if isinstance(error, UnmovableError) else error)

    def _coarse(self, error: Exception) -> Traced:
        """Trace without statements of their own: modules with layers inside run unchanged."""
        self._statements = StatementCalls(self._model, self._batch, self._operation)
        for _ in range(_MOST_TRACES):
            traced, found, error = self._trace(error, coarse=True)
            if traced is not None:
                return traced
            if not found:
                break
            self._reasons = _outermost({**self._reasons, **found})
        raise _NothingFinerError(error)

    def _trace(
        self, error: Exception, *, coarse: bool
    ) -> tuple[Traced | None, dict[str, str], Exception]:
        """Return the trace, or None with further offenders and the error that ended it."""
        chosen = {path: self._calls[path] for path in self._reasons}
        fakes = FakeModules(self._model.model, chosen, self._operation)
        strict = moving_shapes_refused() if self._is_strict else nullcontext()
        with self._operation.defined(), fakes.installed(), strict:
            if self._reasons or self._statements or self._is_strict:
                try:
                    with self._statements.installed():
                        traced = trace_loss(self._model, self._batch, self._statements.begin)
                    traced = _repeatable(self._statements.replaced(fakes.replaced(traced)))
                    return _noted(traced, self._reasons), {}, error
                # As in `trace_model`, the user's code may raise anything, and a note tells it.
                except Exception as next_error:
                    error = next_error
            return None, self._offenders(coarse=coarse), error

    def _checked(self, traced: Traced) -> Traced:
        """Return the trace. With statements, their loss outside the function must be the same."""
        if self._statements:
            check_loss(self._model, self._batch, traced)
        return traced

    def _offenders(self, *, coarse: bool) -> dict[str, str]:
        """Return modules to run unchanged, each with a reason: blocks around the offenders.

        Blocks with layers inside are left out unless `coarse`.
        """
        modules = dict(self._model.model.named_modules(remove_duplicate=False))
        found: dict[str, str] = {}
        for path, reason in self._failing_below(self._model.model, ""):
            block = _block_around(path, modules, self._calls)
            if block is not None and (coarse or not _has_layers_inside(block, modules)):
                found[block] = reason
            elif coarse:
                return {}
        return found

    def _failing_below(self, module: nn.Module, path: str) -> Iterator[tuple[str, str]]:
        """Yield the innermost modules below `module` that cannot be exported alone."""
        for name, child in module.named_children():
            below = f"{path}.{name}" if path else name
            if below in self._reasons or below in self._fine:
                continue
            if below not in self._calls:
                yield from self._failing_below(child, below)
                continue
            reason = why_not_alone(child, self._calls[below][0])
            if reason is None:
                self._fine.add(below)
            else:
                inner = list(self._failing_below(child, below))
                yield from inner or [(below, hook_of(child) or reason)]


def _recorded(model: TrainingModel, batch: Batch, error: Exception) -> Calls:
    for path, module in model.model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"the part '{path}'" if path else "the model"
            raise ModelError(
                f"{model.name}: {what} is scripted and cannot be captured: {reason_of(error)}; "
                "build it without torch.jit.script"
            )
    try:
        return record_calls(model, batch)
    except ModelError as failed:
        if not any(parameter.is_meta for parameter in model.parameters()):
            raise
        raise ModelError(
            f"{model.name}: the model cannot be captured on the meta device, where it cannot be "
            f"run to look inside it: {reason_of(error)}; use --device cpu"
        ) from failed


def _noted(traced: Traced, reasons: Mapping[str, str]) -> Traced:
    called = {str(node.target) for node in traced.module.graph.find_nodes(op="call_module")}
    notes = tuple(
        f"'{path}' runs unchanged, in one layer, because it cannot be captured: {reason}"
        for path, reason in reasons.items()
        if path in called
    )
    return replace(traced, notes=(*traced.notes, *notes))


@contextmanager
def _without_cache(model: TrainingModel) -> Generator[None]:
    """Disable the key/value cache that Hugging Face models make even in training.

    Blocks write into the cache, and a graph cannot contain it. The loss does not depend on it.
    """
    config: Any = getattr(model.model, "config", None)
    if getattr(config, "use_cache", None) is not True:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = True


def _outermost(reasons: Mapping[str, str]) -> dict[str, str]:
    inside = {p for p in reasons for q in reasons if p != q and p.startswith(f"{q}.")}
    return {path: reason for path, reason in reasons.items() if path not in inside}


def _has_layers_inside(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Tell whether a module outside all lists has a list with several modules with parameters."""
    if any(isinstance(modules[above], _LISTS) for above in _parents(path)):
        return False
    for module in modules[path].modules():
        trained = [m for m in module.children() if next(m.parameters(), None) is not None]
        if isinstance(module, _LISTS) and len(trained) > 1:
            return True
    return False


def _parents(path: str) -> list[str]:
    steps = path.split(".")
    return [".".join(steps[:end]) for end in range(1, len(steps))]


def _block_around(path: str, modules: Mapping[str, nn.Module], calls: Calls) -> str | None:
    """Return the nearest list element around `path`, or `path` itself.

    If a graph cannot call it, return the nearest module around it. None where only the root is
    left.
    """
    steps = path.split(".")
    above = [".".join(steps[:end]) for end in range(len(steps), 0, -1)]
    elements = [p for p in above if isinstance(modules[p.rpartition(".")[0]], _LISTS)]
    start = elements[0] if elements else path
    for candidate in above[above.index(start) :]:
        if can_be_faked(calls.get(candidate, ())):
            return candidate
    return None
