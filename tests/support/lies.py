"""Consistent lies: bad plans, honestly predicted, that claim their own value as the bound."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

import msgspec

from autopart.certificate.certificate import certificate
from autopart.certificate.plan_problem import PlanProblem
from autopart.certificate.prediction import predict_again
from autopart.cost.transients import held_results
from autopart.pricing import minimised
from autopart.records.cluster import GpuGroup, HostLink, num_gpus
from autopart.records.layer_graph import Recompute
from autopart.records.layouts import StageRanks
from autopart.records.plan import Plan, SearchedSize, Stage, orders_of, stage_ranks
from autopart.records.problem import SCHEDULES, Demands, Pin, Problem
from autopart.records.profile import Profile
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.pipeline import Pipeline
from autopart.search.planner import solve
from tests.support.problems import profile, random_problem

BROKEN = (
    "another schedule",
    "custom alone",
    "an unknown schedule",
    "other replicas",
    "5 stages per rank",
    "pins, one of which it breaks",
    "layers that cannot lie apart",
    "one layer with recompute, unasked",
    "one layer with selective, unasked",
    "one layer with offload, unasked",
    "recompute selective, and not done",
    "recompute always, and not done",
    "offload always, and not done",
    "state on the host, never",
    "fewer GPUs than it uses",
    "memory for less than itself",
    "GPUs that differ, listed wrongly",
    "a size that does not divide the batch",
    "its own size twice",
)
"""The lies that break a demand or contradict themselves, whatever they claim as their bound."""

HOST = HostLink(bandwidth=100.0, latency=0.0, overlaps=True)


def bad_plan(rng: random.Random) -> tuple[Plan, Profile]:
    """A plan on random ranks of a random problem, cut at random, not yet with a bound."""
    asked = _with_policies(random_problem(rng, branching=rng.random() < 0.3, tight=False))
    given = profile(asked.graph)
    good = solve(given, asked.cluster, num_microbatches=asked.num_microbatches)
    # Step 1: a schedule, and ranks on which it can run.
    schedule, ranks, demands = _laid_out(rng, asked)
    orders = make_schedule(schedule, ranks, asked.num_microbatches)
    # Step 2: a stage for each of these ranks.
    names = [la.name for la in asked.graph.layers]
    cuts = [0, *sorted(rng.sample(range(1, len(names)), len(ranks) - 1)), len(names)]
    stages = tuple(
        Stage(
            layers=tuple(names[begin:end]),
            ranks=own,
            held=held_results(asked.graph, range(begin, end)),
        )
        for begin, end, own in zip(cuts, cuts[1:], ranks, strict=False)
    )
    plan = msgspec.structs.replace(
        good, stages=stages, schedule=schedule, orders=orders_of(orders), demands=demands
    )
    return plan, given


def _laid_out(rng: random.Random, asked: Problem) -> tuple[str, StageRanks, Demands]:
    """A schedule, the ranks of its stages, and the demands that ask for no more than the schedule."""
    layers, gpus = len(asked.graph.layers), num_gpus(asked.cluster)
    free = rng.sample(range(gpus), gpus)
    if rng.random() < 0.25:
        # Replicas of their own: each stage takes some of the free ranks.
        name, counts = rng.choice(["gpipe", "1f1b"]), [1] * rng.randint(1, min(layers, gpus))
        for _ in range(rng.randint(0, gpus - len(counts))):
            counts[rng.randrange(len(counts))] += 1
        ends = list(itertools.accumulate(counts))
        own = tuple(tuple(free[end - n : end]) for end, n in zip(ends, counts, strict=True))
        return name, own, Demands(schedules=(name,), replicas_per_stage=True)
    virtual = layers >= 4 and gpus >= 2 and rng.random() < 0.4
    per_rank = 2 if virtual else 1
    k = rng.randint(per_rank, min(layers // per_rank, gpus))
    several = [r for r in range(1, gpus // k + 1) if asked.num_microbatches % r == 0]
    r = rng.choice(several)
    shape = Pipeline(k, per_rank, asked.num_microbatches // r)
    able = [
        kind
        for name, kind in KINDS.items()
        if name in SCHEDULES and kind.stages_per_rank in (None, per_rank) and kind.takes(shape)
    ]
    one = [kind for kind in able if kind.stages_per_rank is not None or virtual]
    kind = rng.choice(one)
    place = kind.placement(k, per_rank)
    return (
        kind.name,
        tuple(tuple(free[at * r : at * r + r]) for at in place),
        Demands(schedules=(kind.name,)),
    )


def _with_policies(asked: Problem) -> Problem:
    """The problem, in which every layer can be recomputed or offloaded."""
    layers = tuple(
        msgspec.structs.replace(
            la,
            stash_bytes=la.stash_bytes + 1,
            recompute=Recompute(extra_time=la.forward_time, stash_bytes=0),
            selective=Recompute(extra_time=la.forward_time / 4, stash_bytes=la.stash_bytes // 2),
        )
        for la in asked.graph.layers
    )
    return msgspec.structs.replace(
        asked,
        graph=msgspec.structs.replace(asked.graph, layers=layers),
        cluster=msgspec.structs.replace(asked.cluster, host_link=HOST),
    )


def claiming(plan: Plan, given: Profile, simulated: int = 0, bound: float | None = None) -> Plan:
    """The plan, predicted honestly, with a bound for its own size: its own value where none is given."""
    problem = PlanProblem(plan, [given])
    prediction = predict_again(problem)
    plan = msgspec.structs.replace(plan, prediction=prediction)
    value = minimised(problem.problem, prediction, stage_ranks(plan))
    sizes = tuple(
        msgspec.structs.replace(
            size, lower_bound=value if bound is None else bound, simulated=simulated
        )
        if size.microbatch_size == plan.microbatch_size
        else size
        for size in plan.sizes
    )
    batch = plan.num_microbatches * plan.microbatch_size
    every_size = [problem.problem_at(s) for s in sizes if batch % s.microbatch_size == 0]
    carried = certificate(problem.problem, value, sizes, every_size)
    return msgspec.structs.replace(plan, sizes=sizes, certificate=carried)


def lies(rng: random.Random, bound: float | None = None) -> Iterator[tuple[str, Plan, Profile]]:
    """One bad plan behind each demand, cluster and size that could hide it.

    They claim `bound` seconds; their own value where it is None.
    """
    plan, given = bad_plan(rng)
    hidden = [
        *_behind_demands(rng, plan),
        *_behind_policies(rng, plan),
        *_behind_clusters(plan, max(claiming(plan, given).prediction.rank_peak_bytes)),
        *_behind_sizes(plan),
    ]
    for name, changes in hidden:
        simulated = 0 if bound == 0 else rng.choice([0, 0, 1, 7, 100_000])
        told = msgspec.structs.replace(plan, **changes)
        yield name, claiming(told, given, simulated, bound), given


Changes = dict[str, Any]


def _demanding(plan: Plan, **demands: Any) -> Changes:
    return {"demands": msgspec.structs.replace(plan.demands, **demands)}


def _behind_demands(rng: random.Random, plan: Plan) -> Iterator[tuple[str, Changes]]:
    k, r, own = len(plan.stages), len(plan.stages[0].ranks), plan.schedule
    home = [(name, s) for s, stage in enumerate(plan.stages) for name in stage.layers]
    pins = tuple(Pin(layer=name, stage=s) for name, s in home)
    groups = tuple(stage.layers for stage in plan.stages)
    apart = tuple(zip((g[-1] for g in groups), (g[0] for g in groups[1:]), strict=False))
    yield "its schedule", {}
    yield "all schedules", _demanding(plan, schedules=("1f1b", "gpipe", "zb-h1", "eager-1f1b"))
    yield "another schedule", _demanding(plan, schedules=("gpipe" if own == "zbv" else "zbv",))
    yield "schedules of which none lies so", _demanding(plan, schedules=(own, "zbv"))
    yield "custom alone", _demanding(plan, schedules=("custom",)) | {"schedule": "custom"}
    yield "custom on a V", _demanding(plan, schedules=("zbv", "custom")) | {"schedule": "custom"}
    yield "custom", _demanding(plan, schedules=(own, "custom")) | {"schedule": "custom"}
    yield "an unknown schedule", _demanding(plan, schedules=(own, "banana"))
    yield "stages", _demanding(plan, num_stages=k)
    yield "other stages", _demanding(plan, num_stages=k + 1 if k < len(home) else max(1, k - 1))
    yield "replicas", _demanding(plan, num_replicas=r)
    yield "other replicas", _demanding(plan, num_replicas=r + 1)
    yield "stages and replicas", _demanding(plan, num_stages=k, num_replicas=r)
    for count in (1, 2, 5):
        yield f"{count} stages per rank", _demanding(plan, stages_per_rank=count)
    yield (
        "replicas per stage",
        _demanding(plan, replicas_per_stage=True, schedules=("1f1b", "gpipe")),
    )
    yield (
        "the bottleneck",
        _demanding(plan, schedules=("1f1b", "gpipe")) | {"objective": "bottleneck"},
    )
    yield "pins on every layer", _demanding(plan, pins=pins)
    yield "one pin", _demanding(plan, pins=(rng.choice(pins),))
    yield (
        "pins, one of which it breaks",
        _demanding(plan, pins=(*pins[1:], Pin(layer=pins[0].layer, stage=pins[0].stage + 1))),
    )
    yield "stages that stay together", _demanding(plan, same_stage=groups)
    yield "layers that lie apart", _demanding(plan, different_stage=apart)
    yield "layers that cannot lie apart", _demanding(plan, different_stage=(groups[0] * 2,))


def _behind_policies(rng: random.Random, plan: Plan) -> Iterator[tuple[str, Changes]]:
    at, name = rng.choice([(s, n) for s, stage in enumerate(plan.stages) for n in stage.layers])
    for policy in ("recompute", "selective", "offload"):
        own = msgspec.structs.replace(plan.stages[at], **{policy: (name,)})
        stages = {"stages": (*plan.stages[:at], own, *plan.stages[at + 1 :])}
        able = {"offload": "auto"} if policy == "offload" else {"recompute": "auto"}
        yield f"one layer with {policy}, of its own will", stages | _demanding(plan, **able)
        yield (
            f"one layer with {policy}, by name",
            stages | _demanding(plan, **{f"{policy}_layers": (name,)}),
        )
        yield f"one layer with {policy}, unasked", stages
    for word in ("selective", "always"):
        yield f"recompute {word}, and not done", _demanding(plan, recompute=word)
    yield "recompute auto, and not done", _demanding(plan, recompute="auto")
    yield "offload always, and not done", _demanding(plan, offload="always")
    yield "layers kept by name", _demanding(plan, keep_layers=(name,), recompute="auto")
    host = tuple(msgspec.structs.replace(stage, optimizer_on_host=True) for stage in plan.stages)
    for word in ("auto", "always", "never"):
        yield (
            f"state on the host, {word}",
            {"stages": host} | _demanding(plan, offload_optimizer=word),
        )


def _behind_clusters(plan: Plan, peak: int) -> Iterator[tuple[str, Changes]]:
    """Other clusters; `peak` is the plan's own most bytes on a rank."""
    cluster = plan.cluster

    def on(**fields: Any) -> Changes:
        return {"cluster": msgspec.structs.replace(cluster, **fields)}

    yield "more nodes", on(num_nodes=cluster.num_nodes + 2)
    yield "more GPUs than can be used", on(num_nodes=40, gpus_per_node=8)
    used = 1 + max(rank for stage in plan.stages for rank in stage.ranks)
    yield "only the GPUs that it uses", on(num_nodes=1, gpus_per_node=used)
    if used > 1:
        yield "fewer GPUs than it uses", on(num_nodes=1, gpus_per_node=used - 1)
    yield "memory for nothing", on(memory_bytes=0)
    yield "memory for itself alone", on(memory_bytes=peak)
    yield "memory for less than itself", on(memory_bytes=peak - 1)
    yield "too little memory on the host", on(host_memory_bytes=1)
    slow = GpuGroup(count=1, name="slow", memory_bytes=cluster.memory_bytes, speed=0.5)
    if num_gpus(cluster) > 1:
        others = msgspec.structs.replace(slow, count=num_gpus(cluster) - 1, speed=2.0)
        yield "GPUs that differ", on(gpus=(slow, others))
        yield "GPUs that differ, listed wrongly", on(gpus=(slow, slow, others))


def _behind_sizes(plan: Plan) -> Iterator[tuple[str, Changes]]:
    """Other entries among the sizes; the own one gets the plan's own value as its bound."""
    own = plan.sizes[0]
    batch = plan.num_microbatches * plan.microbatch_size

    def entry(size: int, bound: float | None, simulated: int = 0) -> SearchedSize:
        return msgspec.structs.replace(
            own, microbatch_size=size, lower_bound=bound, simulated=simulated
        )

    for size in (2, batch):
        yield f"size {size} without a plan", {"sizes": (own, entry(size, None))}
        yield f"size {size} with a huge bound", {"sizes": (own, entry(size, 1e9))}
        yield f"size {size}, simulated", {"sizes": (own, entry(size, 1e9, simulated=10**6))}
    yield "a size that does not divide the batch", {"sizes": (own, entry(batch + 1, None))}
    yield "its own size twice", {"sizes": (own, entry(plan.microbatch_size, None))}
