"""Random cases by seed, with the words that `solve` takes for them."""

import random
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import msgspec

from autopart.records.group_variants import GroupVariant
from autopart.records.problem import SCHEDULES, Problem
from autopart.records.profile import Profile
from autopart.records.rank_group import Group
from tests.support.problems import profile
from tests.support.witness.collectives import draw_measured
from tests.support.witness.draws import Style, draw_problem, rescaled, with_memory
from tests.support.witness.loads import draw_loaded, under_load
from tests.support.witness.optimum import low_memory
from tests.support.witness.rings import draw_rings
from tests.support.witness.sharded import Sharing, problem_of_shards
from tests.support.witness.tensor import draw_others, draw_variants, gpus_of, problem_of_degree

ONE_NODE = ((1, 1), (1, 2), (1, 3), (1, 4))
NODES = ((2, 1), (2, 2), (3, 1), (2, 3), (3, 2), (3, 3))
FEW_GPUS = ((1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (2, 3))

SPREADS = ((1, 4), (2, 2), (2, 2), (2, 3), (3, 2), (4, 1))
"""Nodes on which the same ranks can be spread in several ways."""

DIVISIBLE = ((1, 2), (1, 4), (2, 2), (2, 2), (1, 6), (2, 4))
"""Nodes that tensor groups can fill."""

NODES_OF_GROUPS = ((2, 1), (4, 1), (2, 2), (2, 2), (3, 2), (2, 3))
"""Few GPUs on several nodes."""

KINDS: dict[str, Style] = {
    "one node": Style(shapes=ONE_NODE),
    "nodes": Style(shapes=NODES),
    "branches": Style(branching=True, shapes=(*ONE_NODE, *NODES[:4])),
    "policies": Style(policies=True, shapes=(*ONE_NODE, *NODES[:3])),
    "replicas per stage": Style(uneven=True, shapes=FEW_GPUS),
    "different GPUs": Style(mixed_gpus=True, shapes=FEW_GPUS),
    "policies, any schedule": Style(
        policies=True, other_schedules=True, shapes=(*ONE_NODE, *NODES[:2])
    ),
    "policies, interleaved": Style(
        policies=True,
        schedules=("interleaved-1f1b",),
        most_layers=5,
        shapes=(*ONE_NODE[1:3], (2, 1)),
    ),
    "policies, V": Style(
        policies=True, schedules=("zbv",), most_layers=5, shapes=(*ONE_NODE[1:3], (2, 1))
    ),
    "other schedules": Style(other_schedules=True, shapes=(*ONE_NODE, *NODES[:4])),
    "mirrored": Style(
        mirrored=True, most_microbatches=8, shapes=((1, 2), (1, 3), (1, 4), (2, 2), (3, 1), (2, 3))
    ),
    "mirrored on networks": Style(
        mirrored=True,
        most_microbatches=8,
        shapes=((2, 2), (2, 3), (3, 2), (1, 4)),
        network=True,
        overlap=True,
    ),
    "lent stash": Style(
        schedules=("bpipe",), most_microbatches=8, shapes=((1, 4), (1, 4), (2, 2), (4, 1), (1, 6))
    ),
    "pins": Style(pins=True, branching=True, shapes=FEW_GPUS),
    "bottleneck": Style(bottleneck=True, shapes=(*ONE_NODE, *NODES)),
    "period": Style(period=True, shapes=(*ONE_NODE, *NODES)),
    "period, any schedule": Style(
        period=True, other_schedules=True, shapes=(*ONE_NODE, *NODES[:4])
    ),
    "period, both directions": Style(
        period=True, mirrored=True, most_microbatches=8, shapes=((1, 2), (1, 4), (2, 2), (2, 3))
    ),
    "period, hidden syncs": Style(
        period=True,
        other_schedules=True,
        shapes=FEW_GPUS,
        most_microbatches=4,
        network=True,
        overlap=True,
    ),
    "period, every order": Style(
        period=True, shapes=FEW_GPUS[:4], most_layers=4, most_microbatches=2
    ),
    "sizes": Style(shapes=(*ONE_NODE, *NODES[:3])),
    "mixtures": Style(shapes=FEW_GPUS),
    "networks": Style(shapes=(*SPREADS, (3, 3), (2, 4)), most_microbatches=6, network=True),
    "hidden syncs": Style(
        shapes=(*ONE_NODE[1:], *SPREADS[:5]), most_microbatches=6, network=True, overlap=True
    ),
    "hidden syncs, any orders": Style(
        shapes=FEW_GPUS[:4], most_microbatches=4, network=True, overlap=True, other_schedules=True
    ),
    "hidden syncs, replicas per stage": Style(
        shapes=FEW_GPUS, policies=True, uneven=True, network=True, overlap=True
    ),
    "tensor degrees": Style(shapes=DIVISIBLE, most_layers=4),
    "tensor degrees per stage": Style(shapes=DIVISIBLE, most_layers=4),
    "sharded state": Style(shapes=DIVISIBLE, most_layers=4),
    "groups on several nodes": Style(shapes=NODES_OF_GROUPS, most_layers=3),
    "every order": Style(shapes=FEW_GPUS[:4], most_layers=4, most_microbatches=2),
    "every order, policies": Style(
        policies=True, shapes=(*FEW_GPUS[:2], (2, 1)), most_layers=3, most_microbatches=2
    ),
}
"""The kinds of cases by name."""

EVERY_ORDER = ("every order", "every order, policies", "period, every order")
"""The kinds in which plans may have orders of their own."""

WITH_DEGREES = ("tensor degrees", "tensor degrees per stage")
"""The kinds whose profiles have tensor variants."""
SHARDED = ("sharded state", "groups on several nodes")
"""The kinds whose ranks may be groups that share state."""


class Case(NamedTuple):
    """One question to the planner: a problem for each microbatch size and tensor degree, all with the same batch."""

    seed: int
    kind: str
    problems: tuple[Problem, ...]
    """The problems; with tensor variants the first one alone has single GPUs as ranks."""
    variants: tuple[GroupVariant, ...] = ()
    """The tensor variants of the profile."""
    words: dict[str, Any] | None = None
    """Further options of `solve`. With these, the first problem is only the one from which the others are made."""

    @property
    def searched(self) -> tuple[Problem, ...]:
        """The problems among whose plans the planner chooses."""
        return self.problems[1:] if self.words else self.problems

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """A profile for each size."""
        return tuple(
            msgspec.structs.replace(
                profile(one.graph),
                variants=self.variants,
                microbatch_size=one.microbatch_size,
                dtype=one.training.precision.removesuffix("-mixed"),
            )
            for one in (self.problems[:1] if self.variants or self.words else self.problems)
        )


def draw_case(kind: str, seed: int) -> Case:
    """The case that a kind and a seed give. Memory is near the least that fits in most cases."""
    rng = random.Random(f"{kind} {seed}")
    style = _style_of(rng, kind)
    if kind in EVERY_ORDER and rng.random() < 0.3:
        style = style._replace(branching=True)
    problem, low = _drawn(rng, kind, style)
    while low is None and rng.random() < 0.9:
        problem, low = _drawn(rng, kind, style)
    if low is not None and rng.random() < 0.7 and not (style.mirrored and style.mixed_gpus):
        more = rng.choice([-1, 0, 0, 1, low // 30, low // 10, low // 4])
        if kind == "every order, policies":
            # Own orders may need less than any named schedule.
            more -= low // rng.choice([6, 12, 24])
        problem = with_memory(problem, max(0, low + more))
    problems = (problem,)
    if kind == "sizes":
        problems = tuple(rescaled(rng, problem, size) for size in rng.choice([(1, 2), (1, 2, 4)]))
    if kind in SHARDED:
        return _with_shards(rng, Case(seed, kind, problems))
    if kind in WITH_DEGREES:
        return _with_degrees(rng, Case(seed, kind, problems))
    return Case(seed, kind, problems)


def _style_of(rng: random.Random, kind: str) -> Style:
    """The style of a kind, with some more traits by chance."""
    style = KINDS[kind]
    if kind == "mixtures" or (kind == "networks" and rng.random() < 0.6):
        style = _mixture(rng, style)
        if style.network and (style.uneven or style.mixed_gpus):
            style = style._replace(shapes=SPREADS)
    elif kind in WITH_DEGREES or kind in SHARDED:
        style = _with_groups(rng, kind, style)
    elif style.mirrored:
        # Where the memory of GPUs differs, a search cannot tell that no plan exists.
        style = style._replace(
            branching=rng.random() < 0.3,
            mixed_gpus=rng.random() < 0.2 and not style.network,
            pins=rng.random() < 0.15,
        )
    elif rng.random() < 0.15:
        style = style._replace(pins=True)
    return style


def _with_degrees(rng: random.Random, case: Case) -> Case:
    """The case with tensor variants, and a problem for each degree that fills a node."""
    (problem,) = case.problems
    degrees = [t for t in (2, 3, 4, 6) if rng.random() < 0.8]
    gpus = problem.cluster.gpus_per_node
    if case.kind == "tensor degrees per stage" and all(gpus % t for t in degrees):
        degrees = [2, *degrees]
    variants = draw_variants(rng, problem.graph, degrees or [2])
    fitting = [one for one in variants if problem.cluster.gpus_per_node % one.group.tensor == 0]
    own = tuple(problem_of_degree(problem, one) for one in fitting)
    return case._replace(problems=(problem, *own), variants=variants)


def _with_measured_collectives(seed: int, problem: Problem) -> Problem:
    """The problem on links with measured collectives, for every third seed without a network record."""
    cluster = problem.cluster
    if seed % 3 or cluster.network is not None:
        return problem
    # Numbers of their own: the other draws of a seed stay as they were.
    rng = random.Random(seed)
    inside, across = (
        msgspec.structs.replace(link, collectives=draw_measured(rng))
        for link in (cluster.intra_node, cluster.inter_node)
    )
    own = msgspec.structs.replace(cluster, intra_node=inside, inter_node=across)
    return msgspec.structs.replace(problem, cluster=own)


def _with_shards(rng: random.Random, case: Case) -> Case:
    """The case with some kinds of sharded state, and a problem for each group and kind, in the planner's order."""
    (problem,) = case.problems
    kinds = rng.choice([("zero2",), ("zero3",), ("none", "zero1", "zero2", "zero3")])
    gpus, batch = problem.cluster.gpus_per_node, problem.num_microbatches
    wanted = rng.choice(
        [d for d in range(2, gpus * problem.cluster.num_nodes + 1) if _is_filled(d, problem)]
    )
    if batch % wanted:
        problem = msgspec.structs.replace(problem, num_microbatches=wanted * (1 + batch // 3))
    training = msgspec.structs.replace(problem.training, zero1=False)
    problem = msgspec.structs.replace(problem, training=training)
    problem = _with_measured_collectives(case.seed, problem)
    variants = draw_variants(rng, problem.graph, [2]) if rng.random() < 0.4 else ()
    drawn: set[str] = set()
    kinds_of_groups: tuple[Literal["context", "expert"], ...] = ("context", "expert")
    degree = rng.choice([2, 4]) if case.kind == "groups on several nodes" else 2
    for kind in kinds_of_groups:
        if rng.random() < 0.35:
            drawn.add(kind)
            tensors = [1, 2] if variants else [1]
            variants += tuple(draw_others(rng, problem.graph, t, (kind,), degree) for t in tensors)
    if len(drawn) == len(kinds_of_groups):
        variants += (draw_others(rng, problem.graph, 1, kinds_of_groups, degree),)
    variants += draw_rings(rng, variants)
    if "expert" in drawn:
        # Each of these GPUs has a sample.
        problem = msgspec.structs.replace(problem, microbatch_size=degree)
    imbalance, load, variants = _with_loads(rng, variants)
    bases: list[GroupVariant | None] = [None]
    bases += sorted(
        (under_load(one, imbalance) for one in variants),
        key=lambda one: (
            one.group.tensor,
            one.group.sequence_parallel,
            one.group.context,
            one.group.exchange == "ring",
            one.group.expert,
        ),
    )
    found: list[Problem] = []
    for base in bases:
        size = 1 if base is None else gpus_of(base.group)
        if base is not None and not _fills_nodes(base.group, problem):
            continue
        most = gpus * problem.cluster.num_nodes // size
        degrees = [d for d in range(2, most + 1) if _is_filled(size * d, problem)]
        for kind in kinds:
            if kind in ("none", "zero1"):
                own = replace_training(problem, zero1=kind == "zero1")
                found.append(own if base is None else problem_of_degree(own, base))
                continue
            found += [
                problem_of_shards(
                    problem, base, Sharing(d, kind == "zero3", training.sync == "fsdp2")
                )
                for d in degrees
                if problem.num_microbatches % d == 0
            ]
    words = {
        "shard": "auto" if len(kinds) > 1 else kinds[0],
        "tensor": "auto" if any(one.group.tensor > 1 for one in variants) else 1,
        "context": "auto" if "context" in drawn else "1",
        "expert": "auto" if "expert" in drawn else "1",
        "num_microbatches": problem.num_microbatches,
        "zero1": False,
    } | load
    # The profile is that of one GPU, so the problem with one GPU per rank comes first.
    return Case(case.seed, case.kind, (problem, *found), variants, words)


def _fills_nodes(group: Group, problem: Problem) -> bool:
    """Whether a node holds tensor groups without a rest, and the cluster groups of this kind."""
    gpus = problem.cluster.gpus_per_node
    return gpus % group.tensor == 0 and _is_filled(gpus_of(group), problem)


def _is_filled(size: int, problem: Problem) -> bool:
    """Whether a node is cut into so many GPUs without a rest, or the cluster into so many nodes."""
    gpus, nodes = problem.cluster.gpus_per_node, problem.cluster.num_nodes
    whole, rest = divmod(size, gpus)
    return gpus % size == 0 or (rest == 0 and nodes % whole == 0)


def _with_loads(
    rng: random.Random, variants: tuple[GroupVariant, ...]
) -> tuple[Fraction, dict[str, Any], tuple[GroupVariant, ...]]:
    """An imbalance of experts and its word, and the variants with a second load; 1 where some exchange no entries."""
    loaded = tuple(draw_loaded(rng, one) for one in variants)
    able = [one.loaded is not msgspec.UNSET for one in loaded if one.group.expert > 1]
    if not able or not all(able) or rng.random() < 0.3:
        return Fraction(1), {}, loaded
    found = Fraction(rng.choice([5, 6, 7, 8]), 4)
    return found, {"expert_imbalance": float(found)}, loaded


def replace_training(problem: Problem, *, zero1: bool) -> Problem:
    """The problem with ZeRO-1 over replicas, or without it."""
    training = msgspec.structs.replace(problem.training, zero1=zero1)
    return msgspec.structs.replace(problem, training=training)


def _with_groups(rng: random.Random, kind: str, style: Style) -> Style:
    """A mixture on equal GPUs; with a degree per stage only choices that go with it."""
    style = _mixture(rng, style)._replace(mixed_gpus=False, network=rng.random() < 0.5)
    style = style._replace(overlap=style.network and rng.random() < 0.6)
    if kind == "tensor degrees per stage":
        style = style._replace(uneven=False, bottleneck=False, other_schedules=False)
    return style


def _drawn(rng: random.Random, kind: str, style: Style) -> tuple[Problem, int | None]:
    """A problem with ample memory, and about the least that fits."""
    problem = draw_problem(rng, style)
    if kind in EVERY_ORDER:
        problem = _with_every_order(rng, problem)
    return problem, low_memory(problem)


def _with_every_order(rng: random.Random, problem: Problem) -> Problem:
    demands = msgspec.structs.replace(
        problem.demands, schedules=SCHEDULES, num_replicas=rng.choice([1, 1, None])
    )
    return msgspec.structs.replace(problem, demands=demands)


def _mixture(rng: random.Random, style: Style) -> Style:
    """Several kinds at once."""
    uneven = rng.random() < 0.4
    others = not uneven and rng.random() < 0.3
    return style._replace(
        other_schedules=others,
        branching=rng.random() < 0.4,
        policies=not others and rng.random() < 0.5,
        mixed_gpus=rng.random() < 0.4,
        pins=rng.random() < 0.4,
        uneven=uneven,
        bottleneck=not uneven and not others and rng.random() < 0.2,
    )


def keywords(problem: Problem, *, several: bool = False, tensor: int | str = 1) -> dict[str, Any]:
    """The keywords by which `solve` makes the same problem."""
    demands, training = problem.demands, problem.training
    fields = {
        name: getattr(demands, name)
        for name in demands.__struct_fields__
        if name not in ("schedules", "pins", "group")
    }
    whole = set(SCHEDULES) <= set(demands.schedules)
    return fields | {
        "tensor": tensor,
        "schedule": "auto" if whole else ",".join(demands.schedules),
        "pins": {pin.layer: pin.stage for pin in demands.pins},
        "objective": problem.objective,
        "optimizer": training.optimizer,
        "precision": training.precision,
        "gradient_dtype": training.gradient_dtype,
        "zero1": training.zero1,
        "sync": training.sync,
        "bucket_bytes": training.bucket_bytes,
        ("global_batch" if several else "num_microbatches"): problem.num_microbatches
        * (problem.microbatch_size if several else 1),
    }
