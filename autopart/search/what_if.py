"""What another cluster or another option would be worth, by solving again.

A change is `memory=+8GiB`, `inter-bandwidth=2x`, `nodes=+1` or `recompute=auto`. Several make one
scenario: `memory=+8GiB,nodes=2x`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from autopart.errors import InfeasibleError, NoPlanFound, UsageError
from autopart.records.cluster import Cluster
from autopart.records.network import with_gpus
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.options import SolveOptions
from autopart.search.planner import solve_with_options
from autopart.text import known_names
from autopart.units import parse_bandwidth, parse_bytes

WORDS = {
    "objective": "objective",
    "recompute": "recompute",
    "offload": "offload",
    "offload-optimizer": "offload_optimizer",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "sync": "sync",
    "sends": "sends",
    "sequence-parallel": "sequence_parallel",
    "tensor": "tensor",
    "context": "context",
    "context-exchange": "context_exchange",
    "shard": "shard",
}
"""Options that take a word, by the field of `SolveOptions`."""
COUNTS = {
    "global-batch": "global_batch",
    "stages": "num_stages",
    "replicas": "num_replicas",
    "stages-per-rank": "stages_per_rank",
}
"""Options that take a count."""
CLUSTER = (
    "memory", "reserve", "host-memory", "intra-bandwidth", "inter-bandwidth", "host-bandwidth", "nodes",
    "gpus-per-node",
)  # fmt: skip
"""Fields of the cluster."""
FIELDS = (*CLUSTER, *COUNTS, *WORDS, "zero1")
"""Every name that a change may have."""


class Change(NamedTuple):
    """One change, as the user wrote it."""

    field: str
    """One of `FIELDS`."""
    value: str
    """`2x`, `+8GiB`, `-10%`, `96GiB`, or a word."""


Scenario = tuple[Change, ...]
"""Changes that are made together."""


class ScenarioAnswer(NamedTuple):
    """The best plan under a scenario."""

    scenario: Scenario
    """The changes."""
    plan: Plan | None
    """The best plan; None where there is none."""
    reason: str
    """Why there is no plan; empty where there is one."""


def parse_scenario(text: str) -> Scenario:
    """Read `memory=+8GiB,inter-bandwidth=2x`; raises UsageError with the nearest known name.

    A part without `=` belongs to the value before it, as in `schedule=zb-h1,zb-h2`.
    """
    changes: list[Change] = []
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and changes:
            field, before = changes.pop()
            changes.append(Change(field, f"{before},{name}"))
            continue
        if name not in FIELDS:
            raise UsageError(f"'{name}' is nothing to change; {known_names(name, FIELDS)}")
        if not value:
            raise UsageError(
                f"'{part.strip()}' gives {name} no value; write {name}=2x or a new value"
            )
        changes.append(Change(name, value))
    return tuple(changes)


def changed(
    scenario: Scenario, cluster: Cluster, options: SolveOptions
) -> tuple[Cluster, SolveOptions]:
    """The cluster and the options with a scenario's changes; raises UsageError where one cannot be made."""
    for field, value in scenario:
        if field in CLUSTER:
            cluster = _changed_cluster(cluster, field, value)
        elif field == "zero1":
            if value not in ("on", "off"):
                raise UsageError(f"zero1={value}: write zero1=on or zero1=off")
            options = dataclasses.replace(options, zero1=value == "on")
        elif field in COUNTS:
            old = getattr(options, COUNTS[field])
            options = dataclasses.replace(options, **{COUNTS[field]: _count(field, value, old)})
        else:
            options = dataclasses.replace(options, **{WORDS[field]: value})
    return cluster, options


def solved_again(
    scenario: Scenario,
    profiles: Sequence[Profile],
    cluster: Cluster,
    options: SolveOptions,
) -> ScenarioAnswer:
    """The best plan under a scenario, within `options.time_limit` seconds.

    Raises UsageError where a change cannot be made, and AutopartError where it contradicts other options.
    """
    on, asked = changed(scenario, cluster, options)
    try:
        return ScenarioAnswer(scenario, solve_with_options(profiles, on, asked), "")
    except (InfeasibleError, NoPlanFound) as error:
        return ScenarioAnswer(scenario, None, str(error))


