"""The best policies of partitions and their totals over cuts, against trying everything."""

import itertools
import random
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import pytest

from autopart.activations.best_policies import best_policies
from autopart.activations.best_totals import least_totals, with_best_policies
from autopart.activations.policies import (
    StagePolicies,
)
from autopart.cost.cuts import all_cuts
from autopart.cost.memory import memory, total
from autopart.errors import InfeasibleError
from autopart.pricing import compile_layout, fits, predict, price, price_paths
from autopart.records.cluster import host_share
from autopart.records.layer_graph import LayerGraph, Recompute
from autopart.records.layouts import Layout, Partition, layouts, shapes
from autopart.records.prediction import StagePrediction
from autopart.records.problem import Demands, Problem
from tests.activations.test_frontier import EVERYTHING, FOREVER, RECOMPUTE, drawn, every_choice_on
from tests.support.oracle import every_layout, layout_stages, partitions
from tests.support.problems import (
    layer,
    problem,
    value,
)
from tests.support.searches import searched
from tests.support.seeds import seeds


@pytest.mark.parametrize("demands", [RECOMPUTE, EVERYTHING])
@pytest.mark.parametrize("seed", seeds(5, 60))
def test_the_matrix_over_all_cuts_equals_single_stages(seed: int, demands: Demands) -> None:
    asked = drawn(seed, demands=demands)
    cuts = all_cuts(asked.graph)
    try:
        layout = random.Random(seed).choice(
            layouts(asked, *random.Random(seed).choice(shapes(asked)))
        )
    except InfeasibleError:
        pytest.skip("no shape")
    for partition in itertools.islice(partitions(asked, layout_stages(layout)), 12):
        decision = price(asked, layout, partition)
        stages = decision.prediction.stages
        ahead: set[int] = set()
        path = [0]
        for members in partition:
            ahead |= set(members)
            row = np.array([at in ahead for at in range(len(asked.graph.layers))])
            path.append(int(np.flatnonzero((cuts.ahead == row).all(axis=1))[0]))
        for stage, (i, j) in enumerate(itertools.pairwise(path)):
            all_totals = with_best_policies(asked, layout, cuts, stage)
            if fits_alone(asked, stages[stage]):
                assert stages[stage].stash_bytes == all_totals.stash_bytes[i, j]
                relayed = np.broadcast_to(all_totals.relayed_grad_bytes, cuts.nested.shape)[i, j]
                assert stages[stage].moving.workspace - relayed == all_totals.workspace_bytes[i, j]
                assert stages[stage].forward_time == pytest.approx(all_totals.forward_time[i, j])
                assert stages[stage].backward_time == pytest.approx(all_totals.backward_time[i, j])
                hosted = stages[stage].in_flight * all_totals.host_bytes[i, j]
                assert stages[stage].memory.host == hosted
            else:
                least = least_totals(asked, layout, cuts, stage)
                in_flight = stages[stage].in_flight
                replicas = len(layout.stage_ranks[stage])
                fewest = total(memory(least, asked, replicas, in_flight))
                assert stages[stage].peak_bytes == np.broadcast_to(fewest, cuts.nested.shape)[i, j]
        if fits(asked, decision):
            steps = price_paths(asked, layout, compile_layout(layout), cuts, [path])
            assert steps[0] == pytest.approx(decision.prediction.step_time)


def fits_alone(asked: Problem, stage: StagePrediction) -> bool:
    share = host_share(asked.cluster)
    on_host = share is None or stage.memory.host <= share
    return stage.peak_bytes <= asked.cluster.memory_bytes and on_host


def least_busy(
    asked: Problem, layout: Layout, partition: Partition
) -> tuple[StagePolicies, ...] | None:
    """For each stage the policies that fit with the fewest busy seconds; None where none fit."""
    found: list[StagePolicies] = []
    for stage, members in enumerate(partition):
        tried: list[tuple[float, StagePolicies]] = []
        for policies in every_choice_on(asked.graph, members, asked.demands):
            others = [StagePolicies()] * len(partition)
            others[stage] = policies
            predicted = predict(asked, layout, partition, others)[0][stage]
            if fits_alone(asked, predicted):
                tried.append((predicted.busy_time, policies))
        if not tried:
            return None
        found.append(min(tried)[1])
    return tuple(found)


def demands_for(graph: LayerGraph, policies: Sequence[StagePolicies]) -> Demands:
    """Demands that name exactly these policies."""
    names: dict[str, list[str]] = {"recompute": [], "selective": [], "offload": []}
    for own in policies:
        for policy, found in names.items():
            found += [graph.layers[at].name for at in getattr(own, policy)]
    return Demands(**{f"{policy}_layers": tuple(found) for policy, found in names.items()})


