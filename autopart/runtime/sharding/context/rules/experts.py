"""Work on experts, in the pass over a microbatch's samples. Each rank has its part of the experts.

*Dense.* Every expert sees every token: out[e, t] = f(x[t], w[e]). A rank gathers the samples of all ranks, and computes
its own experts for them. A product that sums over experts is the sum over the ranks of the sums over their own
ones. That sum is scattered: each rank gets its own samples.

*Grouped.* Entries (token, expert) are sorted by expert, and each row meets the matrix of its expert only. So a row may be
computed anywhere. It is sent to the rank that has its expert, and its result comes back to its place.

A rank sees all rows of its experts. So the gradients of their weights are whole, and nobody sums them.
"""

from torch import fx

from autopart.runtime.sharding.collectives import own_part, scatter
from autopart.runtime.sharding.context.builder import ContextBuilder, is_counts, is_random
from autopart.runtime.sharding.context.expert_exchange import (
    from_experts,
    gather_counts,
    own_ends,
    to_experts,
)
from autopart.runtime.sharding.context.expert_weights import PRODUCTS, expert_letter
from autopart.runtime.sharding.context.rules.following import following
from autopart.runtime.sharding.context.states import Rows
from autopart.runtime.sharding.nodes import operation_name
from autopart.runtime.sharding.rules.contractions import (
    GROUPED,
    Product,
    product_arguments,
    product_of,
)
from autopart.runtime.sharding.rules.pointwise import is_pointwise

_ROW_WORK = frozenset({"chunk", "split", "split_with_sizes", "getitem", "slice", "narrow"})


def cut_experts(graph: ContextBuilder, node: fx.Node) -> bool:
    """Write work on experts. Returns False for other work, for which entries are sent back where it reads them."""
    name = operation_name(node)
    if name in GROUPED:
        _write_grouped(graph, node)
        return True
    product = product_of(graph, node) if name in PRODUCTS else None
    if product is not None and (letter := _letter(graph, product)) is not None:
        _write_dense(graph, node, product, letter)
        return True
    sent = [n for n in node.all_input_nodes if _kind(graph, n) == "sent"]
    if sent and _works_on_rows(graph, node):
        rule = following(node)
        assert rule is not None
        rows = rule.forth(graph, node)
        demands = None if rows is None else rule.back(graph, node, rows)
        if rows is not None and demands is not None and not is_random(node):
            rule.put(graph, node, rows, demands)
            _return_for_other_layers(graph, node)
            return True
    for one in sent:
        _return(graph, one, node)
    return False


def _kind(graph: ContextBuilder, node: fx.Node) -> str | None:
    rows = graph.rows(node)
    return None if rows is None else rows.kind


def _works_on_rows(graph: ContextBuilder, node: fx.Node) -> bool:
    """Tell whether an operation works on each entry alone, beside no other samples."""
    is_alone = all(_kind(graph, n) == "sent" for n in graph.cut_inputs(node))
    return is_alone and (is_pointwise(node) or operation_name(node) in _ROW_WORK)


def _letter(graph: ContextBuilder, product: Product) -> str | None:
    """Return the letter of the experts in a dense product."""
    for place, operand in enumerate(product.operands):
        rows = graph.rows(operand)
        if rows is not None and rows.kind == "experts":
            is_weight = expert_letter(graph, product, place) is not None
            return product.letters[place][rows.dim] if is_weight or rows.dim >= 0 else None
    return None


def _write_dense(graph: ContextBuilder, node: fx.Node, product: Product, letter: str) -> None:
    local: list[fx.Node] = []
    samples: Rows | None = None
    size = 0
    for place, operand in enumerate(product.operands):
        letters, rows = product.letters[place], graph.rows(operand)
        if rows is not None and rows.kind == "experts":
            if letters[rows.dim] != letter:
                graph.fail(node, f"mixes the experts of '{operand.name}'")
            size = rows.size
            local.append(graph.local(operand))
            continue
        if rows is None:
            own = graph.whole(operand, node)
        else:
            own = graph.gathered([operand], node)[0]
            sample = letters[rows.dim]
            if sample in product.output:
                samples = rows.plain.at(product.output.index(sample))
        if letter in letters:
            own = graph.emit(
                node, own_part, own, letters.index(letter), (), graph.degree, graph.group
            )
        local.append(own)
    if product.bias is not None:
        graph.fail(node, "adds a bias to experts")
    args = product_arguments(node, local)
    if letter in product.output:
        rows = Rows(product.output.index(letter), size, kind="experts")
        graph.put(node, rows, node.target, args, **node.kwargs)
    elif samples is not None and samples.outer == 1:
        assert callable(node.target)
        own = graph.emit(node, node.target, *args)
        graph.put(node, samples, scatter, (own, samples.dim, graph.degree, graph.group))
    else:
        graph.put_sum(node, node.target, args, **node.kwargs)


def _write_grouped(graph: ContextBuilder, node: fx.Node) -> None:
    product = product_of(graph, node)
    if product is None or product.offsets is None:
        graph.fail(node, "has arguments that no rule knows")
    (x, weight), offsets = product.operands, product.offsets
    rows, experts = graph.rows(x), graph.rows(weight)
    if experts is None or experts.kind != "experts" or experts.dim != 0:
        graph.fail(node, f"reads '{weight.name}', which is no parameter with experts")
    if not is_counts(graph.states[offsets]) or rows is None or rows.dim != 0:
        graph.fail(node, "has experts whose rows are not those of a rank's tokens")
    counts = graph.helper(node, gather_counts, offsets, graph.layer(node) or "")
    if rows.kind == "pool":
        own, entries = graph.helper(node, to_experts, x, counts), rows.size
        state = Rows(0, entries, kind="sent", counts=counts.name)
    elif rows.kind == "sent" and rows.counts == counts.name:
        own, state = graph.local(x), rows
    else:
        graph.fail(node, f"reads '{x.name}', whose rows are not sorted by expert")
    ends = graph.helper(node, own_ends, counts, state.size // graph.degree)
    graph.put(node, state, node.target, (own, graph.local(weight), ends))
    _return_for_other_layers(graph, node)


def _return(graph: ContextBuilder, node: fx.Node, at: fx.Node) -> None:
    """Send the results of entries back to their ranks."""
    rows = graph.rows(node)
    assert rows is not None
    if rows.dim != 0:
        graph.fail(at, f"moves the rows of '{node.name}'")
    back = graph.helper(at, from_experts, node, graph.named(rows.counts))
    graph.replace(node, Rows(0, rows.size, kind="pool"), back)


def _return_for_other_layers(graph: ContextBuilder, node: fx.Node) -> None:
    """Send results back that another layer reads: the number of entries that were sent is no fixed one."""
    if any(graph.layer(user) != graph.layer(node) for user in node.users):
        _return(graph, node, node)
