"""The smallest bottleneck on a network of two levels: pipelines within nodes, and of nodes.

The prefixes of the graph's own order are solved first, by matrices over their pairs
(solvers/replication/two_levels.py). Then all downsets: by probes that need no matrices
(solvers/replication/two_level_probe.py) up to MOST_PAIRED_STATES of them, and where those leave a question open
and there are at most MOST_NODE_STATES, by the matrices again. With more downsets the bound is that of
two levels taken as one (solvers/replication/pipedream_costs.py), and plans are sought along other orders and in
regions around the cuts of the best one (solvers/replication/regions.py).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from autopart.loads.pipedream import (
    Floats,
    Sums,
    busy_time,
    replica_counts,
)
from autopart.solvers.replication.downsets import (
    MOST_PAIRED_STATES,
    MOST_STATES,
    Costs,
    LevelProbe,
    PairLoads,
    States,
    downsets,
    nesting,
    prefixes,
)
from autopart.solvers.replication.dual import (
    TOLERANCE,
    Flags,
    Found,
    Ints,
    Stage,
    bottleneck,
    fewest_machines,
    tighten,
)
from autopart.solvers.replication.network_bound import raised
from autopart.solvers.replication.network_regions import spanning_states
from autopart.solvers.replication.network_task import (
    Best,
    Cut,
    Task,
    on_one_machine,
    pair_probe,
    tightened,
)
from autopart.solvers.replication.pipedream_costs import (
    least_outer_costs,
    level_costs,
    node_loads,
    outer_loads,
    relaxed_costs,
    within_node,
)
from autopart.solvers.replication.regions import RULES, Graph, around_cuts, ordered
from autopart.solvers.replication.two_level_probe import NodeProbe, OuterStage
from autopart.solvers.replication.two_levels import node_pipelines

MOST_NODE_STATES = 600
"""States up to which the pipelines within a node are found for all pairs."""
MOST_PAIRS = 4096
"""Pairs of a choice and a count of machines up to which two levels are bounded as one."""
FIRST_CAP = 1.5
"""How far above its bound a plan of two levels is looked for first."""


def two_levels(task: Task) -> tuple[Best, int | None]:
    """The best plan of two levels, and how many downsets there are, if they were listed."""
    nodes = task.nodes
    best = on_one_machine(task)
    best = _on_nodes(task, best, prefixes(nodes.before, range(len(nodes.before))))
    if best.proven or not task.in_time():
        return best, None
    states = downsets(nodes.before, nodes.after, MOST_STATES)
    if states is None:
        return raised(task, _around_cuts(task, best)), None
    if len(states.masks) > MOST_PAIRED_STATES:
        best = best._replace(bound=_relaxed_bound(task, best, states))
    elif task.network.memory_bytes is None:
        best = _by_probes(task, best, states)
    else:
        roomy = task._replace(network=task.network._replace(memory_bytes=None))
        best = best._replace(bound=_by_probes(roomy, best, states).bound)
    if best.proven or not task.in_time():
        return best, len(states.masks)
    if len(states.masks) <= MOST_NODE_STATES:
        return _on_nodes(task, best, states, complete=True), len(states.masks)
    return _around_cuts(task, best), len(states.masks)


def _around_cuts(task: Task, best: Best) -> Best:
    """The better of `best` and plans along other orders, or around the cuts of the best one, on both
    levels, until none helps."""
    nodes = task.nodes
    graph = Graph(nodes.before, nodes.after, nodes.outputs.tolist())
    everything = (1 << len(nodes.before)) - 1
    spanning = spanning_states(nodes)
    if spanning is not None:
        best = _on_nodes(task, best, spanning)
    for rule in RULES:
        if task.in_time() and not best.proven:
            states = prefixes(nodes.before, ordered(graph, 0, everything, rule))
            best = _on_nodes(task, best, states)
    fruitless = 0
    for rule in itertools.cycle(RULES):
        if fruitless == len(RULES) or best.proven or not task.in_time():
            break
        cuts = [cut.ahead for pipeline in best.inner for cut in pipeline]
        limit = max(2, MOST_NODE_STATES // len(cuts) - 2)
        better = _on_nodes(task, best, *around_cuts(graph, cuts, rule, limit))
        fruitless = 0 if better.value < best.value else fruitless + 1
        best = better
    return best


def _by_probes(task: Task, best: Best, states: States) -> Best:
    """The better of `best` and what can be found and proven without looking at all pairs."""
    search = _Stages(task, states)
    known: Found[OuterStage] = Found(best.value, best.bound, ())
    found = tighten(search, search.value, known, best.bound, best.value, task.deadline)
    assert found is not None, "it started from a plan"
    if not found.stages:
        return best._replace(bound=found.lower_bound)
    machines = search.level.machines
    pipelines = tuple(
        tuple(Cut(states.masks[s.end], machines[s.choice]) for s in search.pipeline(stage))
        for stage in found.stages
    )
    cuts = tuple(Cut(states.masks[stage.end], stage.nodes) for stage in found.stages)
    return Best(found.bottleneck, found.lower_bound, cuts, pipelines)


class _Stages:
    """Probes for stages of both levels, and what those that were found really cost."""

    def __init__(self, task: Task, states: States) -> None:
        sums = task.sums(states)
        self.task, self.sums = task, sums
        self.nested = nesting(states)
        self.level = level_costs(sums, task.network, all_sends=task.all_sends)
        self.outer = least_outer_costs(sums, task.network, all_sends=task.all_sends)
        self.probe = NodeProbe(self.level, self.outer, self.nested, task.network.machines)
        self.limit = math.inf
        self.pipelines: dict[tuple[int, int], tuple[Stage, ...]] = {}

    def __call__(self, limit: float) -> tuple[OuterStage, ...] | None:
        self.limit = limit
        return self.probe(limit)

    def value(self, stages: Sequence[OuterStage]) -> float | None:
        """Seconds of the plan; None where stages of several nodes do not keep the limit after all."""
        loads = [self._load(stage) for stage in stages]
        if max(loads) > self.limit * (1 + TOLERANCE):
            return None
        return max(loads)

    def pipeline(self, stage: OuterStage) -> tuple[Stage, ...]:
        """The pipeline of an outer stage, within each of its nodes."""
        if stage.inner:
            return stage.inner
        ends = stage.start, stage.end
        if ends not in self.pipelines:
            self.pipelines[ends] = _best_pipeline(self.task, self.level, self.nested, *ends)
        return self.pipelines[ends]

    def _load(self, stage: OuterStage) -> float:
        network = self.task.network
        start, end = stage.start, stage.end
        option = self.outer.choices[stage.nodes - 1]
        parameters = self.sums.parameters[end] - self.sums.parameters[start]
        compute = _pipeline_load(self.level, self.pipeline(stage))
        sharing = 1 if start else network.machines[0]
        busy = busy_time(compute, parameters, stage.nodes, network.bandwidths[1], sharing)
        if start:
            return float(max(busy, option.receive[start], option.send[end]))
        return float(max(busy, option.first_send[end]))


def _pipeline_load(level: Costs, stages: Sequence[Stage]) -> float:
    """The bottleneck of a pipeline within a node."""
    first, *rest = stages
    choice = level.choices[first.choice]
    load = float(choice.first[first.end] - choice.first[first.start])
    if not rest:
        return load
    return max(load, float(choice.first_send[first.end]), bottleneck(level, rest))


def _best_pipeline(
    task: Task, level: Costs, nested: Flags, start: int, end: int
) -> tuple[Stage, ...]:
    """The pipeline with the smallest bottleneck between two states, on one node."""
    states = _states_between(nested, start, end)
    costs = within_node(level, states)
    loads = PairLoads(costs, nested[np.ix_(states, states)])
    machines = task.network.machines[0]
    whole = float(costs.work[-1])
    found = tighten(
        lambda limit: fewest_machines(loads, limit, machines),
        lambda stages: bottleneck(costs, stages),
        None,
        whole / machines,
        whole,
    )
    assert found is not None, "one stage on one machine is a pipeline"
    return tuple(Stage(states[s.start], states[s.end], s.choice) for s in found.stages)


def _states_between(nested: Flags, start: int, end: int) -> list[int]:
    between = np.flatnonzero(nested[:, start] & nested[end])
    return [start, *between.tolist(), end]


def _relaxed_bound(task: Task, best: Best, states: States) -> float:
    """A bound over all downsets, from two levels as one."""
    sums = task.sums(states)
    costs = relaxed_costs(sums, task.network)
    machines = math.prod(task.network.machines)
    if len(costs.choices) * machines > MOST_PAIRS:
        return best.bound
    if len(states.masks) <= MOST_PAIRED_STATES:
        probe = pair_probe(costs, states, machines)
    else:
        probe = LevelProbe(states, costs, machines)
    return tightened(task, best, probe, costs, states).bound


def _on_nodes(
    task: Task,
    best: Best,
    states: States,
    pieces: Sequence[Sequence[int]] | None = None,
    *,
    complete: bool = False,
) -> Best:
    """The better of `best` and the best plan of two levels over states; its bound is kept unless
    these are `complete`: all downsets, and few enough."""
    sums = task.sums(states, pieces)
    chosen = _thinned(sums)
    sums = Sums(*(array[chosen] for array in sums))
    nested = nesting(states)[np.ix_(chosen, chosen)]
    masks = [states.masks[at] for at in chosen.tolist()]
    pipelines, found = _over_pairs(task, best, sums, nested)
    bound = found.lower_bound if complete else best.bound
    if not found.stages:
        return best._replace(bound=bound)
    level = level_costs(sums, task.network, all_sends=task.all_sends)
    inner = tuple(
        _pipeline_on_node(
            task, level, masks, nested, stage, float(pipelines[stage.start, stage.end])
        )
        for stage in found.stages
    )
    counts = replica_counts(task.network, 1)
    cuts = tuple(Cut(masks[stage.end], counts[stage.choice]) for stage in found.stages)
    return Best(found.bottleneck, bound, cuts, inner)


def _thinned(sums: Sums) -> Ints:
    """At most MOST_NODE_STATES states: of those with about the same compute the one whose cut is the
    smallest."""
    size = len(sums.compute)
    if size <= MOST_NODE_STATES:
        return np.arange(size)
    shares = sums.compute / sums.compute[-1] * (MOST_NODE_STATES - 2)
    bucket = np.minimum(shares.astype(np.int64), MOST_NODE_STATES - 3)
    order = np.lexsort((sums.cut, bucket))
    order = order[(order > 0) & (order < size - 1)]
    _, firsts = np.unique(bucket[order], return_index=True)
    return np.sort(np.concatenate([[0], order[firsts], [size - 1]]))


def _over_pairs(task: Task, best: Best, sums: Sums, nested: Flags) -> tuple[Floats, Found[Stage]]:
    """The pipelines on one node, and the best outer stages made of them, none if `best` is as good;
    `nested` at [end, start]."""
    network, all_sends = task.network, task.all_sends
    loads = node_loads(sums, nested.T, network, all_sends=all_sends)
    counts = replica_counts(network, 1)
    limit = min(best.value, FIRST_CAP * best.bound)
    while True:
        pipelines = node_pipelines(loads, network.machines[0], limit * counts[-1])
        outer = outer_loads(pipelines, sums, network, all_sends=all_sends)
        found = tighten(
            lambda seconds, outer=outer: fewest_machines(outer, seconds, network.machines[1]),
            lambda stages, outer=outer: bottleneck(outer, stages),
            Found(best.value, best.bound, ()) if limit == best.value else None,
            best.bound,
            limit,
            task.deadline,
        )
        if found is not None:
            return pipelines, found
        limit = min(best.value, 2 * limit)


def _pipeline_on_node(
    task: Task, level: Costs, masks: Sequence[int], nested: Flags, stage: Stage, limit: float
) -> tuple[Cut, ...]:
    """The inner stages of an outer one, whose bottleneck is known to be `limit`."""
    states = _states_between(nested, stage.start, stage.end)
    costs = within_node(level, states)
    loads = PairLoads(costs, nested[np.ix_(states, states)])
    found = fewest_machines(loads, limit * (1 + TOLERANCE / 10), task.network.machines[0])
    assert found is not None, "the pipeline was found before"
    return tuple(Cut(masks[states[s.end]], costs.machines[s.choice]) for s in found)
