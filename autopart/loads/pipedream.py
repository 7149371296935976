"""What PipeDream's optimizer charges a stage (Narayanan et al., SOSP 2019), as its program computes it.

Symbols   D ⊂ D'   downsets of the layer graph: the layers ahead of a stage, and with it
          c, p, a  sums over the stage's layers of forward and backward seconds, of parameter bytes and
                   of output bytes;  out(D)  output bytes of the layers around the cut at D
          r        replicas;  n  machines of the level;  B  bytes a second of the level's links
          z        the activation compression ratio, 1 where transfers count as they are

    busy = (c + 4 (r - 1) / r * p / B) / r                                                      (1)
    receive = 2 out(D) / (B r z)      for all stages but the first                              (2)
    send = 2 out(D') / (B r z)        for all stages but the last and the first                  (3)
    objective = max over stages of max(busy, receive, send)                                      (4)
    ceil(later / r) (a + p) <= memory, `later` the replicas of all later stages                  (5)

(1) divides the weights' sync by r twice. (3) leaves the first stage's sends out; `all_sends` puts them
in, as they cost at that stage's own replicas. z = None drops (2) and (3). out(D) sums over the layers
of D that no other layer of D comes after and, for each of these, a, over the layers ahead of a with a
reader that is neither a nor ahead of a: at least what crosses the cut, and more where branches meet.

Two levels: a stage of the outer level is a pipeline of the inner one on all n machines of a node or
fewer, and c in (1) is that pipeline's objective over the same layers, (2)-(3) included; "first" means
first in its level, "last" holds the graph's last layer. In the first stage of the outer level p is
divided by n as well.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.errors import UsageError
from autopart.graph import LayerGraph, positions
from autopart.loads.bit_sums import merge_bits, pack, sum_bits

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
Number = Any
"""A float, or a numpy array of them."""

MANY = 2000
"""Downsets from which on their cuts are summed up by tables."""


class Network(NamedTuple):
    """Machines in one level or two, the inner one first, and what PipeDream is told besides."""

    machines: tuple[int, ...]
    """GPUs of a node, then nodes; one level: GPUs."""
    bandwidths: tuple[float, ...]
    """Bytes a second of each level."""
    straight: bool = False
    """Whether each stage runs on one machine."""
    compression: float | None = 1.0
    """The activation compression ratio; None counts no transfers, as PipeDream does by default."""
    memory_bytes: float | None = None
    """Of a machine; None as PipeDream without its memory constraint."""


class Nodes(NamedTuple):
    """The layers of a graph in its order, as PipeDream counts them."""

    compute: Floats
    """Seconds of forward and backward."""
    parameters: Floats
    """Bytes."""
    outputs: Floats
    """Bytes."""
    before: tuple[int, ...]
    """For each layer the bits of those that it reads."""
    after: tuple[int, ...]
    """For each layer the bits of its readers."""


class Sums(NamedTuple):
    """One entry for each downset: the sums over its layers, and out."""

    compute: Floats
    parameters: Floats
    outputs: Floats
    cut: Floats


class Part(NamedTuple):
    """A stage of a plan: of one level, or of the outer level with its inner pipeline."""

    layers: tuple[int, ...]
    """Positions in the graph's order."""
    replicas: int
    inner: tuple["Part", ...] = ()


def check_network(network: Network) -> None:
    """Raise UsageError where the numbers cannot be meant."""
    machines, bandwidths = network.machines, network.bandwidths
    if len(machines) not in (1, 2) or len(machines) != len(bandwidths):
        raise UsageError(
            f"{len(machines)} counts of machines and {len(bandwidths)} bandwidths: give one of each, "
            "or two of each, those within a node first"
        )
    if min(machines) < 1:
        raise UsageError(f"{min(machines)} machines: there must be at least 1")
    amounts = {"bandwidth": min(bandwidths), "compression ratio": network.compression}
    for what, amount in (amounts | {"memory": network.memory_bytes}).items():
        if amount is not None and not (math.isfinite(amount) and amount > 0):
            raise UsageError(f"a {what} of {amount:g}: it must be a finite number above 0")


def replica_counts(network: Network, level: int) -> range:
    """The replicas that a stage of a level may have."""
    return range(1, 2 if network.straight else network.machines[level] + 1)


def busy_time(
    compute: Number, parameters: Number, replicas: Number, bandwidth: float, sharing: int = 1
) -> Number:
    """(1), in seconds; `sharing` machines share the sync of a two-level network's first stage."""
    sync = 4 * (replicas - 1) / replicas * parameters / bandwidth / sharing
    return (compute + sync) / replicas


