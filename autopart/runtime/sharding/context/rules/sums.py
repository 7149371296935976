"""Sums, means and losses over positions.

A sum over all positions is the sum over the ranks of the sums over their own. A mean is that sum divided by the number of
terms: by the whole size, or for a loss with `ignore_index` by the number of targets that count, which is summed
over the ranks in the same message.
"""

from typing import Any

import torch
from torch import fx

from autopart.runtime.sharding.collectives import reduce
from autopart.runtime.sharding.context.arguments import arguments, dimension
from autopart.runtime.sharding.context.builder import ContextBuilder
from autopart.runtime.sharding.context.rules.elements import row_wise
from autopart.runtime.sharding.context.states import Rows
from autopart.runtime.sharding.cross_entropy import MEAN, SUM, sharded_cross_entropy
from autopart.runtime.sharding.nodes import operation_name

aten = torch.ops.aten

ELEMENT_LOSSES = frozenset(
    {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits"}
)
CLASS_LOSSES = frozenset({"cross_entropy_loss", "nll_loss_nd", "nll_loss", "sharded_cross_entropy"})


def cut_sum(graph: ContextBuilder, node: fx.Node) -> None:
    """Sum or average the rank's positions; over the positions, then over the ranks."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    rows = graph.rows(x)
    if rows is None or rows.refers is not None:
        graph.fail(node, "adds up the places of sorted tokens")
    if (kept := row_wise(graph, node)) is not None:
        graph.put_copied(node, kept, graph.local)
    elif rows.kind == "pool" or operation_name(node) not in ("sum", "mean"):
        graph.fail(node, "runs over the sequence")
    elif operation_name(node) == "sum":
        graph.put_sum(node, node.target, (graph.local(x), *node.args[1:]), **node.kwargs)
    else:
        _average(graph, node, graph.emit_copied(node, graph.local))


def _average(graph: ContextBuilder, node: fx.Node, own: fx.Node) -> None:
    """Replace a mean over the rank's positions by the mean over all."""
    share = graph.emit(node, aten.div.Tensor, own, graph.degree)
    graph.put(node, None, reduce, (share, graph.group))


def cut_element_loss(graph: ContextBuilder, node: fx.Node) -> None:
    """Add up the losses of the rank's elements."""
    given = arguments(node)
    x, target = given["self"], given["target"]
    rows = graph.rows(x) or graph.rows(target)
    if rows is None or graph.shape(x) != graph.shape(target):
        graph.fail(node, "compares values of different shapes")
    if given.get("weight") is not None or given.get("pos_weight") is not None:
        graph.fail(node, "has weights")
    demands: dict[fx.Node, Rows | None] = {x: rows.plain, target: rows.plain}
    if given.get("reduction", MEAN) == 0:
        graph.put_on_rows(node, rows, demands)
        return
    local = graph.emit_copied(node, lambda n: graph.formed(n, node, demands[n]))
    if given.get("reduction", MEAN) == MEAN:
        _average(graph, node, local)
        return
    graph.put(node, None, reduce, (local, graph.group))


def mean_over_positions(total: torch.Tensor, count: torch.Tensor, group: str) -> torch.Tensor:
    """Return the ranks' sum of `total`, divided by their sum of `count`, in one message."""
    sums = sums_over_positions(total, count, group)
    return (sums[0] / sums[1]).to(total.dtype)


def sums_over_positions(total: torch.Tensor, count: torch.Tensor, group: str) -> torch.Tensor:
    """Return the ranks' sums of both, as two numbers, in float32 for narrower dtypes.

    Counts up to 2**24 per sum are exact.
    """
    wide = torch.promote_types(total.dtype, torch.float32)
    return reduce(torch.stack([total.to(wide), count.to(wide)]), group)


def cut_class_loss(graph: ContextBuilder, node: fx.Node) -> None:
    """Cross-entropy of the rank's rows, divided by the number of all targets that count."""
    given = _loss_arguments(node)
    logits, target = given["logits"], given["target"]
    rows, is_flat = graph.rows(logits), len(graph.shape(logits)) == 2
    if rows is None or given["weight"] is not None or rows.dim == 1:
        graph.fail(node, "has weights, or classes along the sequence")
    if len(graph.shape(target)) == len(graph.shape(logits)):
        graph.fail(node, "has likelihoods as targets")
    wanted = rows.plain if is_flat else rows.plain.at(rows.dim - 1)
    own = graph.own(logits, node, rows)
    of_target = graph.own(target, node, wanted)
    if given["reduction"] == 0:
        graph.put_copied(node, wanted, lambda n: own if n is logits else of_target)
        return
    if node.target is sharded_cross_entropy:
        args = (own, of_target, SUM, given["ignore_index"], given["group"])
    else:
        args = (own, of_target, None, SUM, given["ignore_index"])
        if operation_name(node) == "cross_entropy_loss":
            args = (*args, given["label_smoothing"])
    if given["reduction"] == SUM:
        graph.put_sum(node, node.target, args)
        return
    total = graph.emit(node, node.target, *args)
    is_counted = graph.emit(node, aten.ne.Scalar, of_target, given["ignore_index"])
    count = graph.emit(node, aten.sum.default, is_counted)
    graph.put(node, None, mean_over_positions, (total, count, graph.group))


def _loss_arguments(node: fx.Node) -> dict[str, Any]:
    if node.target is sharded_cross_entropy:
        names = ("logits", "target", "reduction", "ignore_index", "group")
        return {"weight": None, **dict(zip(names, node.args, strict=True))}
    given = arguments(node)
    return {"label_smoothing": 0.0, **given, "logits": given["self"]}


def is_over_positions(graph: ContextBuilder, node: fx.Node) -> bool:
    """Tell whether a sum runs over the positions of its operand."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    rows = graph.rows(x)
    given = arguments(node).get("dim")
    dims = [given] if isinstance(given, int) else (given or [])
    rank = len(graph.shape(x))
    return rows is not None and (not dims or rows.dim in {dimension(d, rank) for d in dims})
