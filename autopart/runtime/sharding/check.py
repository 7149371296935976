"""The numeric check: the local graphs of a whole group together against the captured graph.

The ranks are threads in this process. Dropout is left out on both sides. All other random operations draw equal numbers
on both sides, as in a checked run (`seeded_draws`). Where memory allows, both sides compute in float64: an error of the rules is then far
above rounding, and no ReLU stands at its kink.
"""

# pyright: reportPrivateUsage=false

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.errors import ModelError
from autopart.records.rank_group import degrees_of, group_size
from autopart.runtime.capture.autocast import entered
from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.context.causal import causal_attention
from autopart.runtime.sharding.context.draws import FIRST_GIVEN_OF, draw_causal_attention
from autopart.runtime.sharding.group_graphs import GroupGraphs, exchanging
from autopart.runtime.sharding.local_model import whole_tensor
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.shard import ShardedGraph
from autopart.runtime.sharding.thread_ranks import ThreadRanks
from autopart.runtime.transforms.seeded_draws import SeededDraws, draws

WIDE_BYTES = 1 << 30
"""Largest parameters, in their own dtype, for which the check computes in float64."""
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 2e-2,
    torch.bfloat16: 1e-1,
    torch.float16: 1e-1,
}
"""Largest difference relative to the largest gradient. In narrow dtypes it only finds gross errors."""

_DROPOUTS = ("dropout", "native_dropout", "scaled_dot_product_attention")
"""Operations whose probability the check sets to 0."""
LEAST_SHARE = 1e-4
NARROW = (torch.float32, torch.bfloat16, torch.float16)


class ShardCheck(NamedTuple):
    """The differences between the local graphs together and the captured graph."""

    loss_error: float
    """Difference between the losses, relative to the captured graph's."""
    gradient_error: float
    """Largest difference in a gradient, relative to the largest element of that gradient.

    Gradients below `LEAST_SHARE` of the model's largest element count relative to that share: a
    key's bias has a gradient of 0, and a rounding error divided by 0 says nothing."""
    parameter: str
    """The parameter with this difference."""
    dtype: torch.dtype
    """The dtype of the check."""


def check_shards(sharded: ShardedGraph, leaves: Sequence[torch.Tensor]) -> ShardCheck:
    """Compare loss and every gradient for one microbatch; `leaves` are its tensors.

    Raises ModelError where they differ by more than the dtype's tolerance. Nothing of the model
    changes. It needs memory for the parameters and gradients of all ranks.
    """
    return check_group(GroupGraphs(sharded.captured, sharded), leaves)


def check_group(graphs: GroupGraphs, leaves: Sequence[torch.Tensor]) -> ShardCheck:
    """Compare as `check_shards` does, for ranks that share layers by tensors, positions or experts."""
    captured = graphs.captured
    dtype, is_wide = _dtype(captured)
    state = {
        name: value.detach().double() if is_wide and value.is_floating_point() else value
        for name, value in _tensors(captured.module).items()
    }
    inputs = [x.double() if is_wide and x.is_floating_point() else x for x in leaves]
    with SeededDraws() as seeded:
        seeded.start(0, is_backward=False)
        loss, gradients = _captured_run(captured, state, inputs, is_wide)
        losses, local = _local_runs(graphs, state, inputs, is_wide, seeded)
    if not loss.isfinite():
        raise ModelError(
            f"{graphs.name}: the model's own loss is {loss.item()}, so its shards cannot be compared; check weights and data"
        )
    error, worst = 0.0, ""
    least = LEAST_SHARE * max(float(own.abs().max()) for own in gradients.values() if own.numel())
    for name, own in gradients.items():
        for found in _whole_gradients(graphs, name, [one[name] for one in local]):
            of_this = _relative(found, own, least)
            # A NaN compares with nothing: it must count as a difference.
            if not of_this <= error:
                error, worst = of_this, name
    result = ShardCheck(max(_relative(x, loss, 0.0) for x in losses), error, worst, dtype)
    _judge(graphs, result)
    return result


