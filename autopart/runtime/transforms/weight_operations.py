"""Operations with weights whose backward can be split, with formulas for both gradients.

The formulas are torch's own. With x the input and g the gradient at the output:

    linear     dx = g w         dw = g^T x        db = sum g
    addmm      dx = g w^T       dw = x^T g        db = sum g
    conv       both by torch's convolution_backward
    embedding  (indices have no gradient)         dw by torch's embedding_dense_backward
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

aten = torch.ops.aten
Gradients = tuple[torch.Tensor, torch.Tensor | None]
"""Weight gradient and bias gradient."""


class WeightOperation(NamedTuple):
    """An operation with a weight and an optional bias. `rest`: its other arguments."""

    input_gradient: Callable[..., torch.Tensor | None]
    """Arguments: (g, x, weight, rest)."""
    weight_gradients: Callable[..., Gradients]
    """Arguments: (g, x, weight, has_bias, rest)."""
    places: tuple[int, int, int | None]
    """Argument positions for input, weight and bias."""
    call: Callable[..., torch.Tensor]
    """Forward, with arguments (target, x, weight, bias, rest)."""
    factors: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    """From (g, x), two matrices whose product is the weight gradient; None if it is no such
    product."""
    fits: Callable[[fx.Node, Sequence[Any]], bool] = lambda node, arguments: True
    """Whether the formulas hold for a node with these arguments."""


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a matrix: all dimensions except the last become rows."""
    return tensor.reshape(-1, tensor.shape[-1])


def _linear_input(g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, rest: object) -> Any:
    return g @ weight


def _linear_weights(
    g: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, has_bias: bool, rest: object
) -> Gradients:
    a, b = _linear_factors(g, x)
    return a @ b, rows(g).sum(0) if has_bias else None


def _linear_factors(g: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return rows(g).t(), rows(x)


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


_CONVOLUTION = WeightOperation(
    _conv_input,
    _conv_weights,
    places=(0, 1, 2),
    call=_call_convolution,
    fits=_is_batched,
)

WEIGHT_OPERATIONS: Mapping[object, WeightOperation] = {
    aten.linear.default: WeightOperation(
        _linear_input,
        _linear_weights,
        places=(0, 1, 2),
        call=_call_linear,
        factors=_linear_factors,
    ),
    aten.addmm.default: WeightOperation(
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
    aten.embedding.default: WeightOperation(
        _no_input,
        _embedding_weights,
        places=(1, 0, None),
        call=_call_embedding,
        fits=_is_dense,
    ),
}
