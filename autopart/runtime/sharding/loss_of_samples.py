"""The loss of a microbatch from the losses of its parts, each with a d-th of the samples.

    mean over samples            mean of the parts' losses: each counts 1/d
    sum over samples             sum of the parts' losses: each counts 1
    mean over rows with labels   each part divides its sum by the rows that all parts count together, over d

The last is torch's cross-entropy, which leaves rows with `ignore_index` out. The count is one number, which the
processes sum. All other losses are refused: such as one that multiplies two means, as balance losses of experts do.

Samples must not meet before the loss. Two cases that are seen in the graph are refused: a product of two matrices that both
come from the batch, and labels that do not come from it. A contrastive loss has both. Other cases are not seen.
"""

# pyright: reportPrivateUsage=false

from typing import Any, Literal

import torch
from torch import fx

from autopart.errors import ModelError
from autopart.runtime.capture.capture import Captured
from autopart.runtime.sharding.collectives import reduce
from autopart.runtime.sharding.context.rules.sums import mean_over_positions, sums_over_positions
from autopart.runtime.sharding.cross_entropy import MEAN, SUM, sharded_cross_entropy
from autopart.runtime.sharding.shard_groups import shard_group_named

aten = torch.ops.aten

SAMPLES = "samples"
"""The name under which a run registers the processes that share a microbatch's samples."""

_Kind = Literal["mean", "sum", "equal"]
_LINEAR = frozenset(
    {
        aten.alias,
        aten.clone,
        aten.contiguous,
        aten.to,
        aten._to_copy,
        aten.neg,
        aten.view,
        aten.reshape,
        aten.mul,
        aten.div,
    }
)
_SUMS = frozenset({aten.add, aten.sub})
_LOSSES = frozenset(
    {
        aten.cross_entropy_loss,
        aten.mse_loss,
        aten.l1_loss,
        aten.smooth_l1_loss,
        aten.huber_loss,
        aten.binary_cross_entropy,
        aten.binary_cross_entropy_with_logits,
        aten.soft_margin_loss,
        aten.kl_div,
    }
)
_PRODUCTS = frozenset({aten.mm, aten.matmul, aten.linear, aten.addmm})
_BATCH_NORMS = frozenset({aten.batch_norm, aten.native_batch_norm, aten._native_batch_norm_legit})


def check_samples_apart(captured: Captured) -> None:
    """Raise ModelError where two matrices that come from the batch are multiplied. `captured` is no local graph."""
    graph = captured.module.graph
    on_samples = _reached_from_batch(graph)
    for node in graph.nodes:
        if _multiplies_samples(node, on_samples):
            raise _refused(node, "it multiplies samples by samples")


def split_loss(captured: Captured, degree: int) -> float:
    """Return the factor of a part's loss; a cross-entropy then counts the rows of all parts.

    Changes the captured graph in place. Raises ModelError where the parts' losses do not give the whole's.
    """
    graph = captured.module.graph
    for node in graph.nodes:
        if _packet(node) in _BATCH_NORMS and _argument(node, "training", "train"):
            raise _refused(node, "it takes its statistics over all samples of a microbatch")
    loss = graph.output_node().args[0]
    assert isinstance(loss, fx.Node)
    on_samples = _reached_from_batch(graph)
    kind = _kind_of(loss, on_samples)
    for node in graph.nodes:
        if node in on_samples and node.target is mean_over_positions:
            node.args = (degree, *node.args)
            node.target = mean_over_samples_and_positions
        elif node in on_samples and _counts_rows(node):
            node.args = (node.target is sharded_cross_entropy, degree, *node.args)
            node.target = mean_over_samples
    captured.module.recompile()
    return 1.0 if kind == "sum" else 1.0 / degree


def mean_over_samples(
    is_sharded: bool,
    degree: int,
    logits: torch.Tensor,
    target: torch.Tensor,
    *rest: Any,
    **named: Any,
) -> torch.Tensor:
    """Return a part's cross-entropy, so that the mean over the parts is that of all rows with labels."""
    if is_sharded:
        _, ignored, group = rest
        total = sharded_cross_entropy(logits, target, SUM, ignored, group)
    else:
        given = dict(
            zip(("weight", "reduction", "ignore_index", "label_smoothing"), rest, strict=False)
        )
        given |= named
        ignored = given.get("ignore_index", -100)
        smoothing = given.get("label_smoothing", 0.0)
        total = aten.cross_entropy_loss.default(logits, target, None, SUM, ignored, smoothing)
    count = (target != ignored).sum().to(torch.float64)
    return total * (degree / shard_group_named(SAMPLES).sum(count)).to(total.dtype)


