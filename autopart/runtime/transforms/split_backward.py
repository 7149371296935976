"""Split backward: I computes input gradients, W weight gradients.

Source: Qi et al., Zero Bubble Pipeline Parallelism, ICLR 2024. Operations with large weights are
replaced in the stage's graph by split operations. Their backward can defer the weight gradient: I
stores its operands, and W computes it. All other operations run their whole backward in I, so the
gradients do not depend on the order in which I and W actions run.

We replace operations instead of dividing the autograd graph, as torch does. Torch's division frees
nothing in I, recomputes once for each parameter group, and silently loses some gradients.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from autopart.runtime.models.attributes import lookup
from autopart.runtime.transforms.weight_operations import WEIGHT_OPERATIONS, WeightOperation, rows


class DeferredWork(NamedTuple):
    """One operation's weight gradient, to be computed in W."""

    run: Callable[[], None]
    parameters: tuple[nn.Parameter, ...]
    """The weight, and the bias if there is one."""
    waiting: tuple[torch.Tensor, torch.Tensor]
    """Tensors kept until `run`: the input x and the output's gradient g."""


class _Deferral:
    """The list that receives deferred work; None while backwards are whole.

    One variable is enough, because a process runs one action at a time.
    """

    work: list[DeferredWork] | None = None


@contextmanager
def defer(deferred: list[DeferredWork]) -> Generator[None]:
    """In this block, backwards append weight gradients to `deferred` instead of computing them."""
    _Deferral.work = deferred
    try:
        yield
    finally:
        _Deferral.work = None


def run_deferred(
    deferred: list[DeferredWork], made: Callable[[nn.Parameter], None] | None = None
) -> None:
    """Compute the weight gradients in order; drop each one's tensors after it ran.

    `made` is told about each parameter whose gradient was added to.
    """
    deferred.reverse()
    with torch.no_grad():
        while deferred:
            work = deferred.pop()
            work.run()
            if made is not None:
                for parameter in work.parameters:
                    made(parameter)


def split_backwards(module: fx.GraphModule) -> int:
    """Replace each operation whose weight gradient can be deferred; return their number.

    An operation is replaced if its weight is a trained parameter and its bias, if any, a parameter.
    Weights that are complex, or computed from parameters, do not qualify, nor parameters with
    gradient hooks.
    """
    found = [node for node in module.graph.nodes if _can_split(module, node)]
    for node in found:
        places = WEIGHT_OPERATIONS[node.target].places
        arguments = _filled(node)
        three = tuple(None if p is None else arguments[p] for p in places)
        rest = tuple(value for i, value in enumerate(arguments) if i not in places)
        with module.graph.inserting_before(node):
            split = module.graph.call_function(_split_operation, (node.target, *three, rest))
        split.meta = dict(node.meta)
        node.replace_all_uses_with(split)
        module.graph.erase_node(node)
    module.recompile()
    return len(found)


def _can_split(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in WEIGHT_OPERATIONS:
        return False
    operation, arguments = WEIGHT_OPERATIONS[node.target], _filled(node)
    _, weight, bias = operation.places
    of_bias = None if bias is None else arguments[bias]
    if of_bias is not None:
        found = _parameter(module, of_bias)
        if found is None or found.ndim != 1 or _has_hooks(found):
            return False
    parameter = _parameter(module, arguments[weight])
    if parameter is None or not parameter.requires_grad or _has_hooks(parameter):
        return False
    # The formulas are for real numbers.
    return operation.fits(node, arguments) and not parameter.is_complex()


def _has_hooks(parameter: nn.Parameter) -> bool:
    """Tell whether user code waits for the parameter's gradient.

    Autograd calls such hooks with the gradient that the backward returns, and W returns none.
    """
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def _parameter(module: fx.GraphModule, argument: object) -> nn.Parameter | None:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value = lookup(module, str(argument.target))
    return value if isinstance(value, nn.Parameter) else None


def _filled(node: fx.Node) -> list[Any]:
    """All positional arguments in schema order, with defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    values: list[Any] = []
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.kwarg_only:
            continue
        given = node.args[place] if place < len(node.args) else argument.default_value
        values.append(node.kwargs.get(argument.name, given))
    return values


def _split_operation(
    target: Callable[..., torch.Tensor],
    x: torch.Tensor,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    rest: Sequence[Any],
) -> torch.Tensor:
    # Under autocast the original operation casts its arguments, and the formulas do not. The
    # meta device has no autocast to ask for.
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return WEIGHT_OPERATIONS[target].call(target, x, weight, bias, rest)
    return _SplitOperation.apply(target, x, weight, bias, rest)  # pyright: ignore[reportReturnType]


class _SplitOperation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        target: Callable[..., torch.Tensor],
        x: torch.Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        rest: Sequence[Any],
    ) -> torch.Tensor:
        ctx.save_for_backward(x)
        # Parameters are attributes instead of saved tensors: hooks on saved tensors may return
        # copies, and the gradient belongs to the parameter itself.
        ctx.target, ctx.weight, ctx.bias, ctx.rest = target, weight, bias, rest
        # A linear layer's result may be a view of its product. From a custom function, autograd
        # would let nobody write into such a view; `data` is none.
        return WEIGHT_OPERATIONS[target].call(target, x, weight, bias, rest).data

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,), operation = ctx.saved_tensors, WEIGHT_OPERATIONS[ctx.target]
        weight, bias, rest, (g,) = ctx.weight, ctx.bias, ctx.rest, gradients
        needs = ctx.needs_input_grad
        of_input = operation.input_gradient(g, x, weight, rest) if needs[1] else None
        # Detached, since x refers to its autograd graph, and the graph to all inputs of the stage.
        x = x.detach()
        if _Deferral.work is None:
            parts = operation.weight_gradients(g, x, weight, bias is not None, rest)
            return None, of_input, parts[0], parts[1] if needs[3] else None, None
        work = partial(_add_parts, operation, g, x, weight, bias, rest)
        parameters = (weight,) if bias is None or not bias.requires_grad else (weight, bias)
        _Deferral.work.append(DeferredWork(work, parameters, (x, g)))
        return None, of_input, None, None, None


def _add_parts(
    operation: WeightOperation,
    g: torch.Tensor,
    x: torch.Tensor,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    rest: Sequence[Any],
) -> None:
    if operation.factors is None or weight.grad is None or weight.grad.dtype != g.dtype:
        of_weight, of_bias = operation.weight_gradients(g, x, weight, bias is not None, rest)
        _add(weight, of_weight)
    else:
        # Adds the product in place: one pass over the gradient, and no memory for the product.
        weight.grad.addmm_(*operation.factors(g, x))
        of_bias = None if bias is None else rows(g).sum(0)
    if bias is not None and bias.requires_grad and of_bias is not None:
        _add(bias, of_bias)


def _add(parameter: nn.Parameter, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient
