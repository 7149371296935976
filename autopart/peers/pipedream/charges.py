"""PipeDream's charges for a stage (Narayanan et al., SOSP 2019), as its program computes them.

Symbols   D ⊂ D'   downsets in the layer graph: the layers ahead of a stage, and with it
          c, p, a  sums over the stage's layers: forward and backward seconds, parameter bytes,
                   output bytes
          out(D)   output bytes for the layers around the cut at D
          r        replicas;  n  machines on the level;  B  bytes per second on the level's links
          z        the activation compression ratio, 1 where transfers count as they are

    busy = (c + 4 (r - 1) / r * p / B) / r                                                      (1)
    receive = 2 out(D) / (B r z)      for all stages but the first                              (2)
    send = 2 out(D') / (B r z)        for all stages but the last and the first                  (3)
    objective = max over stages of max(busy, receive, send)                                      (4)
    ceil(later / r) (a + p) <= memory, with `later` replicas in all later stages                 (5)

Quirks. (1) divides the weights' sync by r twice. (3) leaves out the first stage's sends;
`all_sends` adds them, at that stage's own replicas. z = None drops (2) and (3). A top is a layer in
D that no other layer in D reads. out(D) sums the tops' outputs. For each top a it adds outputs from
layers ahead of a that have a reader which is neither a nor ahead of a. This is at least the bytes
that cross the cut, and more where branches meet.

Two levels. A stage on the outer level is a pipeline on the inner level, on at most n machines, a
whole node. In (1) its c is that pipeline's objective over the same layers, (2) and (3) included.
"First" means first in its level, "last" holds the graph's last layer. In the outer level's first
stage, p is also divided by n.

PipeDream's unit in flight is a minibatch. The word stands here for PipeDream's own counts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from autopart.downsets import bits
from autopart.errors import UsageError
from autopart.peers.pipedream.charged_layers import ChargedLayers, Floats, charged_layers
from autopart.peers.pipedream.downset_sums import cut_bytes
from autopart.records.layer_graph import LayerGraph
from autopart.text import counted

Amount = TypeVar("Amount", float, Floats)
"""A number, or an array of numbers."""


class Network(NamedTuple):
    """Machines in one level or two, the inner one first, and PipeDream's other options."""

    machines: tuple[int, ...]
    """GPUs per node, then nodes; with one level, GPUs."""
    bandwidths: tuple[float, ...]
    """Bytes per second, for each level."""
    straight: bool = False
    """Whether each stage runs on one machine."""
    compression: float | None = 1.0
    """The activation compression ratio; None counts no transfers, as PipeDream does by default."""
    memory_bytes: float | None = None
    """Bytes on one machine; None is PipeDream without its memory constraint."""


class NetworkStage(NamedTuple):
    """A stage in a plan: on one level, or on the outer level with its inner pipeline."""

    layers: tuple[int, ...]
    """Positions in the graph's order."""
    replicas: int
    """Machines, or nodes, that run the stage."""
    inner: tuple["NetworkStage", ...] = ()
    """The stages within each node; empty with one level."""


def check_network(network: Network) -> None:
    """Raise UsageError where a number is out of range."""
    machines, bandwidths = network.machines, network.bandwidths
    if len(machines) not in (1, 2) or len(machines) != len(bandwidths):
        raise UsageError(
            f"{len(machines)} machine counts and {len(bandwidths)} bandwidths: give one of each, "
            "or two of each with those within a node first"
        )
    if min(machines) < 1:
        raise UsageError(f"{counted(min(machines), 'machine')}: there must be at least 1")
    amounts = {"bandwidth": min(bandwidths), "compression ratio": network.compression}
    for what, amount in (amounts | {"memory": network.memory_bytes}).items():
        if amount is not None and not (math.isfinite(amount) and amount > 0):
            raise UsageError(f"a {what} of {amount:g}: it must be a finite number above 0")


def replica_counts(network: Network, level: int) -> range:
    """The replica counts that a stage on a level may have."""
    return range(1, 2 if network.straight else network.machines[level] + 1)


def busy_time(
    compute: Amount, parameters: Amount, replicas: int, bandwidth: float, sharing: int = 1
) -> Amount:
    """Formula (1), in seconds; `sharing` machines share the sync in the outer level's first stage."""
    sync = 4 * (replicas - 1) / replicas * parameters / bandwidth / sharing
    return (compute + sync) / replicas