def _changed_cluster(cluster: Cluster, field: str, value: str) -> Cluster:
    if field in ("nodes", "gpus-per-node"):
        return _resized(cluster, field, value)
    if field.endswith("bandwidth"):
        return _rated(cluster, field, value)
    name = {
        "memory": "memory_bytes",
        "reserve": "reserve_bytes",
        "host-memory": "host_memory_bytes",
    }[field]
    if cluster.gpus and field == "memory":
        raise UsageError("memory is for equal GPUs; these are listed, each with its own")
    size = _number(field, value, getattr(cluster, name), parse_bytes)
    if size < 0:
        raise UsageError(f"{field}={value} leaves less than nothing")
    return msgspec.structs.replace(cluster, **{name: round(size)})


def _resized(cluster: Cluster, field: str, value: str) -> Cluster:
    """The cluster with other counts of equal GPUs; each GPU keeps its share of the rails."""
    if cluster.gpus:
        raise UsageError(f"{field} is for equal GPUs; these are listed, each with its own")
    if field == "nodes":
        return msgspec.structs.replace(cluster, num_nodes=_count(field, value, cluster.num_nodes))
    after = _count(field, value, cluster.gpus_per_node)
    network = with_gpus(cluster.network, cluster.gpus_per_node, after)
    return msgspec.structs.replace(cluster, gpus_per_node=after, network=network)


_LINKS: dict[str, tuple[Literal["intra_node", "inter_node", "host_link"], tuple[str, ...]]] = {
    "intra-bandwidth": ("intra_node", ("ring_bandwidth", "switch_bandwidth")),
    "inter-bandwidth": ("inter_node", ("rail_bandwidth",)),
    "host-bandwidth": ("host_link", ()),
}
"""For each bandwidth the link, and the rates of collectives that grow with it."""


def _rated(cluster: Cluster, field: str, value: str) -> Cluster:
    """The cluster with another bandwidth; the rates of collectives grow by the same factor."""
    name, rates = _LINKS[field]
    link = getattr(cluster, name)
    if link is None:
        raise UsageError(f"the cluster has no link to its host, and so no {field}")
    rate = _number(field, value, link.bandwidth, parse_bandwidth)
    if rate <= 0:
        raise UsageError(f"{field}={value} leaves no bandwidth")
    factor = rate / link.bandwidth
    faster = {name: msgspec.structs.replace(link, bandwidth=rate)}
    if cluster.network is not None:
        there = {one: getattr(cluster.network, one) for one in rates}
        grown = {one: old * factor for one, old in there.items() if old is not None}
        faster["network"] = msgspec.structs.replace(cluster.network, **grown)
    return msgspec.structs.replace(cluster, **faster)


def _count(field: str, value: str, old: int | None) -> int:
    """A count from `2x`, `+1`, `-1` or `16`."""
    number = _number(field, value, old, int)
    if number < 1 or number != int(number) or number > 2**40:
        raise UsageError(f"{field}={value} is {number:g}, and {field} is a whole number from 1 on")
    return int(number)


def _number(field: str, value: str, old: float | None, parse: Callable[[str], float]) -> float:
    """A new number: `2x` and `+10%` of the old one, `+8GiB` more than it, or a number of its own."""
    try:
        if not value.endswith(("x", "%")) and value[0] not in "+-":
            return parse(value)
        if old is None:
            raise UsageError(f"{field}={value}: {field} has no value yet; write one of its own")
        if value.endswith("x"):
            return old * _finite(value[:-1])
        sign = -1 if value[0] == "-" else 1
        if value.endswith("%"):
            return old * (1 + sign * _finite(value.strip("+-%")) / 100)
        return old + sign * parse(value[1:])
    except (ValueError, OverflowError):
        raise UsageError(
            f"{field}={value} is no number; write {field}=2x, +10%, or a new value"
        ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not 0 <= number < 1e12:
        raise ValueError(text)
    return number
