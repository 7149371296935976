"""Random small sizings, and an oracle that solves every number of GPUs by itself and makes the front by its definition."""

import random
from typing import Any, NamedTuple

import msgspec

import autopart
from autopart.records.cluster import Cluster, Link
from autopart.records.layer_graph import LayerGraph
from autopart.records.profile import Device, Profile
from tests.support.problems import cluster, profile, random_graph

EQUAL = 1e-9
"""Relative difference up to which two times are equal."""


class SizedCase(NamedTuple):
    """One random question."""

    profiles: list[Profile]
    prices: dict[str, float]
    clusters: dict[str, Cluster]
    most_nodes: int
    within_days: float | None
    budget: float | None
    tokens: float
    options: dict[str, Any]

    @property
    def question(self) -> dict[str, Any]:
        """The keywords of `autopart.size`, besides the counts to try."""
        return {
            "clusters": self.clusters,
            "tokens": self.tokens,
            "tokens_per_sample": 1,
            "within_days": self.within_days,
            "budget": self.budget,
            "time_limit": 60.0,
            **self.options,
        }


class Point(NamedTuple):
    """One number of GPUs with a plan."""

    gpus: int
    seconds: float
    cost: float
    kind: str


def random_case(seed: int) -> SizedCase:
    """A question whose limits some numbers of GPUs meet, and others do not, more often than not."""
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(2, 5), branching=False)
    options: dict[str, Any] = {"global_batch": rng.choice([2, 4, 6])}
    if rng.random() < 0.3:
        options["recompute"] = "auto"
    if rng.random() < 0.3:
        options["zero1"] = True
    if rng.random() < 0.2:
        options["schedule"] = rng.choice(["1f1b", "gpipe,1f1b,interleaved-1f1b"])
    if rng.random() < 0.15:
        options["objective"] = "period"
    if rng.random() < 0.15:
        options["replicas_per_stage"] = options.get("objective") != "period"
        options.pop("schedule", None)
    names = ["test-a", "test-b"][: rng.randint(1, 2)]
    each, most = rng.randint(1, 2), rng.randint(2, 4)
    profiles: list[Profile] = []
    clusters: dict[str, Cluster] = {}
    for name in names:
        own = _slower(graph, rng.choice([1.0, 1.7]))
        device = Device(kind="cuda", name=name)
        profiles.append(msgspec.structs.replace(profile(own), device=device))
        links = {
            "intra_node": Link(bandwidth=rng.choice([5.0, 50.0, 1e12])),
            "inter_node": Link(bandwidth=rng.choice([2.0, 50.0, 1e12])),
        }
        size = _some_memory(rng, profiles[-1], cluster(most, each, **links), options)
        clusters[name] = msgspec.structs.replace(
            cluster(1, each, memory_bytes=size, **links), gpu=name
        )
    prices = {name: rng.choice([1.0, 2.0, 3600.0]) for name in names}
    tokens = float(options["global_batch"] * rng.randint(1, 50))
    case = SizedCase(profiles, prices, clusters, most, None, None, tokens, options)
    return _with_limits(rng, case)


def _slower(graph: LayerGraph, factor: float) -> LayerGraph:
    names = ("forward_time", "input_grad_time", "weight_grad_time")
    layers = (
        msgspec.structs.replace(la, **{name: factor * getattr(la, name) for name in names})
        for la in graph.layers
    )
    return msgspec.structs.replace(graph, layers=tuple(layers))


def _some_memory(rng: random.Random, own: Profile, on: Cluster, options: dict[str, Any]) -> int:
    """A GPU's memory with which some numbers of GPUs may not hold the model."""
    if rng.random() < 0.3:
        return 1 << 40
    plan = autopart.solve(own, on, **options)
    alone = autopart.solve(
        own, msgspec.structs.replace(on, num_nodes=1, gpus_per_node=1), **options
    )
    peaks = max(plan.prediction.rank_peak_bytes), max(alone.prediction.rank_peak_bytes)
    return max(1, rng.randint(min(peaks), max(peaks)))


def _with_limits(rng: random.Random, case: SizedCase) -> SizedCase:
    """The question with a date and a budget between the least and the most that plans take."""
    points = every_point(case)
    if not points:
        return case
    seconds, costs = [p.seconds for p in points], [p.cost for p in points]
    within = rng.uniform(0.8 * min(seconds), max(seconds)) / 86400 if rng.random() < 0.7 else None
    budget = rng.uniform(0.8 * min(costs), max(costs)) if rng.random() < 0.5 else None
    if within is not None and rng.random() < 0.2:
        within = rng.choice(seconds) / 86400
    return case._replace(within_days=within, budget=budget)


def counts_of(case: SizedCase, name: str) -> list[int]:
    """Every number of GPUs of a kind: even parts of a node, and whole nodes."""
    each = case.clusters[name].gpus_per_node
    parts = [n for n in range(1, each) if each % n == 0]
    return [*parts, *(each * n for n in range(1, case.most_nodes + 1))]


def every_point(case: SizedCase) -> list[Point]:
    """The best plan of every number of GPUs, by `autopart.solve` alone."""
    found: list[Point] = []
    num_steps = -(-int(case.tokens) // case.options["global_batch"])
    for own in case.profiles:
        name = own.device.name
        node = case.clusters[name]
        for gpus in counts_of(case, name):
            nodes = max(1, gpus // node.gpus_per_node)
            on = msgspec.structs.replace(node, num_nodes=nodes, gpus_per_node=gpus // nodes)
            try:
                plan = autopart.solve(own, on, **case.options)
            except autopart.InfeasibleError:
                continue
            seconds = num_steps * _step(plan)
            found.append(Point(gpus, seconds, seconds / 3600 * case.prices[name] * gpus, name))
    return found


def _step(plan: autopart.Plan) -> float:
    if plan.objective != "period":
        return plan.prediction.step_time
    period = plan.prediction.period
    assert isinstance(period, float)
    return period


def meeting(case: SizedCase, points: list[Point]) -> list[Point]:
    """The points that meet the date and the budget."""
    within = float("inf") if case.within_days is None else case.within_days * 86400
    budget = float("inf") if case.budget is None else case.budget
    return [
        p for p in points if p.seconds <= within * (1 + EQUAL) and p.cost <= budget * (1 + EQUAL)
    ]


def front_by_definition(points: list[Point]) -> list[tuple[int, float, float]]:
    """The different points that no other one equals or beats in everything."""
    kept: list[Point] = []
    for own in points:
        beaten = any(_no_worse(other, own) and not _no_worse(own, other) for other in points)
        if not beaten and not any(_no_worse(other, own) for other in kept):
            kept.append(own)
    return sorted((p.gpus, p.seconds, p.cost) for p in kept)


def _no_worse(one: Point, other: Point) -> bool:
    more = 1 + EQUAL
    return (
        one.gpus <= other.gpus
        and one.seconds <= other.seconds * more
        and one.cost <= other.cost * more
    )