def transfer_time(
    cut: Amount, replicas: int, bandwidth: float, compression: float | None
) -> Amount:
    """Formulas (2) and (3), in seconds."""
    if compression is None:
        return 0.0 * cut
    return 2 * cut / (bandwidth * replicas) / compression


def stashed_minibatches(later: int, replicas: int) -> int:
    """The stashed minibatches in (5), with `later` replicas in all later stages."""
    return -(-later // replicas)


def score(
    graph: LayerGraph, network: Network, plan: Sequence[NetworkStage], *, all_sends: bool
) -> float:
    """Formula (4) for a plan, in seconds; with `all_sends` first stages pay for their sends too.

    Raises ValueError where the plan does not hold every layer once, after all that it reads.
    """
    nodes = charged_layers(graph)
    _check_plan(nodes, plan, tuple(range(len(nodes.compute))))
    ends = list(_ends(plan, 0))
    tops = [sum(1 << v for v in bits(ahead) if not nodes.after[v] & ahead) for ahead in ends]
    cuts = dict(zip(ends, cut_bytes(nodes, tops), strict=True))
    return _level(nodes, network, len(network.machines) - 1, plan, 0, cuts, all_sends)


def _check_plan(nodes: ChargedLayers, plan: Sequence[NetworkStage], layers: Sequence[int]) -> None:
    """Raise ValueError unless the stages hold `layers` once each, in an order that the edges allow."""
    planned = [v for part in plan for v in part.layers]
    if sorted(planned) != sorted(layers):
        raise ValueError("a plan must hold each of its layers once")
    missing = sum(1 << v for v in layers)
    # `missing` holds the layers behind the current stage: none of these may be read.
    for part in plan:
        missing &= ~sum(1 << v for v in part.layers)
        if any(nodes.before[v] & missing for v in part.layers):
            raise ValueError("a layer must not stand ahead of what it reads")
        if part.inner:
            _check_plan(nodes, part.inner, part.layers)


def _ends(plan: Sequence[NetworkStage], ahead: int) -> Iterator[int]:
    """For each stage on every level a bit mask: the layers ahead of it; then all layers."""
    yield ahead
    for part in plan:
        yield from _ends(part.inner, ahead)
        ahead |= sum(1 << v for v in part.layers)
        yield ahead


def _level(
    nodes: ChargedLayers,
    network: Network,
    level: int,
    plan: Sequence[NetworkStage],
    ahead: int,
    cuts: Mapping[int, float],
    all_sends: bool,
) -> float:
    """Formula (4) for the stages on one level, with `ahead` as the bits of all layers before them."""
    bandwidth = network.bandwidths[level]
    everything = (1 << len(nodes.compute)) - 1
    charges: list[float] = []
    for number, part in enumerate(plan):
        until = ahead | sum(1 << v for v in part.layers)
        members = list(part.layers)
        compute = float(nodes.compute[members].sum())
        # The outer level: the inner pipeline's objective stands for c.
        if level:
            compute = _level(nodes, network, level - 1, part.inner, ahead, cuts, all_sends)
        # Quirk: only the outer level's first stage shares its sync.
        sharing = network.machines[level - 1] if level and not number else 1
        parameters = float(nodes.parameters[members].sum())
        charges.append(busy_time(compute, parameters, part.replicas, bandwidth, sharing))
        crossed = [cuts[ahead]] if number else []
        # Quirk: the first stage sends for free. A pipeline with one stage sends nothing on its own
        # level.
        if until != everything and (number or (all_sends and len(plan) > 1)):
            crossed.append(cuts[until])
        for cut in crossed:
            charges.append(transfer_time(cut, part.replicas, bandwidth, network.compression))
        ahead = until
    return max(charges)


def least_bottleneck(nodes: ChargedLayers, network: Network) -> float:
    """Seconds that no plan can beat: an even share of all compute, and the heaviest layer alone."""
    counts = [replica_counts(network, level) for level in range(len(network.machines))]
    alone = np.full(len(nodes.compute), math.inf)
    # The heaviest layer alone, on the best replica counts for it.
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
