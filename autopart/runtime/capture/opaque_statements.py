"""Statements that no graph can hold: they run as they are, as one call in the graph.

The call takes the tensors that the statements read and returns the values that they bind. All other
objects that they read (modules, settings) are kept as they were while the model was traced.
"""

import ast
import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from autopart.errors import ModelError
from autopart.runtime.capture.call_outputs import OutputTemplate, TensorShape, template_of
from autopart.runtime.capture.statements import Source, Span
from autopart.runtime.capture.used_modules import UsedModules, shell_of, used_modules

_FIXED = (str, torch.dtype, torch.device, type(None))
"""Types of outputs that the graph may hold as constants. Numbers may depend on values."""
_NOW = "than when the model was captured"


def function_of(code: CodeType) -> FunctionType:
    """Return the function that runs `code`. Raises ValueError where none or several do."""
    found = [
        r for r in gc.get_referrers(code) if isinstance(r, FunctionType) and r.__code__ is code
    ]
    if len(found) != 1:
        raise ValueError("its function cannot be found")
    return found[0]


@dataclass(slots=True)
class Statements:
    """A span of one function, outside it."""

    source: Source
    span: Span
    function: Any
    """The user's function, which lacks the statements during a trace."""
    place: str
    """The user's file and lines."""
    reason: str
    needed: tuple[str, ...] = ()
    bound: tuple[str, ...] = ()
    live: frozenset[str] = frozenset()
    run: Any = field(init=False)
    """The statements as a function that takes `needed` by name."""

    def __post_init__(self) -> None:
        self.needed = _ordered(self.source, self.source.needed_names(self.span))
        self.live = self.source.live_names(self.span)
        self.bound = _ordered(self.source, self.source.bound_names(self.span))
        self.run = self.source.moved(self.span, self.needed, self.function)

    def values(self, local: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the needed names that are bound in `local`."""
        return {name: local[name] for name in self.needed if name in local}

    def written(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names whose tensors the statements may write into."""
        names = self.source.written_names(self.span)
        return tuple(n for n in given if n in names and isinstance(given[n], torch.Tensor))

    def made(self, result: Any, given: Mapping[str, Any], changed: Iterable[str]) -> Any:
        """Return the values that the statements made: the function's result, or names.

        Names that hold no tensor and are bound as before are left out.
        """
        if self.source.returns(self.span):
            return result
        names = dict.fromkeys((*self.bound, *sorted(set(changed) & self.live)))
        return {
            name: result[name]
            for name in names
            if name in result
            and (isinstance(result[name], torch.Tensor) or not self._is_same(name, result, given))
        }

    def is_complete(self, made: Any, result: Any, given: Mapping[str, Any]) -> bool:
        """Tell whether `made` has all names that the statements have bound to something new."""
        return self.source.returns(self.span) or all(
            name in made or name not in result or self._is_same(name, result, given)
            for name in self.bound
        )

    def _is_same(self, name: str, result: Any, given: Mapping[str, Any]) -> bool:
        return name in given and result[name] is given[name]

    def modules(self, local: Mapping[str, Any]) -> "UsedModules | None":
        """Return the modules that the statements may use; None where that cannot be told."""
        return used_modules(self.source, self.span, self.values(local))


@dataclass(frozen=True, slots=True)
class Problem:
    """A value that cannot enter or leave a call."""

    names: tuple[str, ...]
    enters: bool
    """Whether the value enters the call. Its definition must then join the statements."""


def output_problem(made: Any) -> Problem | None:
    """Return the names whose values cannot leave a call: numbers and objects with shapes inside."""
    named = made if isinstance(made, dict) else {"": made}
    bad = tuple(name for name, value in named.items() if not _can_leave(value))
    return Problem(bad, enters=False) if bad else None


def _can_leave(value: Any) -> bool:
    leaves = pytree.tree_leaves(value, is_leaf=lambda x: isinstance(x, PackedSequence))
    return all(
        isinstance(leaf, _FIXED)
        or (isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided)
        for leaf in leaves
    )


class OpaqueStatements(nn.Module):
    """One call of statements, as a part of a graph: tensors in, a structure of tensors out."""

    def __init__(
        self,
        statements: Statements,
        given: tuple[Sequence[Any], pytree.TreeSpec],
        used: UsedModules,
        template: OutputTemplate,
        changed: tuple[str, ...],
    ) -> None:
        """`given` are the leaves and the structure of the values by name, tensors among them."""
        super().__init__()
        self.parts: Mapping[str, object] = {}
        """The user's modules and parameters that the statements use, by the user's names."""
        self.execution = 0
        """How often the statements run before this call, in one forward of the user's model."""
        self.statements, self._template, self._changed = statements, template, changed
        leaves, self._structure = given
        own = pytree.tree_unflatten(list(leaves), self._structure).get(
            statements.source.first_argument
        )
        shell = shell_of(own, used.parts) if isinstance(own, nn.Module) else None
        # A boxed constant stands for each leaf that is no tensor.
        self._constants = [
            None if isinstance(leaf, torch.Tensor) else (shell if leaf is own else leaf,)
            for leaf in leaves
        ]
        self._grad = torch.is_grad_enabled()
        inside = {id(m): m for m in (*used.modules, *([shell] if shell is not None else []))}
        for place, module in enumerate(inside.values()):
            self.add_module(f"used_{place}", module)

    def extra_repr(self) -> str:
        """Describe the statements by their code, so that equal statements look equal."""
        code = self.statements.source.statements(self.statements.span)
        return "; ".join(map(ast.unparse, code))

    def forward(self, *tensors: torch.Tensor) -> Any:
        """Run the statements. Raises ModelError where the outputs are not as they were captured."""
        rest = iter(tensors)
        leaves = [next(rest) if boxed is None else boxed[0] for boxed in self._constants]
        given = cast(dict[str, Any], pytree.tree_unflatten(leaves, self._structure))
        for name in self._changed:
            given[name] = given[name].clone()
        kept = [
            (t, t._version) for n, t in given.items() if n not in self._changed and _is_tensor(t)
        ]
        with torch.set_grad_enabled(self._grad and torch.is_grad_enabled()):
            result = self.statements.run(**given)
        made = self.statements.made(result, given, self._changed)
        whole = self.statements.is_complete(made, result, given)
        if not whole or any(tensor._version != version for tensor, version in kept):
            raise ModelError(
                f"the statements at {self.statements.place} change other values {_NOW}"
            )
        return self._checked(made)

    def _checked(self, made: Any) -> Any:
        leaves, structure = pytree.tree_flatten(made)
        expected = self._template.leaves
        if structure != self._template.structure or not all(map(_is_as, leaves, expected)):
            raise ModelError(
                f"the statements at {self.statements.place} give other shapes or values {_NOW}, and "
                "a stage cannot send them; pad them to one shape"
            )
        return with_gradients(made, self._template)


def statements_template(made: Any, differentiable: bool) -> OutputTemplate:
    """Return the template for recorded outputs.

    Each floating tensor counts as differentiable where one can be: another branch may be taken.
    """
    template = template_of(made)
    leaves = tuple(
        TensorShape(
            leaf.shape, leaf.dtype, leaf.device, differentiable and leaf.dtype.is_floating_point
        )
        if isinstance(leaf, TensorShape)
        else leaf
        for leaf in template.leaves
    )
    return OutputTemplate(leaves, template.structure)


def with_gradients(made: Any, template: OutputTemplate) -> Any:
    """Return recorded or new outputs so that each tensor takes a gradient if the template does."""
    leaves, structure = pytree.tree_flatten(made)
    fitting = [_with_gradient(*pair) for pair in zip(leaves, template.leaves, strict=True)]
    return pytree.tree_unflatten(fitting, structure)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _is_as(leaf: Any, expected: Any) -> bool:
    if not isinstance(expected, TensorShape):
        return type(leaf) is type(expected) and leaf == expected
    is_tensor = isinstance(leaf, torch.Tensor)
    return is_tensor and (tuple(leaf.shape), leaf.dtype) == (expected.shape, expected.dtype)


def _with_gradient(leaf: Any, expected: Any) -> Any:
    """Return a tensor that takes a gradient if the graph expects one, even if it goes nowhere."""
    wanted = isinstance(expected, TensorShape) and expected.requires_grad
    if not wanted or leaf.requires_grad or not torch.is_grad_enabled():
        return leaf
    return leaf.detach().requires_grad_().clone()


def _ordered(source: Source, names: Iterable[str]) -> tuple[str, ...]:
    """Return the function's own names among `names`, its arguments first, in their order."""
    code = source.code
    own = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    wanted = set(names)
    return tuple(name for name in dict.fromkeys(own) if name in wanted and name != "__class__")