def mean_over_samples_and_positions(
    degree: int, total: torch.Tensor, count: torch.Tensor, group: str
) -> torch.Tensor:
    """Return the same from the sum and the count of a context rank's rows."""
    sums = sums_over_positions(total, count, group)
    rows = shard_group_named(SAMPLES).sum(sums[1].to(torch.float64))
    return (sums[0] * (degree / rows).to(sums.dtype)).to(total.dtype)


def _multiplies_samples(node: fx.Node, on_samples: set[fx.Node]) -> bool:
    """Whether a node is the product of two matrices that come from the batch. A product per sample has a third dimension."""
    if _packet(node) not in _PRODUCTS:
        return False
    at = 1 if _packet(node) is aten.addmm else 0
    first, second = node.args[at : at + 2]
    if first not in on_samples or second not in on_samples:
        return False
    # A linear's weight is a matrix, and its input has any number of dimensions.
    return _is_matrix(second) and (_packet(node) is aten.linear or _is_matrix(first))


def _is_matrix(node: Any) -> bool:
    """Whether a node's value is known to have two dimensions; results of code that no graph holds have no known value."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim == 2


def _counts_rows(node: fx.Node) -> bool:
    """Whether a node is a mean over the rows whose label is not ignored."""
    if node.target is sharded_cross_entropy:
        return bool(node.args[2] == MEAN)
    if _packet(node) is not aten.cross_entropy_loss or _argument(node, "reduction") != MEAN:
        return False
    target = node.args[1]
    value = target.meta.get("val") if isinstance(target, fx.Node) else None
    return not (isinstance(value, torch.Tensor) and value.is_floating_point())


def _kind_of(node: fx.Node, on_samples: set[fx.Node]) -> _Kind:
    """How the value of all samples follows from those of the parts. Raises ModelError where it does not."""
    if node not in on_samples:
        return "equal"
    if node.target is reduce:
        # A sum over context ranks is one over positions: it is linear in the part's own.
        return _kind_of(node.all_input_nodes[0], on_samples)
    found = _kind_of_loss(node, on_samples)
    if found is None:
        packet, read = _packet(node), [n for n in node.all_input_nodes if n in on_samples]
        first = node.args[0] if node.args else None
        if packet in _SUMS:
            found = _kind_of_sum(node, on_samples)
        # A number over a loss is not linear in it.
        elif len(read) == 1 and packet in _LINEAR and (packet is aten.mul or first in read):
            found = _kind_of(read[0], on_samples)
    if found is None:
        raise _refused(node, "it is neither a mean nor a sum over samples")
    return found


def _kind_of_loss(node: fx.Node, on_samples: set[fx.Node]) -> _Kind | None:
    """The kind of an operation that joins samples; None for others."""
    packet = _packet(node)
    if node.target is mean_over_positions:
        return "mean"
    if node.target is sharded_cross_entropy or packet in _LOSSES:
        reduction = node.args[2] if packet is None else _argument(node, "reduction")
        if packet is aten.cross_entropy_loss and _argument(node, "weight") is not None:
            raise _refused(node, "its classes have weights")
        if packet is aten.cross_entropy_loss and node.args[1] not in on_samples:
            raise _refused(node, "its labels do not come from the batch")
        return "mean" if reduction == MEAN else "sum" if reduction == SUM else None
    if packet in (aten.mean, aten.sum) and node.meta["val"].ndim == 0:
        return "mean" if packet is aten.mean else "sum"
    return None


def _kind_of_sum(node: fx.Node, on_samples: set[fx.Node]) -> _Kind | None:
    """The kind of a sum of losses. A term that all parts have alike counts once in a mean, and d times in a sum."""
    kinds = {_kind_of(n, on_samples) for n in node.all_input_nodes}
    if len(node.all_input_nodes) < 2:
        kinds.add("equal")
    if kinds in ({"mean"}, {"mean", "equal"}):
        return "mean"
    return "sum" if kinds == {"sum"} else None


def _refused(node: fx.Node, why: str) -> ModelError:
    return ModelError(
        f"with sharded state the loss must follow from those of a microbatch's parts, and '{node.name}' does not: "
        f"{why}; solve with --shard none"
    )


def _reached_from_batch(graph: fx.Graph) -> set[fx.Node]:
    found = set[fx.Node]()
    for node in graph.nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def _argument(node: fx.Node, *names: str) -> Any:
    """An argument of an operation by its name, or its default; None where it has no such argument."""
    operation = node.target
    assert isinstance(operation, torch._ops.OpOverload)
    for place, argument in enumerate(operation._schema.arguments):
        if argument.name in names:
            given = node.args[place] if place < len(node.args) else argument.default_value
            return node.kwargs.get(argument.name, given)
    return None
