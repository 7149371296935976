"""Opaque statements of a model: recorded in one real run, faked in a trace, called in its graph."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from autopart.runtime.capture.call_outputs import OPAQUE_LAYER, OutputTemplate
from autopart.runtime.capture.call_recorder import state_restored
from autopart.runtime.capture.opaque_operation import OpaqueOperation, opaque_nodes, put_call
from autopart.runtime.capture.opaque_statements import (
    OpaqueStatements,
    Problem,
    Statements,
    function_of,
    output_problem,
    statements_template,
    with_gradients,
)
from autopart.runtime.capture.statement_values import (
    has_moving_shape,
    is_shared,
    requires_grad,
    run_noting_backwards,
    states_of,
)
from autopart.runtime.capture.statements import CALL, Source
from autopart.runtime.capture.torch_export import UncapturableError
from autopart.runtime.capture.tracing import Traced
from autopart.runtime.capture.used_modules import UsedModules, layer_of, user_parts
from autopart.runtime.models.attributes import attach
from autopart.runtime.models.model import Batch, TrainingModel
from autopart.runtime.models.user_code import shown_path, user_frames

_PREFIX = "statements"


@dataclass(slots=True)
class _Call:
    """One recorded call of statements."""

    template: OutputTemplate
    changed: tuple[str, ...]
    """Names of tensors into which the statements write."""


@dataclass(slots=True)
class _Traced:
    """One call of statements in a trace."""

    statements: Statements
    given: tuple[list[Any], pytree.TreeSpec]
    used: UsedModules
    call: _Call
    path: str
    """Path of the module in whose code the statements stand."""


class StatementCalls:
    """The statements of a model that run as they are. They widen until their values can be sent."""

    def __init__(self, model: TrainingModel, batch: Batch, operation: OpaqueOperation) -> None:
        self._model, self._batch, self._operation = model, batch, operation
        self._paths = {id(m): path for path, m in model.model.named_modules()}
        self._statements: dict[int, Statements] = {}
        self._recorded: dict[int, list[_Call]] = {}
        self._traced: dict[str, _Traced] = {}
        self._counts: dict[int, int] = {}
        self._problem: tuple[int, Problem] | None = None
        self._originals: dict[CodeType, CodeType] = {}
        """The user's code for each code without its statements."""

    def __bool__(self) -> bool:
        return bool(self._statements)

    def widen(self, error: BaseException, reason: str) -> None:
        """Add the statements at which a trace ended, or widen those whose values made trouble.

        Raises ValueError where that cannot be done.
        """
        if self._problem is None:
            self._put(self._at_error(error, reason))
        while True:
            problem, self._problem = self._problem, None
            if problem is not None:
                self._widen(*problem)
            # The values that enter and leave the statements come from a real run.
            self._record()
            if self._problem is None:
                return

    @contextmanager
    def installed(self) -> Generator[None]:
        """Fake all statements inside the block. Each call leaves one operation in a trace."""
        with self._shortened(self._fake):
            yield

    def begin(self) -> None:
        """Count the calls of a trace from 0."""
        self._counts.clear()
        self._traced.clear()

    def replaced(self, traced: Traced) -> Traced:
        """Return the trace with calls of the real statements, and notes on them.

        Raises ValueError where they use modules that are no part of the model.
        """
        module, names = traced.module, dict[str, int]()
        layers: dict[int, list[str]] = {}
        for node, inputs, key in opaque_nodes(module.graph):
            call = self._traced[key]
            made = OpaqueStatements(
                call.statements, call.given, call.used, call.call.template, call.call.changed
            )
            made.parts = user_parts(call.used, self._model.model)
            made.execution = int(key.rpartition(":")[2])
            name = f"{_PREFIX}_{len(names)}"
            names[name] = len(names)
            for path, part in made.parts.items():
                attach(module, path, part)
            attach(module, name, made)
            with module.graph.inserting_before(node):
                placed = module.graph.call_module(name, tuple(inputs))
            layer = layer_of(call.used, self._model.model, call.path)
            if layer:
                placed.meta[OPAQUE_LAYER] = _repeated(module.graph, layer)
            put_call(node, placed, call.call.template)
            layers.setdefault(id(call.statements), []).append(layer)
        told = [s for s in self._statements.values() if id(s) in layers]
        notes = [_note(s, layers[id(s)]) for s in told]
        module.recompile()
        return replace(traced, notes=(*traced.notes, *notes))

    def _at_error(self, error: BaseException, reason: str) -> Statements:
        """Return the statement at which the user's code failed, in the innermost useful function."""
        found: Statements | None = None
        for frame, line in _inside_a_forward(user_frames(error)):
            try:
                statements = self._at_line(frame, line, reason)
            except ValueError:  # a decorator's code, or a statement that hands its module on
                continue
            found = statements
            used = statements.modules(frame.f_locals)
            if used is not None and not used.parameters():
                break  # a function that the statement calls need not be divided
        if found is None or found.source.is_everything(found.span):
            raise ValueError("no statement can run by itself")
        return found

    def _at_line(self, frame: FrameType, line: int, reason: str) -> Statements:
        code = self._originals.get(frame.f_code, frame.f_code)
        source = Source(code)
        statements = _statements(source, source.span_at(line), self._function(code), reason)
        if statements.modules(frame.f_locals) is None:
            raise ValueError("its modules cannot be told")
        return statements

    def _function(self, code: CodeType) -> FunctionType:
        known = [s.function for s in self._statements.values() if s.source.code is code]
        return known[0] if known else function_of(code)

    def _put(self, new: Statements) -> None:
        """Add statements, and drop those that they contain or overlap."""
        number = max(self._statements, default=-1) + 1
        for other, old in list(self._statements.items()):
            if old.source.code is new.source.code and old.span.touches(new.span):
                if old.span.is_around(new.span):
                    raise ValueError("these statements run as they are already")
                del self._statements[other]
        self._statements[number] = new

    def _widen(self, number: int, problem: Problem) -> None:
        old = self._statements.pop(number)
        widen = old.source.from_definition if problem.enters else old.source.to_last_use
        span = widen(old.span, problem.names)
        if span == old.span or old.source.is_everything(span):
            raise ValueError("its values cannot enter or leave it")
        self._put(_statements(old.source, span, old.function, old.reason))

    @contextmanager
    def _shortened(self, call: Callable[[int, dict[str, Any]], Any]) -> Generator[None]:
        """Let each function call `call` in place of its statements."""
        spans: dict[int, tuple[FunctionType, Source, dict[int, Any]]] = {}
        for number, statements in self._statements.items():
            function = statements.function
            spans.setdefault(id(function), (function, statements.source, {}))[2][number] = (
                statements.span
            )
        before = [(function, function.__code__) for function, _, _ in spans.values()]
        try:
            for function, source, own in spans.values():
                function.__globals__[CALL] = call
                function.__code__ = source.shortened(own, function)
                self._originals[function.__code__] = source.code
            yield
        finally:
            for function, code in before:
                function.__code__ = code
                function.__globals__.pop(CALL, None)

    def _record(self) -> None:
        self._recorded = {number: [] for number in self._statements}
        with state_restored(self._model), self._shortened(self._run), torch.enable_grad():
            self._model(*self._batch)
        for number in self._statements:
            if not self._recorded[number] and self._problem is None:
                raise ValueError("the statements do not run")

    def _run(self, number: int, local: dict[str, Any]) -> Any:
        """Run statements for real and note the values that they make."""
        statements = self._statements[number]
        given = statements.values(local)
        before = states_of(given)
        result, differentiates = run_noting_backwards(statements.run, given)
        after = states_of(given)
        written = statements.written(given)
        changed = tuple(n for n in given if n in written or before[n].versions != after[n].versions)
        made = statements.made(result, given, changed)
        entering = tuple(n for n in given if before[n].is_held_otherwise(after[n]))
        entering += tuple(n for n in changed if is_shared(n, given[n], local))
        if differentiates:
            entering += tuple(n for n, v in given.items() if requires_grad(v))
        problem = Problem(entering, enters=True) if entering else output_problem(made)
        if problem is not None and self._problem is None:
            self._problem = number, problem
        used = statements.modules(local)
        if used is None:
            raise ValueError("its modules cannot be told")
        own = any(p.requires_grad for p in used.parameters())
        grows = torch.is_grad_enabled() and (own or any(map(requires_grad, given.values())))
        call = _Call(statements_template(made, grows), changed)
        self._recorded[number].append(call)
        # Later statements must see a gradient, also where this run took a branch without one.
        return with_gradients(made, call.template)

    def _fake(self, number: int, local: dict[str, Any]) -> Any:
        """Leave one operation in the trace in place of the statements."""
        statements = self._statements[number]
        place = self._counts.get(number, 0)
        self._counts[number] = place + 1
        recorded = self._recorded[number]
        if place >= len(recorded):
            raise UncapturableError("its statements run more often in a trace")
        given = statements.values(local)
        moving = tuple(n for n, v in given.items() if has_moving_shape(v))
        if moving:
            self._problem = number, Problem(moving, enters=True)
            raise UncapturableError("a shape depends on the values of tensors")
        leaves, structure = pytree.tree_flatten(given)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        used = statements.modules(local)
        if not tensors and not recorded[place].template.leaves:
            return {}  # nothing depends on them, such as a number that is drawn and not used
        if not tensors or used is None:
            raise UncapturableError("its statements take no tensor")
        key = f"{_PREFIX}:{number}:{place}"
        self._operation.templates[key] = recorded[place].template
        path = self._paths.get(id(given.get(statements.source.first_argument)), "")
        self._traced[key] = _Traced(statements, (leaves, structure), used, recorded[place], path)
        return self._operation(tensors, key)


