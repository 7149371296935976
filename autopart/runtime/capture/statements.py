"""Statements of a user's function: which names they read and bind, and the function without them.

A *span* is a run of statements in one block. It can move out of its function: it becomes a function
of its own, and one call takes its place. Lines keep their numbers, so that tracebacks stay true.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any, cast

from autopart.runtime.capture.statement_blocks import (
    Span,
    above,
    block_at,
    blocks_in,
    header_end,
    lines_of,
)
from autopart.runtime.capture.statement_names import (
    SCOPES,
    base,
    exposed,
    has,
    loaded,
    named,
    stored,
    walk,
)

CALL = "__autopart_call__"
"""Global name under which a shortened function finds the callable that replaces its spans."""
_RESULT = "__autopart_result__"
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_UNMOVABLE = (ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal, ast.Delete)


class Source:
    """The syntax tree of one function. Raises ValueError where there is none that can be used."""

    def __init__(self, code: CodeType) -> None:
        try:
            lines, first = inspect.getsourcelines(code)
            (tree,) = ast.parse(textwrap.dedent("".join(lines))).body
        except (OSError, TypeError, SyntaxError) as error:
            raise ValueError("the source cannot be read") from error
        if not isinstance(tree, ast.FunctionDef) or tree.name != code.co_name:
            raise ValueError("it is no plain function")
        if any(map(_is_private, ast.walk(tree))):
            raise ValueError("it uses private names of its class")
        ast.increment_lineno(tree, first - 1)
        self.code = code
        self.tree = tree

    @property
    def first_argument(self) -> str:
        """Name of the first argument, usually ``self``; empty if there is none."""
        arguments = [*self.tree.args.posonlyargs, *self.tree.args.args]
        return arguments[0].arg if arguments else ""

    def span_at(self, line: int) -> Span:
        """Return the innermost statement that contains the line. Raises ValueError without one."""
        found: Span | None = None
        waiting: list[tuple[Any, ...]] = [("body",)]
        while waiting:
            block = waiting.pop()
            for place, statement in enumerate(self._at(block)):
                first, last = lines_of(statement)
                if first <= line <= last:
                    # Several statements may share a line.
                    alike = [lines_of(s)[0] <= line <= lines_of(s)[1] for s in self._at(block)]
                    found = Span(block, place, place + sum(alike))
                    # A body on the line of its own condition belongs to the condition.
                    inside = line > header_end(statement)
                    waiting = blocks_in(statement, (*block, place)) if inside else []
                    break
        if found is None:
            raise ValueError("no statement stands there")
        return self.movable(found)

    def movable(self, span: Span) -> Span:
        """Widen the span until it can move. Raises ValueError where it never can."""
        while _leaves_loop(self.statements(span)) and len(span.block) > 1:
            span = above(span)
        if has(self.statements(span), ast.Return):
            while len(span.block) > 1:
                span = above(span)
            span = replace(span, end=len(self.tree.body))
        if has(self.statements(span), *_UNMOVABLE) or has(self.tree.body, ast.Yield, ast.YieldFrom):
            raise ValueError("such statements cannot move")
        return span

    def from_definition(self, span: Span, names: Iterable[str]) -> Span:
        """Widen the span backward to the latest statements that bind `names`.

        A name that an argument binds widens it to the start of the function.
        """
        names = set(names)
        while True:
            before = self._at(span.block)[: span.start]
            bound = [i for i, s in enumerate(before) if names & stored([s])]
            if bound:
                return self.movable(replace(span, start=max(bound)))
            if len(span.block) == 1:
                return self.movable(replace(span, start=0))
            span = above(span)

    def to_last_use(self, span: Span, names: Iterable[str]) -> Span:
        """Widen the span forward until no statement behind it reads `names`."""
        names = set(names)
        while True:
            behind = list(enumerate(self._at(span.block)))[span.end :]
            reading = [i for i, s in behind if names & loaded([s])]
            if reading:
                span = self.movable(replace(span, end=max(reading) + 1))
            if not names & self.live_names(span):
                return span
            if len(span.block) == 1:
                raise ValueError("the names are read everywhere")
            span = self.movable(above(span))

    def statements(self, span: Span) -> Sequence[ast.stmt]:
        """Return the span's statements."""
        return self._at(span.block)[span.start : span.end]

    def is_everything(self, span: Span) -> bool:
        """Tell whether nothing but a docstring stands outside the span."""
        rest = [s for s in self.tree.body if s not in self.statements(span)]
        return len(span.block) == 1 and all(_is_text(s) for s in rest)

    def lines(self, span: Span) -> tuple[int, int]:
        """Return the span's first and last line in the user's file."""
        inside = self.statements(span)
        return lines_of(inside[0])[0], lines_of(inside[-1])[1]

    def returns(self, span: Span) -> bool:
        """Tell whether the span ends the function."""
        return has(self.statements(span), ast.Return)

    def needed_names(self, span: Span) -> frozenset[str]:
        """Return the names that the span reads before it binds them."""
        names = exposed(self.statements(span))
        return frozenset(names | {self.first_argument} if "super" in names else names)

    def live_names(self, span: Span) -> frozenset[str]:
        """Return the names that other code may read behind the span."""
        inside = {id(node) for s in self.statements(span) for node in ast.walk(s)}
        outside = {n for node, n in named(self.tree) if id(node) not in inside}
        nested = self._in_loop(span)
        return frozenset(outside | exposed(self.statements(span)) if nested else outside)

    def bound_names(self, span: Span) -> frozenset[str]:
        """Return the names that the span binds and that other code may read."""
        return frozenset(stored(self.statements(span)) & self.live_names(span))

    def written_names(self, span: Span) -> frozenset[str]:
        """Return the names whose tensors the span may write into, as far as its text tells."""
        found: set[str] = set()
        for node in walk(self.statements(span)):
            if isinstance(node, ast.AugAssign):
                found |= base(node.target)
            elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(
                node.ctx, ast.Store
            ):
                found |= base(node)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "").endswith("_"):
                found |= base(node.func)
        return frozenset(found - {self.first_argument})

    def _in_loop(self, span: Span) -> bool:
        node: Any = self.tree
        for step in span.block[:-1]:
            node = getattr(node, step) if isinstance(step, str) else node[step]
            if isinstance(node, _LOOPS):
                return True
        return False

    def _at(self, block: tuple[Any, ...]) -> list[ast.stmt]:
        return block_at(self.tree, block)

    def moved(self, span: Span, names: Sequence[str], function: FunctionType) -> FunctionType:
        """Return the span as a function with the arguments `names`.

        It returns the function's own result where the span returns, and else all its local names.
        """
        body = copy.deepcopy(list(self.statements(span)))
        if not self.returns(span):
            body.append(_at_line(body[-1], ast.parse("return locals()").body[0]))
        inner = copy.deepcopy(self.tree)
        inner.args = ast.arguments([], [ast.arg(n) for n in names], None, [], [], None, [])
        inner.body, inner.decorator_list, inner.returns = body, [], None
        return _compiled(inner, function, "__class__")

    def shortened(self, spans: Mapping[int, Span], function: FunctionType) -> CodeType:
        """Return the function's code with one call in place of each span, by its number."""
        tree = self._bare_tree()
        for number, span in _later_first(spans):
            block = block_at(tree, span.block)
            block[span.start : span.end] = self._call(number, span, block[span.start])
        return self._code(tree, function)

    def marked(self, spans: Mapping[int, Span], function: FunctionType) -> CodeType:
        """Return the function's code with each span inside the context that `CALL(number)` makes."""
        tree = self._bare_tree()
        for number, span in _later_first(spans):
            block = block_at(tree, span.block)
            around = cast(ast.With, ast.parse(f"with {CALL}({number}): pass").body[0])
            around = cast(ast.With, _at_line(block[span.start], around))
            around.body = block[span.start : span.end]
            block[span.start : span.end] = [around]
        return self._code(tree, function)

    def _bare_tree(self) -> ast.FunctionDef:
        tree = copy.deepcopy(self.tree)
        tree.decorator_list, tree.returns = [], None
        _strip(tree.args)
        return tree

    def _code(self, tree: ast.FunctionDef, function: FunctionType) -> CodeType:
        # A mention of each closure variable keeps the closure as it is.
        free = function.__code__.co_freevars
        mentions = [_at_line(tree.body[0], ast.parse(f"if False: {n}").body[0]) for n in free]
        tree.body[:0] = mentions
        return _compiled(tree, function, *free).__code__

    def _call(self, number: int, span: Span, place: ast.stmt) -> list[ast.stmt]:
        if self.returns(span):
            text = f"return {CALL}({number}, locals())"
        else:
            # Statements may write into a tensor whose name they only read.
            own = {*self.code.co_varnames, *self.code.co_cellvars}
            names = (self.bound_names(span) | self.needed_names(span)) & self.live_names(span) & own
            parts = [f"if {n!r} in {_RESULT}: {n} = {_RESULT}[{n!r}]" for n in sorted(names)]
            text = "\n".join([f"{_RESULT} = {CALL}({number}, locals())", *parts])
        return [_at_line(place, s) for s in ast.parse(text).body]


