"""Parts of a model that run as they are, and draw from generators outside torch.

A graph can hold no such draw, so each stands in a part that runs unchanged: a module, statements of
a function, or the whole model. In a check each part starts with its own numbers. They depend on the
microbatch and on the part's name, and so not on the rank or on parts before it.

In the plain model the same statements stand in their function. A context around them tells where a
part begins and ends, and all else stays as the user wrote it.
"""

import gc
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import fx, nn

from autopart.runtime.capture.one_layer_fallback import RunModel
from autopart.runtime.capture.opaque_statements import OpaqueStatements, Statements
from autopart.runtime.capture.statements import CALL
from autopart.runtime.models.host_generators import HostGenerators
from autopart.runtime.models.model import TrainingModel
from autopart.runtime.transforms.seeded_draws import SeededDraws

_WHOLE = "the whole model"


Parts = WeakKeyDictionary[nn.Module, str]
"""Parts with names that are the same on all ranks. It keeps no part alive."""


def parts_of(captured: fx.GraphModule) -> Parts:
    """Return the parts of a captured model, before stages are cut from it."""
    found: Parts = WeakKeyDictionary()
    for node in captured.graph.nodes:
        if isinstance(node.target, RunModel):
            found[node.target.model] = _WHOLE
        elif node.op == "call_module":
            part = captured.get_submodule(str(node.target))
            is_span = isinstance(part, OpaqueStatements)
            name = _name(part.statements, part.execution) if is_span else str(node.target)
            found.setdefault(part, name)
    return found


@contextmanager
def parts_seeded(parts: Parts) -> Generator[None]:
    """In this block each part draws its own numbers, in whichever stage it stands."""
    with ExitStack() as stack:
        for part, name in list(parts.items()):
            stack.enter_context(_seeded(part, name))
        yield


@contextmanager
def plain_parts_seeded(model: TrainingModel, parts: Parts) -> Generator[None]:
    """In this block the same parts of another build of the model draw the same numbers."""
    spans: dict[int, Statements] = {}
    with ExitStack() as stack:
        for part, name in list(parts.items()):
            if isinstance(part, OpaqueStatements):
                spans[id(part.statements)] = part.statements
            else:
                own = model if name == _WHOLE else model.model.get_submodule(name)
                stack.enter_context(_seeded(own, name))
        stack.enter_context(_marked(list(spans.values()), HostGenerators(model.modules())))
        yield


def _name(statements: Statements, execution: int) -> str:
    return f"{statements.place} {statements.span} {execution}"


def _part_of(name: str, generators: HostGenerators) -> AbstractContextManager[None]:
    draws = SeededDraws.running
    return nullcontext() if draws is None else draws.part(name, generators)


@contextmanager
def _seeded(part: nn.Module, name: str) -> Generator[None]:
    """In this block each call of the module draws the numbers of its name."""
    generators, open_parts = HostGenerators(part.modules()), list[AbstractContextManager[None]]()

    def enter(*_: object) -> None:
        open_parts.append(_part_of(name, generators))
        open_parts[-1].__enter__()

    def leave(*_: object) -> None:
        open_parts.pop().__exit__(None, None, None)

    handles = (
        part.register_forward_pre_hook(enter, prepend=True),
        part.register_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _marked(spans: list[Statements], generators: HostGenerators) -> Generator[None]:
    """In this block each run of the statements in their function draws the numbers of its name."""
    executions: Counter[int] = Counter()
    forward = -1

    def around(number: int) -> AbstractContextManager[None]:
        nonlocal forward
        draws = SeededDraws.running
        if draws is None or draws.is_in_part:
            return nullcontext()
        if draws.num_forwards != forward:
            forward = draws.num_forwards
            executions.clear()
        executions[number] += 1
        return draws.part(_name(spans[number], executions[number] - 1), generators)

    by_code: dict[CodeType, dict[int, Statements]] = {}
    for number, statements in enumerate(spans):
        by_code.setdefault(statements.source.code, {})[number] = statements
    with ExitStack() as stack:
        for code, own in by_code.items():
            for function in _functions_of(code):
                stack.enter_context(_with_marks(function, own, around))
        yield


def _functions_of(code: CodeType) -> list[FunctionType]:
    """Return all functions that run `code`: each build of a model may make another one."""
    found = [r for r in gc.get_referrers(code) if isinstance(r, FunctionType)]
    return [function for function in found if function.__code__ is code]


@contextmanager
def _with_marks(
    function: FunctionType,
    spans: dict[int, Statements],
    around: Callable[[int], AbstractContextManager[None]],
) -> Generator[None]:
    before, names = function.__code__, function.__globals__
    source: Any = next(iter(spans.values())).source
    function.__code__ = source.marked({n: s.span for n, s in spans.items()}, function)
    names[CALL] = around
    try:
        yield
    finally:
        function.__code__ = before
        names.pop(CALL, None)