def _inside_a_forward(
    frames: Iterable[tuple[FrameType, int]],
) -> list[tuple[FrameType, int]]:
    """Return the frames from the innermost forward of a module inward, or all frames."""
    found = list(frames)
    forwards = [i for i, (frame, _) in enumerate(found) if frame.f_code.co_name == "forward"]
    inner = found[forwards[-1] :] if forwards else found
    return [entry for entry in inner if not entry[0].f_code.co_name.startswith("<")]


def _statements(source: Source, span: Any, function: FunctionType, reason: str) -> Statements:
    first, last = source.lines(span)
    lines = f"{first}-{last}" if last > first else f"{first}"
    return Statements(
        source, span, function, f"{shown_path(source.code.co_filename)}:{lines}", reason
    )


def _repeated(graph: fx.Graph, layer: str) -> str:
    """Return the layer's name with a suffix if earlier statements make the same layer."""
    made = [node.meta.get(OPAQUE_LAYER, "") for node in graph.nodes if node.op == "call_module"]
    repeats = sum(name.partition("@")[0] == layer for name in made)
    return f"{layer}@{repeats}" if repeats else layer


def _note(statements: Statements, layers: Iterable[str]) -> str:
    names = [f"'{layer}'" for layer in dict.fromkeys(layers) if layer]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    where = f" in layer{'s' if len(names) > 1 else ''} {shown}" if names else ""
    return (
        f"the statements at {statements.place} run unchanged{where}, because they cannot be "
        f"captured: {statements.reason}"
    )