def _later_first(spans: Mapping[int, Span]) -> list[tuple[int, Span]]:
    """Return the spans from the last to the first: the places of earlier ones stay true."""
    return sorted(spans.items(), key=lambda s: (*s[1].block, s[1].start), reverse=True)


def _leaves_loop(statements: Iterable[ast.AST]) -> bool:
    """Tell whether a ``break`` or ``continue`` belongs to a loop around the statements."""
    waiting = list(statements)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Break | ast.Continue):
            return True
        if isinstance(node, _LOOPS):
            waiting.extend(node.orelse)
        elif not isinstance(node, SCOPES):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _is_private(node: ast.AST) -> bool:
    """Tell whether the class around the function changes the name, as in ``self.__x``."""
    name = getattr(node, "attr", getattr(node, "id", ""))
    return name.startswith("__") and not name.endswith("__")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _at_line(place: ast.AST, made: ast.stmt) -> ast.stmt:
    for node in ast.walk(made):
        ast.copy_location(node, place)
    return made


def _strip(arguments: ast.arguments) -> None:
    """Drop defaults and annotations. They belong to the function object, not to its code."""
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    for node in ast.walk(arguments):
        if isinstance(node, ast.arg):
            node.annotation = None


def _compiled(tree: ast.FunctionDef, function: FunctionType, *free: str) -> FunctionType:
    """Compile a function inside another one with the arguments `free`, its closure."""
    arguments = ast.arguments([], [ast.arg(n) for n in free], None, [], [], None, [])
    back = ast.Return(ast.Name(tree.name, ast.Load()))
    outer = cast(ast.FunctionDef, copy.deepcopy(ast.parse("def outer(): pass").body[0]))
    outer.args, outer.body = arguments, [tree, back]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    made: dict[str, Any] = {}
    exec(compile(module, function.__code__.co_filename, "exec"), function.__globals__, made)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    given = [cells[n].cell_contents if n in cells and n == "__class__" else None for n in free]
    return made["outer"](*given)