def transfer_time(
    cut: Number, replicas: Number, bandwidth: float, compression: float | None
) -> Number:
    """(2) and (3), in seconds."""
    if compression is None:
        return 0.0 * cut
    return 2 * cut / (bandwidth * replicas) / compression


def in_flight(later: int, replicas: int) -> int:
    """Stashed minibatches of (5), with `later` replicas in all later stages."""
    return -(-later // replicas)


def nodes_of(graph: LayerGraph) -> Nodes:
    """The layers of a graph: a layer's output is the sum of its values, or its stash if none reads it."""
    place = positions(graph)
    before, after = [0] * len(place), [0] * len(place)
    outputs = [0] * len(place)
    for value in graph.values:
        producer = place[value.producer]
        outputs[producer] += value.bytes
        for consumer in value.consumers:
            before[place[consumer]] |= 1 << producer
            after[producer] |= 1 << place[consumer]
    layers = graph.layers
    held = [out if after[v] else layers[v].stash_bytes for v, out in enumerate(outputs)]
    times = [la.forward_time + la.input_grad_time + la.weight_grad_time for la in layers]
    return Nodes(
        compute=np.array(times),
        parameters=np.array([la.param_bytes for la in layers], dtype=float),
        outputs=np.array(held, dtype=float),
        before=tuple(before),
        after=tuple(after),
    )


def bits(mask: int) -> Iterator[int]:
    """The positions of the bits that are set, lowest first."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def state_sums(
    nodes: Nodes,
    grown: Sequence[tuple[int, int]],
    tops: Sequence[int],
    pieces: Sequence[Sequence[int]] | None = None,
) -> Sums:
    """The sums of downsets, the empty one first: each of the others is an earlier one, `grown[i][0]`,
    and a layer, `grown[i][1]`, or the layers of one of the `pieces`. `tops` are the bits of the layers
    that none of a downset's reads."""
    sums: list[Floats] = []
    for amounts in (nodes.compute, nodes.parameters, nodes.outputs):
        each: list[float] = amounts.tolist()
        if pieces is not None:
            each = [math.fsum(each[v] for v in piece) for piece in pieces]
        total = [0.0]
        for parent, piece in grown:
            total.append(total[parent] + each[piece])
        sums.append(np.array(total))
    compute, parameters, outputs = sums
    many = len(tops) > MANY
    cuts = _many_cuts(nodes, tops) if many else np.array(_cuts(nodes, tops))
    return Sums(compute, parameters, outputs, cuts)


def downset_sums(nodes: Nodes, masks: Sequence[int], tops: Sequence[int]) -> Sums:
    """As `state_sums`, of any downsets, given by the bits of their layers."""
    rows = pack(masks, len(nodes.compute))
    compute, parameters, outputs = (
        sum_bits(rows, amounts) for amounts in (nodes.compute, nodes.parameters, nodes.outputs)
    )
    return Sums(compute, parameters, outputs, _many_cuts(nodes, tops))


def join_sums(
    nodes: Nodes, ahead: Sequence[int], left: Places, right: Places
) -> tuple[Floats, Floats]:
    """Compute and out of the unions of two layers with all that is ahead of them, `ahead` of each
    layer given with itself; none of two may be ahead of the other."""
    width = len(nodes.compute)
    rows = pack(ahead, width)
    around = pack(
        [1 << v | mask for v, mask in enumerate(reread(nodes.before, nodes.after))], width
    )
    compute = sum_bits(rows[left] | rows[right], nodes.compute)
    return compute, sum_bits(around[left] | around[right], nodes.outputs)


def _many_cuts(nodes: Nodes, tops: Sequence[int]) -> Floats:
    """As `_cuts`."""
    width = len(nodes.compute)
    around = [1 << v | mask for v, mask in enumerate(reread(nodes.before, nodes.after))]
    return sum_bits(merge_bits(pack(tops, width), around, width), nodes.outputs)


def _cuts(nodes: Nodes, tops: Sequence[int]) -> list[float]:
    """out of each downset: the outputs of its tops, and what layers ahead of these send elsewhere."""
    again = reread(nodes.before, nodes.after)
    some = sum(1 << v for v, mask in enumerate(again) if mask)
    amounts = nodes.outputs.tolist()
    known: dict[int, float] = {0: 0.0}
    cuts: list[float] = []
    for top in tops:
        around = top
        for v in bits(top & some):
            around |= again[v]
        if around not in known:
            lowest = around & -around
            rest = known.get(around ^ lowest)
            if rest is None:
                rest = math.fsum(amounts[v] for v in bits(around ^ lowest))
            known[around] = rest + amounts[lowest.bit_length() - 1]
        cuts.append(known[around])
    return cuts


def reread(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """For each layer a the layers ahead of it with a reader that is neither a nor ahead of a; all as
    bits, of the layers that each one reads and of its readers."""
    ahead: list[int] = []
    found: list[int] = []
    for v, sources in enumerate(before):
        down, candidates = 1 << v, sources
        for u in bits(sources):
            down |= ahead[u]
            candidates |= found[u]
        ahead.append(down)
        found.append(sum(1 << u for u in bits(candidates) if after[u] & ~down))
    return found


def score(graph: LayerGraph, network: Network, plan: Sequence[Part], *, all_sends: bool) -> float:
    """(4) of a plan, in seconds; with `all_sends` the first stages' sends are charged too.

    Raises ValueError where the plan does not hold every layer once, after all that it reads.
    """
    nodes = nodes_of(graph)
    _check_plan(nodes, plan, tuple(range(len(nodes.compute))))
    ends = list(_ends(plan, 0))
    tops = [sum(1 << v for v in bits(ahead) if not nodes.after[v] & ahead) for ahead in ends]
    cuts = dict(zip(ends, _cuts(nodes, tops), strict=True))
    return _level(nodes, network, len(network.machines) - 1, plan, 0, cuts, all_sends)


def _check_plan(nodes: Nodes, plan: Sequence[Part], layers: Sequence[int]) -> None:
    held = [v for part in plan for v in part.layers]
    if sorted(held) != sorted(layers):
        raise ValueError("a plan must hold each of its layers once")
    missing = sum(1 << v for v in layers)
    for part in plan:
        missing &= ~sum(1 << v for v in part.layers)
        if any(nodes.before[v] & missing for v in part.layers):
            raise ValueError("a layer must not stand ahead of what it reads")
        if part.inner:
            _check_plan(nodes, part.inner, part.layers)


def _ends(plan: Sequence[Part], ahead: int) -> Iterator[int]:
    """The bits of what is ahead of each stage, and of all, on every level."""
    yield ahead
    for part in plan:
        yield from _ends(part.inner, ahead)
        ahead |= sum(1 << v for v in part.layers)
        yield ahead


def _level(
    nodes: Nodes,
    network: Network,
    level: int,
    plan: Sequence[Part],
    ahead: int,
    cuts: Mapping[int, float],
    all_sends: bool,
) -> float:
    bandwidth = network.bandwidths[level]
    everything = (1 << len(nodes.compute)) - 1
    loads: list[float] = []
    for number, part in enumerate(plan):
        until = ahead | sum(1 << v for v in part.layers)
        members = list(part.layers)
        compute = float(nodes.compute[members].sum())
        if level:
            compute = _level(nodes, network, level - 1, part.inner, ahead, cuts, all_sends)
        sharing = network.machines[level - 1] if level and not number else 1
        parameters = float(nodes.parameters[members].sum())
        loads.append(busy_time(compute, parameters, part.replicas, bandwidth, sharing))
        crossed = [cuts[ahead]] if number else []
        # A pipeline of one stage sends nothing on its own level.
        if until != everything and (number or (all_sends and len(plan) > 1)):
            crossed.append(cuts[until])
        for cut in crossed:
            loads.append(transfer_time(cut, part.replicas, bandwidth, network.compression))
        ahead = until
    return max(loads)


def floor(nodes: Nodes, network: Network) -> float:
    """Seconds that no plan can beat: a share of all compute, and the heaviest layer by itself."""
    counts = [replica_counts(network, level) for level in range(len(network.machines))]
    alone = np.full(len(nodes.compute), math.inf)
    for inner in counts[0]:
        time = busy_time(nodes.compute, nodes.parameters, inner, network.bandwidths[0])
        for outer in counts[1] if len(counts) > 1 else (1,):
            if len(counts) > 1:
                sharing = network.machines[0]
                together = busy_time(time, nodes.parameters, outer, network.bandwidths[1], sharing)
            else:
                together = time
            alone = np.minimum(alone, together)
    return max(float(nodes.compute.sum()) / math.prod(network.machines), float(alone.max()))