def forced(asked: Problem, policies: Sequence[StagePolicies]) -> Problem:
    return msgspec.structs.replace(asked, demands=demands_for(asked.graph, policies))


def every_choice(asked: Problem, partition: Partition) -> Iterator[tuple[StagePolicies, ...]]:
    yield from itertools.product(
        *(every_choice_on(asked.graph, members, asked.demands) for members in partition)
    )


def best_of_everything(asked: Problem) -> float:
    """The smallest step over all layouts, partitions and policies.

    With offload, waits can make policies incomparable; then each stage has the fewest busy seconds.
    """
    least = FOREVER
    for layout in every_layout(asked):
        for partition in partitions(asked, layout_stages(layout)):
            if asked.demands.offload == "auto":
                rule = least_busy(asked, layout, partition)
                choices = [] if rule is None else [rule]
            else:
                choices = every_choice(asked, partition)
            for policies in choices:
                decision = price(forced(asked, policies), layout, partition)
                assert decision.policies == policies
                if fits(asked, decision):
                    least = min(least, decision.prediction.step_time)
    return least


@pytest.mark.slow
@pytest.mark.parametrize("demands", [RECOMPUTE, EVERYTHING])
@pytest.mark.parametrize("seed", seeds(2, 40))
def test_the_search_equals_trying_everything(seed: int, demands: Demands) -> None:
    asked = drawn(seed, most_layers=4, demands=demands)
    try:
        shapes(asked)
    except InfeasibleError:
        return
    found, tried = searched(asked, seconds=FOREVER), best_of_everything(asked)
    if found.best is None:
        assert tried == FOREVER
        return
    assert found.best.prediction.step_time == pytest.approx(tried)
    assert found.lower_bound <= tried * (1 + 1e-9)
    assert found.lower_bound == pytest.approx(tried)


@pytest.mark.slow
def test_more_memory_is_never_slower_without_offload() -> None:
    for seed in range(30):
        asked, before = drawn(seed), FOREVER
        for share in (0.5, 0.7, 0.85, 1.0, 1.3, 2.0, 5.0):
            roomy = msgspec.structs.replace(
                asked.cluster, memory_bytes=int(share * asked.cluster.memory_bytes)
            )
            try:
                found = searched(msgspec.structs.replace(asked, cluster=roomy), seconds=FOREVER)
            except InfeasibleError:
                break
            step = found.best.prediction.step_time if found.best else FOREVER
            assert step <= before * (1 + 1e-9)
            before = step


def test_recompute_always_and_named_layers_are_obeyed() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=0)
    graph = LayerGraph(
        layers=tuple(layer(name, stash_bytes=10, recompute=again) for name in "abc"),
        values=(value("a", "b", kept_by=("b",)), value("b", "c", kept_by=("c",))),
    )
    layout = Layout(schedule="1f1b", stage_ranks=((0,),), num_microbatches=4)

    def chosen(**demands: object) -> Partition:
        asked = problem(graph, demands=Demands(**demands))  # pyright: ignore
        return tuple(policies.recompute for policies in best_policies(asked, layout, ((0, 1, 2),)))

    assert chosen() == ((),)
    assert chosen(recompute="auto") == ((),)
    assert chosen(recompute="always") == ((0, 1, 2),)
    assert chosen(recompute="always", keep_layers=("b",)) == ((0, 2),)
    assert chosen(recompute="auto", recompute_layers=("c",)) == ((2,),)
    assert chosen(recompute_layers=("a",)) == ((0,),)


def test_a_recomputed_layer_adds_its_recompute_time_and_turns_stash_into_workspace() -> None:
    again = Recompute(extra_time=1.0, stash_bytes=4)
    graph = LayerGraph(
        layers=(
            layer("a", stash_bytes=100, workspace_bytes=7, recompute=again),
            layer("b", stash_bytes=30, workspace_bytes=9),
        ),
        values=(value("a", "b", bytes=8, kept_by=("b",)),),
    )
    layout = Layout(schedule="gpipe", stage_ranks=((0,),), num_microbatches=4)

    def stage(**demands: object):
        asked = problem(graph, demands=Demands(**demands))  # pyright: ignore
        return price(asked, layout, ((0, 1),)).prediction.stages[0]

    kept, recomputed = stage(), stage(recompute="always")
    assert (kept.backward_time, recomputed.backward_time) == (4.0, 5.0)
    assert (kept.stash_bytes, recomputed.stash_bytes) == (138, 42)
    # b's stash (30 bytes) is already freed while a runs again.
    assert (kept.memory.workspace, recomputed.memory.workspace) == (9, 7 + 96 - 30)
    assert recomputed.memory.stash == 4 * 42