def _whole_gradients(
    graphs: GroupGraphs, name: str, local: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return the whole gradient as each context and expert rank has it: one where they sum it."""
    t, c = graphs.tensor_degree, graphs.context_degree
    of_ranks = [local[i : i + t] for i in range(0, len(local), t)]
    # The context ranks of one expert rank follow each other.
    if graphs.context is not None and name in graphs.context.partial_parameters:
        of_ranks = [_summed(of_ranks[i : i + c]) for i in range(0, len(of_ranks), c)]
        c = 1
    if graphs.experts is not None and name in graphs.experts.shards:
        of_ranks = [
            [torch.cat(same) for same in zip(*of_ranks[j::c], strict=True)] for j in range(c)
        ]
    elif graphs.experts is not None and name in graphs.experts.partial_parameters:
        of_ranks = [_summed(of_ranks[j::c]) for j in range(c)]
    if graphs.sharded is None:
        return [one[0] for one in of_ranks]
    return [whole_tensor(graphs.sharded, name, one, is_gradient=True) for one in of_ranks]


def _summed(of_ranks: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
    """Return the sum over ranks for each tensor rank."""
    return [torch.stack(same).sum(0) for same in zip(*of_ranks, strict=True)]


def _judge(graphs: GroupGraphs, result: ShardCheck) -> None:
    tolerance = TOLERANCES[result.dtype]
    if not (result.loss_error <= tolerance and result.gradient_error <= tolerance):
        raise ModelError(
            f"{graphs.name}: the ranks together differ from the model: "
            f"loss by {result.loss_error:.1e}, the gradient of '{result.parameter}' by "
            f"{result.gradient_error:.1e}; a rule of the pass is wrong for this model"
        )


def _captured_run(
    captured: Captured,
    state: Mapping[str, torch.Tensor],
    leaves: Sequence[torch.Tensor],
    is_wide: bool,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    module = _plain(captured.module, is_wide)
    own = {
        name: nn.Parameter(state[name].detach(), requires_grad=value.requires_grad)
        for name, value in module.named_parameters()
    }
    buffers = {name: state[name].clone() for name, _ in module.named_buffers()}
    with entered(captured.autocast):
        loss = torch.func.functional_call(module, {**own, **buffers}, tuple(leaves))
    loss.backward()
    return loss.detach(), _gradients(own)


def _local_runs(
    graphs: GroupGraphs,
    state: Mapping[str, torch.Tensor],
    leaves: Sequence[torch.Tensor],
    is_wide: bool,
    seeded: SeededDraws,
) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    size = group_size(graphs.group)
    models = [_plain(graphs.module(place, state), is_wide) for place in range(size)]
    losses: dict[int, torch.Tensor] = {}
    group, drawing = ThreadRanks(size), threading.Lock()

    def work(rank: int) -> None:
        with _InThread(seeded, drawing):
            with entered(graphs.captured.autocast):
                loss = models[rank](*leaves)
            loss.backward()
        losses[rank] = loss.detach()

    with exchanging(degrees_of(graphs.group), group):
        group.run(work)
    return [losses[place] for place in range(size)], [
        _gradients(dict(model.named_parameters())) for model in models
    ]


class _InThread(TorchDispatchMode):
    """Seeds the draws of one thread. A mode holds for one thread, and the generators are those of all threads."""

    def __init__(self, seeded: SeededDraws, drawing: threading.Lock) -> None:
        super().__init__()
        self._seeded, self._drawing = seeded, drawing

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not draws(func, args, given):
            return func(*args, **given)
        with self._drawing:
            return self._seeded.__torch_dispatch__(func, types, args, given)


def _gradients(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in parameters.items()
        if parameter.requires_grad
    }


def _relative(found: torch.Tensor, expected: torch.Tensor, least: float) -> float:
    if not expected.numel():
        return 0.0
    scale = max(float(expected.abs().max()), least)
    difference = float((found - expected).abs().max())
    return difference / scale if scale else difference


def _plain(module: fx.GraphModule, is_wide: bool) -> fx.GraphModule:
    """Return the same graph, over the same tensors, with every probability of dropout 0.

    Other random operations stay: on slices they draw for the whole value. Where `is_wide`, operations that name a narrow dtype name float64.
    """
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in module.graph.nodes:
        new = env[node] = graph.node_copy(node, env.__getitem__)
        _leave_out_dropout(new)
        if is_wide:
            new.args, new.kwargs = fx.node.map_aggregate((new.args, new.kwargs), _wide)  # pyright: ignore
    return fx.GraphModule(module, graph)


def _leave_out_dropout(node: fx.Node) -> None:
    """Set the probability of a dropout to 0. It then draws nothing, and needs no numbers of the whole value."""
    if node.target is draw_causal_attention:
        node.target, node.args = causal_attention, node.args[5:]
    if node.target in FIRST_GIVEN_OF:
        operation, given = node.args[0], node.args[FIRST_GIVEN_OF[node.target] :]
        assert isinstance(operation, torch._ops.OpOverload)
        if operation._schema.name.partition("::")[2] in _DROPOUTS:
            node.target, node.args = operation, given
    if operation_name(node) in ("dropout", "native_dropout"):
        node.args = (node.args[0], 0.0, *node.args[2:])
    if operation_name(node) == "scaled_dot_product_attention":
        if len(node.args) > 4:
            node.args = (*node.args[:4], 0.0, *node.args[5:])
        elif "dropout_p" in node.kwargs:
            node.kwargs = {**node.kwargs, "dropout_p": 0.0}
    if node.target is causal_attention:
        node.args = (*node.args[:3], 0.0, *node.args[4:])


def _tensors(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _dtype(captured: Captured) -> tuple[torch.dtype, bool]:
    """Return the dtype of the check, and whether it is float64 though the model's is not."""
    parameters = list(captured.module.parameters())
    dtypes = [p.dtype for p in parameters]
    main = max(dtypes, key=dtypes.count)
    is_small = sum(p.nbytes for p in parameters) <= WIDE_BYTES
    is_real = not any(dtype.is_complex for dtype in dtypes)
    is_wide = is_small and is_real and captured.autocast is None and main != torch.float64
    return (torch.float64 if is_wide else main), is_wide


def _wide(argument: object) -> object:
    return torch.float64 if argument in NARROW else argument
