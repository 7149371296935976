"""Backward in two halves: I gives the gradients of what a stage received, W those of its weights.

Operations with large weights are replaced in the stage's graph by twins whose backward can put the
weights' part off: during I it only notes what the part needs, and W computes it (Qi et al., Zero
Bubble Pipeline Parallelism, ICLR 2024). Everything else stays in I, so any order of halves gives
the same gradients. Torch's own way takes the autograd graph apart instead: it frees nothing in I,
recomputes once for every group of parameters, and misses parameters in silent ways.

The twins compute what torch's own formulas compute, with x the input, g the gradient of the output:

    linear     dx = g w         dw = g^T x        db = sum g
    addmm      dx = g w^T       dw = x^T g        db = sum g
    conv       both by torch's convolution_backward
    embedding  (indices have no gradient)         dw by torch's embedding_dense_backward
"""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from autopart.runtime.models.attributes import lookup

aten = torch.ops.aten
Gradients = tuple[torch.Tensor, torch.Tensor | None]
"""Of the weight and of the bias."""


class Deed(NamedTuple):
    """The weights' part of one operation, and what waits for it: the input and the gradient."""

    run: Callable[[], None]
    waiting: tuple[torch.Tensor, torch.Tensor]


class _Operation(NamedTuple):
    """One kind of operation with a weight, and perhaps a bias, of its own."""

    input_gradient: Callable[..., torch.Tensor | None]
    """Of (g, x, weight, rest)."""
    weight_gradients: Callable[..., Gradients]
    """Of (g, x, weight, has_bias, rest)."""
    places: tuple[int, int, int | None]
    """Where input, weight and bias stand among the arguments."""
    call: Callable[..., torch.Tensor]
    """The operation itself, of (target, x, weight, bias, rest)."""
    factors: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    """Of (g, x), two matrices whose product the weight's gradient is; None where it is no such product."""
    fits: Callable[[fx.Node, Sequence[Any]], bool] = lambda node, arguments: True
    """Whether the formulas hold for a node with these arguments."""


class _Backlog:
    """Where the weights' parts go at present; a process runs one action at a time."""

    deeds: list[Deed] | None = None


@contextmanager
def put_off(deeds: list[Deed]) -> Generator[None]:
    """In this block, backwards add the weights' parts to `deeds` instead of running them."""
    _Backlog.deeds = deeds
    try:
        yield
    finally:
        _Backlog.deeds = None


def run_put_off(deeds: list[Deed]) -> None:
    """Run the weights' parts, and forget each one: its tensors are free then."""
    deeds.reverse()
    with torch.no_grad():
        while deeds:
            deeds.pop().run()


def split_backwards(module: fx.GraphModule) -> int:
    """Replace each operation whose weights' part can be put off; gives how many there are.

    An operation is replaced where its weight is itself a trained parameter, and its bias, if any,
    a parameter: what is computed from parameters first stays as it is.
    """
    found = [node for node in module.graph.nodes if _can_split(module, node)]
    for node in found:
        places = _OPERATIONS[node.target].places
        arguments = _filled(node)
        three = tuple(None if p is None else arguments[p] for p in places)
        rest = tuple(value for i, value in enumerate(arguments) if i not in places)
        with module.graph.inserting_before(node):
            twin = module.graph.call_function(_twin, (node.target, *three, rest))
        twin.meta = dict(node.meta)
        node.replace_all_uses_with(twin)
        module.graph.erase_node(node)
    module.recompile()
    return len(found)


