"""Independent rules for an accepted file. They share nothing with the loaders but the records."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from autopart.records.calibration import Calibration
from autopart.records.cluster import Cluster, load_cluster, save_cluster
from autopart.records.expert_load import LayerLoad
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import Plan, load_plan, save_plan
from autopart.records.profile import Profile, load_profile, profile_hash, save_profile
from autopart.records.rank_group import Group
from autopart.records.run_result import RunResult
from autopart.records.size import Sizing
from autopart.simulator.timeline import simulate_plan


def fault_of(record: object, scratch: Path) -> str | None:
    """The rule that an accepted record breaks; None where it keeps all of them.

    `scratch` is a file that may be written.
    """
    tree = msgspec.to_builtins(record)
    # A run's losses and errors are whatever was measured.
    most = math.inf if isinstance(record, RunResult) else 2**63
    for number in _numbers(tree):
        if not math.isfinite(number) or abs(number) >= most:
            return f"a figure is {number}"
    match record:
        case Profile():
            return _profile_fault(record, scratch)
        case Plan():
            return _plan_fault(record, scratch)
        case Cluster():
            save_cluster(record, scratch)
            if load_cluster(scratch) != record:
                return "saved and loaded, the cluster is another one"
            return _cluster_fault(record)
        case RunResult():
            return _loads_fault(record.expert_loads, None)
        case Calibration():
            shares = msgspec.to_builtins(record.kernels.shares).values()
            return None if all(0 < share <= 1 for share in shares) else "a share is impossible"
        case Sizing():
            return _sizing_fault(record)
        case _:
            return None


def _sizing_fault(sizing: Sizing) -> str | None:
    kinds = {kind.gpu for kind in sizing.kinds}
    if any(one.gpu not in kinds for one in sizing.front):
        return "the front has a GPU that was not asked for"
    return None


def _numbers(tree: Any) -> Iterator[float]:
    match tree:
        case dict():
            for child in tree.values():
                yield from _numbers(child)
        case list() | tuple():
            for child in tree:
                yield from _numbers(child)
        case int() | float():
            yield tree
        case _:
            pass


def _profile_fault(profile: Profile, scratch: Path) -> str | None:
    graph = profile.graph
    place = {layer.name: at for at, layer in enumerate(graph.layers)}
    fault = _graph_fault(graph, place) or _variants_fault(profile, list(place))
    if fault:
        return fault
    if sum(layer.stash_bytes + layer.param_bytes for layer in graph.layers) > 2**51:
        return "the bytes are absurd"
    save_profile(profile, scratch)
    again = load_profile(scratch)
    if again != profile or profile_hash(again) != profile_hash(profile):
        return "saved and loaded, the profile is another one"
    return None


def _graph_fault(graph: LayerGraph, place: Mapping[str, int]) -> str | None:
    if not place or len(place) < len(graph.layers):
        return "layers are missing or stand twice"
    parts = {v.name: v.part_of for v in graph.values}
    if len(parts) < len(graph.values):
        return "two values have one name"
    for value in graph.values:
        if not value.consumers or len(set(value.consumers)) < len(value.consumers):
            return "a value has no consumers, or one twice"
        if min(place[name] for name in value.consumers) <= place[value.producer]:
            return "a value goes back"
        whole, steps = value.part_of, 0
        while whole is not None:
            whole, steps = parts[whole], steps + 1
            if steps > len(parts):
                return "values are part of each other"
    return None


def _variants_fault(profile: Profile, names: list[str]) -> str | None:
    """Each rank group stands once, with the same layers, and its collectives are inside it."""
    groups = [variant.group for variant in profile.variants]
    if len(set(groups)) < len(groups):
        return "a rank group stands twice"
    for variant in profile.variants:
        group = variant.group
        if [layer.name for layer in variant.graph.layers] != names:
            return "a variant has other layers"
        if [v.name for v in variant.graph.values] != [v.name for v in profile.graph.values]:
            return "a variant has other values"
        if not {own.layer for own in variant.collectives} <= set(names):
            return "collectives are for no layer"
        degrees = {"expert": group.expert, "context": group.context}
        all_own = [one for own in variant.collectives for one in own.collectives]
        if any(degrees.get(str(one.among), 2) == 1 for one in all_own):
            return "a group has collectives among ranks that it lacks"
        if group.exchange != "ring" and any(one.kind == "ring" for one in all_own):
            return "a group without a ring has one"
        loads = [] if variant.loads is msgspec.UNSET else variant.loads
        fault = _loads_fault(loads, names)
        if fault:
            return fault
    return None


def _loads_fault(loads: Sequence[LayerLoad], names: Collection[str] | None) -> str | None:
    for load in loads:
        if not 1 <= load.imbalance <= load.largest <= load.expert:
            return f"an imbalance of {load.imbalance} with {load.expert} expert ranks"
        if names is not None and load.layer not in names:
            return "a load is for no layer"
    return None


def _cluster_fault(cluster: Cluster) -> str | None:
    whole = cluster.num_nodes * cluster.gpus_per_node
    if whole > 1_000_000:
        return "the cluster has a million GPUs"
    if cluster.gpus and sum(group.count for group in cluster.gpus) != whole:
        return "the listed GPUs are not all GPUs"
    if cluster.gpus and cluster.memory_bytes != min(g.memory_bytes for g in cluster.gpus):
        return "the memory is not the smallest GPU's"
    return None


def _plan_fault(plan: Plan, scratch: Path) -> str | None:
    named = [layer for stage in plan.stages for layer in stage.layers]
    if len(set(named)) < len(named) or not all(s.layers and s.ranks for s in plan.stages):
        return "a layer stands twice, or a stage is empty"
    gpus = plan.cluster.num_nodes * plan.cluster.gpus_per_node
    if not plan.orders or _gpus_used(plan) > gpus:
        return "there are more orders than GPUs"
    predicted = plan.prediction
    if len(predicted.stages) != len(plan.stages):
        return "the prediction is for other stages"
    if len(predicted.rank_peak_bytes) != len(plan.orders):
        return "the peaks are for other ranks"
    used = {rank for stage in plan.stages for rank in stage.ranks}
    if any(not sync.ranks or not used.issuperset(sync.ranks) for sync in predicted.syncs):
        return "a sync has no ranks"
    fault = _cluster_fault(plan.cluster) or _orders_fault(plan)
    if fault:
        return fault
    save_plan(plan, scratch)
    if load_plan(scratch) != plan:
        return "saved and loaded, the plan is another one"
    if not math.isfinite(simulate_plan(plan).makespan):
        return "the makespan is no number"
    return None


def _gpus_used(plan: Plan) -> int:
    """The GPUs of all ranks: as many as the plan's group has, or the stage's own one."""
    sizes = [_size(plan.group)] * len(plan.orders)
    for stage in plan.stages:
        if stage.group is not msgspec.UNSET:
            for rank in stage.ranks:
                sizes[rank] = _size(stage.group)
    return sum(sizes)


def _size(group: object) -> int:
    if not isinstance(group, Group):
        return 1
    return group.tensor * group.context * group.expert * group.data


def _orders_fault(plan: Plan) -> str | None:
    """Each stage runs each microbatch once, forward before backward, on the rank whose turn it is."""
    done: Counter[tuple[int, int, str]] = Counter()
    for rank, order in enumerate(plan.orders):
        for word in order.split():
            match = re.fullmatch(r"([0-9]+)([FBIW])([0-9]+)", word)
            if match is None:
                return f"{word} is no action"
            stage, op, microbatch = int(match[1]), match[2], int(match[3])
            if stage >= len(plan.stages) or microbatch >= plan.num_microbatches:
                return f"{word} is beyond the plan"
            ranks = plan.stages[stage].ranks
            if ranks[microbatch % len(ranks)] != rank:
                return f"{word} is on the wrong rank"
            if op != "F" and not done[stage, microbatch, "F"]:
                return f"{word} stands before its forward"
            done[stage, microbatch, op] += 1
    for stage in range(len(plan.stages)):
        for microbatch in range(plan.num_microbatches):
            forward, *back = (done[stage, microbatch, op] for op in "FBIW")
            if forward != 1 or back not in ([1, 0, 0], [0, 1, 1]):
                return f"stage {stage} runs microbatch {microbatch} {forward} {back} times"
    return None
