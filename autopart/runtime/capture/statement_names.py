"""Names that statements read and bind."""

import ast
from collections.abc import Iterable, Iterator

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def exposed(statements: Iterable[ast.stmt]) -> set[str]:
    """Return the names that may be read before the statements bind them."""
    found: set[str] = set()
    _expose(statements, set(), found)
    return found


def stored(statements: Iterable[ast.AST]) -> set[str]:
    """Return the names that the statements may bind."""
    names: set[str] = set()
    for node in walk(statements):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, SCOPES) and not isinstance(node, ast.Lambda):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
    return names


def loaded(statements: Iterable[ast.AST]) -> set[str]:
    """Return the names that the statements may read."""
    return {name for statement in statements for _, name in named(statement)}


def base(node: ast.AST) -> set[str]:
    """Return the name at the start of ``name.attribute[index]``; nothing if it starts otherwise."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def _expose(statements: Iterable[ast.stmt], bound: set[str], found: set[str]) -> None:
    """Add names that are read before they are surely bound. `bound` follows the statements."""
    for s in statements:
        if isinstance(s, ast.If):
            found |= loaded([s.test]) - bound
            yes, no = set(bound), set(bound)
            _expose(s.body, yes, found)
            _expose(s.orelse, no, found)
            bound |= yes & no
        elif isinstance(s, ast.For):
            found |= loaded([s.iter]) - bound
            _expose(s.body, bound | stored([s.target]), found)
            _expose(s.orelse, set(bound), found)
        elif isinstance(s, ast.While):
            found |= loaded([s.test]) - bound
            _expose(s.body, set(bound), found)
            _expose(s.orelse, set(bound), found)
        elif isinstance(s, ast.With):
            found |= loaded(s.items) - bound
            bound |= stored(s.items)
            _expose(s.body, bound, found)
        else:
            found |= loaded([s]) - bound
            if isinstance(s, ast.Assign):
                bound |= stored(s.targets)


def named(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Yield each node that reads a name, with the name."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            yield inner, inner.id
        elif isinstance(inner, ast.AugAssign) and isinstance(inner.target, ast.Name):
            yield inner, inner.target.id


def walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Walk through the nodes without the insides of functions and classes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, SCOPES):
            waiting.extend(ast.iter_child_nodes(node))


def has(statements: Iterable[ast.AST], *kinds: type[ast.AST]) -> bool:
    """Tell whether the statements contain a node of one of the kinds."""
    return any(isinstance(node, kinds) for node in walk(statements))