def _can_split(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _OPERATIONS:
        return False
    operation, arguments = _OPERATIONS[node.target], _filled(node)
    _, weight, bias = operation.places
    of_bias = None if bias is None else arguments[bias]
    if of_bias is not None:
        found = _parameter(module, of_bias)
        if found is None or found.ndim != 1:
            return False
    parameter = _parameter(module, arguments[weight])
    fits = operation.fits(node, arguments)
    return fits and parameter is not None and parameter.requires_grad


def _parameter(module: fx.GraphModule, argument: object) -> nn.Parameter | None:
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return None
    value = lookup(module, str(argument.target))
    return value if isinstance(value, nn.Parameter) else None


def _filled(node: fx.Node) -> list[Any]:
    """All positional arguments in the order of the operation's schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    values: list[Any] = []
    for place, argument in enumerate(node.target._schema.arguments):
        if argument.kwarg_only:
            continue
        given = node.args[place] if place < len(node.args) else argument.default_value
        values.append(node.kwargs.get(argument.name, given))
    return values


def _twin(
    target: Callable[..., torch.Tensor],
    x: torch.Tensor,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    rest: Sequence[Any],
) -> torch.Tensor:
    # Under autocast the operation casts, which the formulas do not; on meta there is none.
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        return _OPERATIONS[target].call(target, x, weight, bias, rest)
    return _Twin.apply(target, x, weight, bias, rest)  # pyright: ignore[reportReturnType]


class _Twin(torch.autograd.Function):
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
        # As attributes: hooks on saved tensors may hand out copies, and copies have no gradient.
        ctx.target, ctx.weight, ctx.bias, ctx.rest = target, weight, bias, rest
        return _OPERATIONS[target].call(target, x, weight, bias, rest)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (x,), operation = ctx.saved_tensors, _OPERATIONS[ctx.target]
        weight, bias, rest, (g,) = ctx.weight, ctx.bias, ctx.rest, gradients
        needs = ctx.needs_input_grad
        of_input = operation.input_gradient(g, x, weight, rest) if needs[1] else None
        # Whoever holds a tensor holds its graph, and with it all that the stage received.
        x = x.detach()
        if _Backlog.deeds is None:
            parts = operation.weight_gradients(g, x, weight, bias is not None, rest)
            return None, of_input, parts[0], parts[1] if needs[3] else None, None
        deed = partial(_add_parts, operation, g, x, weight, bias, rest)
        _Backlog.deeds.append(Deed(deed, (x, g)))
        return None, of_input, None, None, None


def _add_parts(
    operation: _Operation,
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
        # One pass over the gradient, and no room for the product.
        weight.grad.addmm_(*operation.factors(g, x))
        of_bias = None if bias is None else _rows(g).sum(0)
    if bias is not None and bias.requires_grad and of_bias is not None:
        _add(bias, of_bias)


def _add(parameter: nn.Parameter, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad += gradient


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _linear_input(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rest: object) -> Any:
    return g @ weight


def _linear_weights(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, has_bias: bool, rest: object
) -> Gradients:
    a, b = _linear_factors(g, x)
    return a @ b, _rows(g).sum(0) if has_bias else None


def _linear_factors(g: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _rows(g).t(), _rows(x)


def _addmm_input(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rest: object) -> Any:
    return g @ weight.t()


def _addmm_weights(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, has_bias: bool, rest: object
) -> Gradients:
    a, b = _addmm_factors(g, x)
    return a @ b, g.sum(0)


def _addmm_factors(g: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.t(), g


def _conv_input(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rest: Sequence[Any]) -> Any:
    return _convolution_backward(g, x, weight, rest, [True, False, False])[0]


def _conv_weights(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, has_bias: bool, rest: Sequence[Any]
) -> Gradients:
    return _convolution_backward(g, x, weight, rest, [False, True, has_bias])[1:]


def _convolution_backward(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rest: Sequence[Any], mask: list[bool]
) -> Any:
    dims = weight.ndim - 2
    stride, padding, dilation = (_each(value, dims) for value in rest[:3])
    return aten.convolution_backward.default(
        g, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0] * dims, rest[3], mask
    )


def _each(value: int | Sequence[int], dims: int) -> list[int]:
    given = [value] if isinstance(value, int) else list(value)
    return given * dims if len(given) == 1 else given


def _is_plain_sum(node: fx.Node, arguments: Sequence[Any]) -> bool:
    return not node.kwargs  # beta and alpha


def _is_batched(node: fx.Node, arguments: Sequence[Any]) -> bool:
    example = arguments[0].meta.get("val") if isinstance(arguments[0], fx.Node) else None
    made = node.meta.get("val")
    known = example if isinstance(example, torch.Tensor) else made
    dims: dict[object, int] = {
        aten.conv1d.default: 1,
        aten.conv2d.default: 2,
        aten.conv3d.default: 3,
    }
    return isinstance(known, torch.Tensor) and known.ndim == dims[node.target] + 2


def _is_dense(node: fx.Node, arguments: Sequence[Any]) -> bool:
    return not arguments[-1]  # sparse


def _no_input(*_: object) -> None:
    return None


def _embedding_weights(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, has_bias: bool, rest: Sequence[Any]
) -> Gradients:
    padding, by_frequency = rest[0], rest[1]
    return (
        aten.embedding_dense_backward.default(g, x, weight.shape[0], padding, by_frequency),
        None,
    )


def _call_linear(target: Any, x: Any, weight: Any, bias: Any, rest: Sequence[Any]) -> Any:
    return target(x, weight, bias)


def _call_addmm(target: Any, x: Any, weight: Any, bias: Any, rest: Sequence[Any]) -> Any:
    return target(bias, x, weight)


def _call_convolution(target: Any, x: Any, weight: Any, bias: Any, rest: Sequence[Any]) -> Any:
    return target(x, weight, bias, *rest)


def _call_embedding(target: Any, x: Any, weight: Any, bias: Any, rest: Sequence[Any]) -> Any:
    return target(weight, x, *rest)


_CONVOLUTION = _Operation(
    _conv_input,
    _conv_weights,
    places=(0, 1, 2),
    call=_call_convolution,
    fits=_is_batched,
)

_OPERATIONS: Mapping[object, _Operation] = {
    aten.linear.default: _Operation(
        _linear_input,
        _linear_weights,
        places=(0, 1, 2),
        call=_call_linear,
        factors=_linear_factors,
    ),
    aten.addmm.default: _Operation(
        _addmm_input,
        _addmm_weights,
        places=(1, 2, 0),
        call=_call_addmm,
        factors=_addmm_factors,
        fits=_is_plain_sum,
    ),
    aten.conv1d.default: _CONVOLUTION,
    aten.conv2d.default: _CONVOLUTION,
    aten.conv3d.default: _CONVOLUTION,
    aten.embedding.default: _Operation(
        _no_input,
        _embedding_weights,
        places=(1, 0, None),
        call=_call_embedding,
        fits=_is_dense,
    ),
}
