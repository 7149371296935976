"""Modules and parameters that statements of a module's code may use."""

# pyright: reportPrivateUsage=false

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from autopart.runtime.capture.statements import Source, Span

Steps = tuple[str, ...]
"""Names that lead from a module to one of its parts, such as ``("blocks", "1")``."""


@dataclass(frozen=True, slots=True)
class UsedModules:
    """Modules that statements may use."""

    modules: tuple[nn.Module, ...]
    """Modules below the first argument, and modules in other names."""
    tensors: tuple[torch.Tensor, ...]
    """Parameters and buffers of the first argument itself."""
    parts: frozenset[Steps]
    """Parts of the first argument that are read."""

    def parameters(self) -> list[torch.Tensor]:
        """Return all parameters among them."""
        inside = [p for module in self.modules for p in module.parameters()]
        return [*inside, *(t for t in self.tensors if isinstance(t, nn.Parameter))]


def used_modules(source: Source, span: Span, values: Mapping[str, Any]) -> UsedModules | None:
    """Return the modules that a span may use; None where it hands on its first argument."""
    own = values.get(source.first_argument)
    modules: list[nn.Module] = []
    tensors: list[torch.Tensor] = []
    parts: frozenset[Steps] = frozenset()
    if isinstance(own, nn.Module):
        found = _parts(source.statements(span), source.first_argument, own, set())
        if found is None:
            return None
        parts = found
        for steps in sorted(found):
            part = _resolved(own, steps)
            if isinstance(part, nn.Module):
                modules.append(part)
            elif isinstance(part, torch.Tensor):
                tensors.append(part)
    for value in values.values():
        if value is not own:
            modules += [m for m in pytree.tree_leaves(value) if isinstance(m, nn.Module)]
    return UsedModules(tuple(modules), tuple(tensors), parts)


def _parts(
    nodes: Iterable[ast.AST], name: str, own: nn.Module, seen: set[str]
) -> frozenset[Steps] | None:
    """Return the parts that code reads from `own`, which it calls `name`.

    Methods and properties of `own` are followed. None where the code hands `own` itself on.
    """
    found: set[Steps] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Name) and node.id in (name, "super"):
            return None
        chain = _chain(node)
        if chain is None or chain[0] != name:
            waiting.extend(ast.iter_child_nodes(node))
            continue
        steps = chain[1:]
        while steps and _resolved(own, steps) is None and len(steps) > 1:
            steps = steps[:-1]
        found.add(steps)
        waiting.extend(n.slice for n in ast.walk(node) if isinstance(n, ast.Subscript))
    for attribute in sorted({steps[0] for steps in found} - seen):
        seen.add(attribute)
        member = inspect.getattr_static(type(own), attribute, None)
        member = member.fget if isinstance(member, property) else member
        if not inspect.isfunction(member):
            continue
        try:
            method = Source(inspect.unwrap(member).__code__)
        except ValueError:
            return None
        inside = _parts(method.tree.body, method.first_argument, own, seen)
        if inside is None:
            return None
        found |= inside
    return frozenset(found)


def _chain(node: ast.AST) -> Steps | None:
    """Return the names in ``name.attribute[1].other``, as far as they are fixed; else None."""
    steps: list[str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        if isinstance(node, ast.Attribute):
            steps.append(node.attr)
        elif isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str | int):
            steps.append(str(node.slice.value))
        else:
            steps.clear()  # which element is meant is not known: all of them
        node = node.value
    if not isinstance(node, ast.Name) or not steps:
        return None
    return (node.id, *reversed(steps))


def _resolved(own: nn.Module, steps: Steps) -> nn.Module | torch.Tensor | None:
    """Return a module, parameter or buffer below `own`; None where the steps lead to none."""
    part: Any = own
    for step in steps:
        if not isinstance(part, nn.Module):
            return None
        inside = {**part._buffers, **part._parameters, **part._modules}
        part = inside.get(step)
    return part


def shell_of(own: nn.Module, parts: Iterable[Steps]) -> nn.Module:
    """Return a module like `own` with only these parts, so that a stage keeps no other parts.

    An empty module stands for each other child. It raises where it is called.
    """
    below: dict[str, list[Steps]] = {}
    for steps in parts:
        below.setdefault(steps[0], []).append(steps[1:])
    shell = object.__new__(type(own))
    shell.__dict__ = dict(own.__dict__)
    shell.__dict__["_modules"] = {
        name: child
        if child is None or () in below.get(name, ())
        else shell_of(child, below[name])
        if name in below
        else nn.Module()
        for name, child in own._modules.items()
    }
    for kind in ("_parameters", "_buffers"):
        inside = own.__dict__[kind]
        shell.__dict__[kind] = {n: v for n, v in inside.items() if n in below}
    return shell


class UnmovableError(Exception):
    """Statements that cannot leave their module. The user is told why they would have to."""


def user_parts(used: UsedModules, model: nn.Module) -> dict[str, object]:
    """Return the user's modules and tensors that the statements use, by the user's names.

    Raises UnmovableError where one of them has no such name.
    """
    parts: dict[str, object] = {}
    paths = _paths(model)
    for module in used.modules:
        path = paths.get(id(module))
        if path is None:
            raise UnmovableError("it uses a module that is no part of the model")
        parts[path] = module
    named = dict(model.named_parameters(remove_duplicate=False))
    for tensor in used.tensors:
        names = [name for name, value in named.items() if value is tensor]
        if not names:
            raise UnmovableError("it uses a buffer of its own module")
        parts[names[0]] = tensor
    return parts


def layer_of(used: UsedModules, model: nn.Module, around: str) -> str:
    """Return the path that names the statements' layer; empty if they have no parameters."""
    paths_of = _paths(model)
    trained = [m for m in used.modules if next(m.parameters(), None) is not None]
    paths = [paths_of[id(m)].split(".") for m in trained]
    if not paths:
        return ""
    common: list[str] = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) > 1:
            break
        common.append(steps[0])
    path = ".".join(common)
    return path if path and path != around else ".".join(paths[0])


def _paths(model: nn.Module) -> dict[int, str]:
    return {id(module): path for path, module in model.named_modules()}
