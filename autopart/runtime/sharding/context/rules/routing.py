"""Tokens that are sorted by their expert, on a rank's own tokens.

A mixture of experts may sort its entries (token, expert) by expert, multiply each run of rows with its expert's matrix,
and put the results back. No entry meets another: the order only says which matrix it meets. So each rank sorts its own
entries. Their order is another one than in the whole model, and each token gets the same result.

- The sorted values are a *pool*. The places say where its entries stood; they *refer* to that dimension.
- Places divided by the entries per token refer to the tokens.
- Reading a cut dimension at places that refer to it gives a pool, and writing to such places gives rows again.
- Numbers of entries per expert are a rank's own counts. Only its pool may read them so. Other readers, such as balance
  losses, get their sum over the ranks.

All other work on pools and places is refused.
"""

import math

from torch import fx

from autopart.runtime.sharding.context.arguments import arguments, dimension
from autopart.runtime.sharding.context.builder import ContextBuilder, is_counts
from autopart.runtime.sharding.context.states import OwnCounts, Reference, Rows
from autopart.runtime.sharding.nodes import operation_name

COUNTS = frozenset({"histc", "bincount"})


def cut_sort(graph: ContextBuilder, node: fx.Node) -> bool:
    """Sort the rank's own entries of a list. Returns False for a sort along another dimension."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    rows, shape = graph.rows(x), graph.shape(x)
    given, entries = arguments(node), math.prod(shape)
    if rows is None or dimension(given.get("dim", -1), len(shape)) != rows.dim:
        return False
    if len(shape) > 1 or rows.kind == "pool" or x.meta["val"].is_floating_point():
        graph.fail(node, "sorts positions")
    pool = Rows(0, entries, kind="pool")
    places = Rows(0, entries, kind="pool", refers=Reference(rows.plain, entries))
    is_places = operation_name(node) == "argsort"
    graph.put_copied(node, places if is_places else pool, graph.local)
    graph.elements[node] = (pool, places)
    return True


def cut_counts(graph: ContextBuilder, node: fx.Node) -> None:
    """Count the rank's own entries."""
    graph.put_copied(node, OwnCounts(), graph.local)


def cut_of_counts(graph: ContextBuilder, node: fx.Node) -> bool:
    """Running sums and casts of a rank's own counts. For others, the counts are summed over the ranks: returns False."""
    if operation_name(node) in ("cumsum", "to", "_to_copy", "clone"):
        graph.put_copied(node, OwnCounts(), graph.local)
        return True
    for one in node.all_input_nodes:
        if is_counts(graph.states[one]):
            graph.sum_over_ranks(one, node)
    return False


def cut_index(graph: ContextBuilder, node: fx.Node) -> None:
    """Read at places: of a cut dimension where they refer to it, else of a whole value."""
    x, indices = node.args[:2]
    assert isinstance(x, fx.Node)
    assert isinstance(indices, list | tuple)
    given = [(dim, n) for dim, n in enumerate(indices) if isinstance(n, fx.Node)]
    own = graph.rows(x)
    if own is None:
        _index_whole(graph, node, x, given)
        return
    dim, places = given[0]
    rows = graph.rows(places)
    refers = None if rows is None else rows.refers
    is_own = (
        rows is not None
        and refers is not None
        and len(given) == 1
        and len(graph.shape(places)) == 1
        and refers.rows == own.plain
        and refers.length == graph.shape(x)[dim]
        and own.dim == dim == 0
    )
    if not is_own:
        graph.fail(node, f"reads other positions of '{x.name}'")
    assert rows is not None
    graph.put_copied(node, rows.plain, graph.local)


def _index_whole(
    graph: ContextBuilder, node: fx.Node, x: fx.Node, given: list[tuple[int, fx.Node]]
) -> None:
    """Read a whole value at numbers that stand along positions."""
    dims = [dim for dim, _ in given]
    width = max(len(graph.shape(n)) for _, n in given)
    found = {
        r.plain.at(r.dim + width - len(graph.shape(n)))
        for _, n in given
        if (r := graph.rows(n)) is not None and r.refers is None
    }
    if len(found) != 1 or dims != list(range(dims[0], dims[0] + len(dims))):
        graph.fail(node, "reads at places that no rule knows")
    inside = found.pop()
    demands: dict[fx.Node, Rows | None] = {x: None}
    for _, n in given:
        dim = inside.dim - (width - len(graph.shape(n)))
        is_broadcast = dim < 0 or graph.shape(n)[dim] == 1
        demands[n] = None if is_broadcast else inside.at(dim)
    graph.put_on_rows(node, inside.at(dims[0] + inside.dim), demands)


def cut_index_put(graph: ContextBuilder, node: fx.Node) -> None:
    """Write a pool, or its numbers, to the places where its entries stood."""
    x, indices, values = node.args[:3]
    assert isinstance(x, fx.Node)
    assert isinstance(indices, list | tuple)
    places = indices[0]
    assert isinstance(places, fx.Node)
    rows = graph.rows(places)
    refers = None if rows is None else rows.refers
    if rows is None or refers is None or len(indices) > 1 or graph.shape(x)[0] != refers.length:
        graph.fail(node, "writes to places that no rule knows")
    _write_to(graph, node, x, places, values)


def cut_index_add(graph: ContextBuilder, node: fx.Node) -> None:
    """Add a pool to the places where its entries stood."""
    given = arguments(node)
    x, places, values = given["self"], given["index"], given["source"]
    rows = graph.rows(places)
    refers = None if rows is None else rows.refers
    if given["dim"] != 0 or refers is None or graph.shape(x)[0] != refers.length:
        graph.fail(node, "adds to places that no rule knows")
    _write_to(graph, node, x, places, values)


def _write_to(
    graph: ContextBuilder, node: fx.Node, x: fx.Node, places: fx.Node, values: object
) -> None:
    rows = graph.rows(places)
    assert rows is not None and rows.refers is not None
    target, state = rows.refers.rows, rows.refers.rows
    local: dict[fx.Node, fx.Node] = {places: graph.local(places), x: graph.own(x, node, target)}
    if isinstance(values, fx.Node) and values not in local:
        own = graph.rows(values)
        if own is None and _is_numbering(values, rows.size):
            # The places of a pool's entries in the pool, so that the result refers to the pool.
            sizes = (rows.size // graph.degree,)
            local[values] = graph.emit(node, values.target, *sizes)
            local[values].kwargs = dict(values.kwargs)
            state = Rows(
                target.dim, target.size, target.outer, refers=Reference(rows.plain, rows.size)
            )
        elif own is None or own.plain != rows.plain:
            graph.fail(node, f"writes '{values.name}', which is no pool of the rank's tokens")
        else:
            local[values] = graph.local(values)
    graph.put_copied(node, state, local.__getitem__)


def _is_numbering(node: fx.Node, size: int) -> bool:
    return operation_name(node) == "arange" and node.args in ((size,), (0, size))
