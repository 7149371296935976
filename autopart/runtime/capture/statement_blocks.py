"""Places in a function's syntax tree: blocks, and spans of statements in them."""

import ast
from dataclasses import dataclass
from typing import Any, cast

from autopart.runtime.capture.statement_names import SCOPES


@dataclass(frozen=True, slots=True)
class Span:
    """Statements `start` to `end` of one block."""

    block: tuple[Any, ...]
    """Fields and indices that lead from the function to the block: ``("body", 3, "orelse")``."""
    start: int
    end: int

    def is_around(self, other: "Span") -> bool:
        """Tell whether each statement in `other` is part of this span."""
        depth = len(self.block)
        if other.block[:depth] != self.block:
            return False
        if len(other.block) == depth:
            return self.start <= other.start and other.end <= self.end
        return self.start <= other.block[depth] < self.end

    def touches(self, other: "Span") -> bool:
        """Tell whether both have a statement in common."""
        same = self.block == other.block and self.start < other.end and other.start < self.end
        return same or self.is_around(other) or other.is_around(self)


def above(span: Span) -> Span:
    """Return the statement around the span's block."""
    *block, _ = span.block
    while (
        not isinstance(block[-1], int)
        or not isinstance(block[-2], str)
        or block[-2] in ("handlers", "cases")
    ):
        block.pop()
    place: int = block[-1]
    return Span(tuple(block[:-1]), place, place + 1)


def blocks_in(node: ast.AST, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Return the paths of all blocks directly inside a statement."""
    found: list[tuple[Any, ...]] = []
    for name, value in ast.iter_fields(node):
        if isinstance(node, SCOPES) or not isinstance(value, list) or not value:
            continue
        if isinstance(value[0], ast.stmt):
            found.append((*path, name))
        elif isinstance(value[0], ast.ExceptHandler | ast.match_case):
            for place, inner in enumerate(cast(list[ast.AST], value)):
                found += blocks_in(inner, (*path, name, place))
    return found


def block_at(tree: ast.AST, block: tuple[Any, ...]) -> list[ast.stmt]:
    """Return the statements of a block, to be changed in place."""
    node: Any = tree
    for step in block:
        node = getattr(node, step) if isinstance(step, str) else node[step]
    return node


def header_end(statement: ast.stmt) -> int:
    """Return the last line of a compound statement's condition, iterable or context."""
    parts = [getattr(statement, name, None) for name in ("test", "iter", "subject")]
    parts += [item.context_expr for item in getattr(statement, "items", [])]
    return max((p.end_lineno or 0 for p in parts if p is not None), default=statement.lineno)


def lines_of(statement: ast.stmt) -> tuple[int, int]:
    """Return a statement's first and last line."""
    return statement.lineno, statement.end_lineno or statement.lineno
