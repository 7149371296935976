"""Random plans for the comparison of prices: any ranks, any partition, any named schedule."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from autopart.activations.policies import StagePolicies
from autopart.pricing import predict
from autopart.records.cluster import HostLink
from autopart.records.layer_graph import Layer
from autopart.records.layouts import Layout, Partition
from autopart.records.prediction import StagePrediction
from autopart.records.problem import CLASSIC, Problem
from tests.support.witness.draws import MIRRORED, Style, draw_problem, with_memory
from tests.support.witness.graphs import members_of, partitions
from tests.support.witness.optimum import settings
from tests.support.witness.orders import in_flight
from tests.support.witness.placements import StageSlots, gpus_of, on_gpus, place_on
from tests.support.witness.policies import Where, with_policies
from tests.support.witness.pricing import OnRanks, Price, Pricer, Setting, Spot


class RandomPlan(NamedTuple):
    """One plan in the planner's words and in the witness's."""

    problem: Problem
    layout: Layout
    partition: Partition
    price: Price
    by_rule: bool
    """Whether a rule says which policies the plan has. Else they are the fastest."""


def random_plans(seed: int, count: int) -> list[RandomPlan]:
    """Up to so many plans for one random problem, on GPUs in any order."""
    rng = random.Random(seed)
    style = Style(
        branching=rng.random() < 0.4,
        policies=rng.random() < 0.5,
        mixed_gpus=rng.random() < 0.3,
        uneven=rng.random() < 0.3,
        shapes=((1, 1), (1, 3), (2, 2), (3, 2), (2, 3), (1, 6)),
    )
    if not style.uneven and rng.random() < 0.5:
        style = style._replace(other_schedules=True)
    if not style.uneven and not style.policies and rng.random() < 0.3:
        style = style._replace(mirrored=True, most_microbatches=8)
    if seed % 3 == 0:
        style = style._replace(network=True)
    if seed % 4 == 1:
        style = style._replace(network=True, overlap=True)
    return _plans(rng, style, count)


def random_lending_plans(seed: int, count: int) -> list[RandomPlan]:
    """Up to so many plans whose ranks may lend stash to each other."""
    rng = random.Random(f"lending {seed}")
    style = Style(
        schedules=("bpipe",),
        branching=rng.random() < 0.4,
        mixed_gpus=rng.random() < 0.3,
        most_microbatches=10,
        shapes=((1, 4), (2, 2), (2, 3), (1, 6), (4, 1)),
    )
    return _plans(rng, style, count)


def _plans(rng: random.Random, style: Style, count: int) -> list[RandomPlan]:
    problem = draw_problem(rng, style)
    if rng.random() < 0.5:
        problem = with_memory(problem, rng.randrange(100, 3000))
    pricer = Pricer(problem)
    every = list(settings(problem))
    found: list[RandomPlan] = []
    for setting in rng.choices(every, k=count) if every else []:
        parts = partitions(pricer.facts, len(setting.slots))
        if parts:
            found.append(_plan(rng, pricer, setting, rng.choice(parts)))
    return found


def own_policies(plan: RandomPlan) -> tuple[StagePolicies, ...]:
    """The policies of the witness's price, in the planner's words."""
    stages = zip(plan.partition, plan.price.stages, strict=True)
    return tuple(in_planners_words(sorted(own), one.policies, one.hosted) for own, one in stages)


def in_planners_words(
    members: Sequence[int], policies: Sequence[str], hosted: bool
) -> StagePolicies:
    """One stage's policies in the planner's words."""
    lists = {
        policy: tuple(at for at, one in zip(members, policies, strict=True) if one == policy)
        for policy in ("recompute", "selective", "offload")
    }
    return StagePolicies(**lists, optimizer_on_host=hosted)


def random_policies(seed: int) -> Iterator[tuple[StagePrediction, OnRanks]]:
    """The stages of one random plan under GPipe or 1F1B, by the planner and by the witness."""
    rng = random.Random(f"policies {seed}")
    style = Style(policies=True, branching=rng.random() < 0.4, shapes=((1, 4), (2, 2)))
    problem = draw_problem(rng, style)
    pricer, host = Pricer(problem), problem.cluster.host_link
    stages = rng.randint(1, min(4, len(problem.graph.layers)))
    parts = partitions(pricer.facts, stages)
    if not parts:
        return
    cuts, name = rng.choice(parts), rng.choice(["gpipe", "1f1b"])
    layout = Layout(
        schedule=name,
        stage_ranks=tuple((rank,) for rank in range(stages)),
        num_microbatches=problem.num_microbatches,
    )
    ours: list[OnRanks] = []
    theirs: list[StagePolicies] = []
    for stage, (before, after) in enumerate(itertools.pairwise(cuts)):
        members, hosted = members_of(before, after), host is not None and rng.random() < 0.3
        own = tuple(rng.choice(able_policies(pricer.facts.layers[at], host)) for at in members)
        flying = in_flight(name, layout.stage_ranks, stage, problem.num_microbatches)
        spot = Spot(problem, 1, problem.num_microbatches, flying, frozenset([0]))
        figures = pricer.figures(before, after)
        changed = with_policies(pricer.facts, figures, own, Where(host, spot.speed))
        ours.append(spot.changed(figures, changed, hosted))
        theirs.append(in_planners_words(members, own, hosted))
    partition = tuple(tuple(members_of(a, b)) for a, b in itertools.pairwise(cuts))
    yield from zip(predict(problem, layout, partition, theirs)[0], ours, strict=True)


def able_policies(layer: Layer, host: HostLink | None) -> list[str]:
    """The policies that a layer can have on a cluster."""
    able = {
        "keep": True,
        "recompute": layer.recompute is not None,
        "selective": layer.selective is not None,
        "offload": layer.stash_bytes > 0 and host is not None,
    }
    return [policy for policy, can in able.items() if can]


def _plan(
    rng: random.Random, pricer: Pricer, setting: Setting, cuts: tuple[int, ...]
) -> RandomPlan:
    gpus = gpus_of(pricer.problem.cluster)
    used = 1 + max(slot for own in setting.slots for slot in own)
    ranks = on_gpus(setting.slots, rng.sample(range(len(gpus.groups)), used))
    price = pricer.price(setting, place_on(gpus, ranks), cuts)
    assert price is not None
    return RandomPlan(
        problem=pricer.problem,
        layout=Layout(
            schedule=setting.schedule,
            stage_ranks=ranks,
            num_microbatches=setting.num_microbatches,
        ),
        partition=tuple(tuple(members_of(a, b)) for a, b in itertools.pairwise(cuts)),
        price=price,
        by_rule=setting.schedule in CLASSIC or not pricer.opens_policies(setting),
    )


def ranks_of_peaks(plan: RandomPlan) -> list[int]:
    """The ranks whose bytes stand in the witness's price, in its order."""
    first: StageSlots = plan.layout.stage_ranks
    if plan.layout.schedule in MIRRORED:
        # Every rank is simulated, pair by pair.
        return [ranks[at] for at in range(0, len(first[0]), 2) for ranks in first]
    if len(plan.price.peaks) == len(first):
        return [ranks[0] for ranks in first]
    return list(dict.fromkeys(ranks[0] for ranks in first))
