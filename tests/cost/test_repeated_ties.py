"""Tied parameters that several stages on one rank have: the rank has them once."""

import msgspec
import numpy as np
import pytest

from autopart.activations.policies import StagePolicies
from autopart.cost.cuts import stage_totals
from autopart.cost.memory import rank_memory, total
from autopart.cost.memory_limits import ranks_fit
from autopart.cost.repeated_ties import without_repeats
from autopart.cost.tied_syncs import copies_of
from autopart.pricing import predict
from autopart.records.layer_graph import Layer, LayerGraph, TiedParameter
from autopart.records.layouts import Layout
from autopart.records.prediction import MemoryUse, StagePrediction
from autopart.records.problem import Problem
from autopart.records.training import Training, make_training, makes_gradients
from autopart.schedules.catalogue import make_schedule
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import simulate
from tests.support.problems import chain_graph, cluster, layer, problem

IN_A_V = ((0,), (1,), (1,), (0,))
REPLICAS_IN_A_V = ((0, 2), (1, 3), (1, 3), (0, 2))
PARTITION = ((0,), (1,), (2,), (3,))
TIED = TiedParameter(name="w", layers=("a", "d"), param_bytes=40, grad_bytes=40, num_trainable=10)


def _layer(name: str, elements: int) -> Layer:
    sizes = {"param_bytes": 4 * elements, "grad_bytes": 4 * elements, "num_trainable": elements}
    return layer(name, stash_bytes=5, **sizes)


def _problem(training: Training, *, tied: bool, last: int, memory_bytes: int = 10**9) -> Problem:
    """Four layers; `last` is the number of trained elements in the last one."""
    layers = (_layer("a", 17), _layer("b", 3), _layer("c", 5), _layer("d", last))
    graph = chain_graph(*layers)
    if tied:
        graph = msgspec.structs.replace(graph, tied=(TIED,))
    return problem(graph, 8, cluster=cluster(1, 4, memory_bytes=memory_bytes), training=training)


def _layout(stage_ranks: tuple[tuple[int, ...], ...]) -> Layout:
    return Layout(schedule="zbv", stage_ranks=stage_ranks, num_microbatches=8)


def _predicted(
    asked: Problem, stage_ranks: tuple[tuple[int, ...], ...], on_host: int | None = None
) -> tuple[tuple[StagePrediction, ...], MemoryUse]:
    """The stages and rank 0's memory; `on_host` is the stage whose optimizer state is on the host."""
    layout = _layout(stage_ranks)
    policies = [StagePolicies(optimizer_on_host=s == on_host) for s in range(4)]
    stages, _ = predict(asked, layout, PARTITION, policies)
    schedule = make_schedule("zbv", stage_ranks, 8)
    return stages, rank_memory(stage_ranks, schedule, stages)[0]


TRAININGS = [
    Training(),
    make_training("bfloat16"),
    make_training("bfloat16", gradient_dtype="float32"),
    Training(zero1=True),
]


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("stage_ranks", [IN_A_V, REPLICAS_IN_A_V])
def test_a_rank_has_the_bytes_of_a_model_whose_later_stage_lacks_the_parameter(
    training: Training, stage_ranks: tuple[tuple[int, ...], ...]
):
    stages, use = _predicted(_problem(training, tied=True, last=23), stage_ranks)
    _, without = _predicted(_problem(training, tied=False, last=13), stage_ranks)
    assert use == without
    repeats = [stage.repeated is not msgspec.UNSET for stage in stages]
    # The last stage has the gradient, unless all gradients are there the whole step.
    assert repeats == [makes_gradients(training), False, False, True]
    # Alone on its rank the stage has the parameter.
    assert stages[3].memory.weights == 4 * 23


@pytest.mark.parametrize("on_host", [0, 3])
def test_the_first_stage_says_where_the_optimizer_s_state_lies(on_host: int):
    stages, use = _predicted(_problem(Training(), tied=True, last=23), IN_A_V, on_host)
    _, without = _predicted(_problem(Training(), tied=False, last=13), IN_A_V, on_host)
    assert use == without
    assert use.host == 8 * (17 if on_host == 0 else 13)
    assert stages[3].memory.host == (8 * 23 if on_host == 3 else 0)


def test_stages_on_different_ranks_have_a_copy_each():
    line = ((0,), (1,), (2,), (3,))
    layout = Layout(schedule="1f1b", stage_ranks=line, num_microbatches=8)
    stages, _ = predict(_problem(Training(), tied=True, last=23), layout, PARTITION)
    assert all(stage.repeated is msgspec.UNSET for stage in stages)


def test_the_simulated_peak_and_the_check_of_limits_count_it_once():
    asked = _problem(Training(), tied=True, last=23)
    stages, use = _predicted(asked, IN_A_V)
    timeline = simulate(
        make_schedule("zbv", IN_A_V, 8), IN_A_V, stages, (), action_overhead=0.0, sends_overlap=True
    )
    assert memory_over_time(timeline, IN_A_V, stages)[0].peak_bytes == total(use)
    for room, fits in ((0, True), (-1, False)):
        tight = _problem(Training(), tied=True, last=23, memory_bytes=total(use) + room)
        each = [
            own._replace(**{name: np.atleast_1d(x) for name, x in own._asdict().items() if isinstance(x, int | float)})
            for own in stage_totals(tight.graph, PARTITION)
        ]  # fmt: skip
        copies = copies_of(tight.graph, PARTITION)[None]
        once = without_repeats(tight, IN_A_V, each, copies)
        assert ranks_fit(tight, _layout(IN_A_V), once).tolist() == [fits]


def test_a_parameter_of_three_stages_counts_with_the_first():
    asked = _problem(Training(), tied=True, last=23)
    thrice = msgspec.structs.replace(TIED, layers=("a", "b", "d"))
    graph = msgspec.structs.replace(asked.graph, tied=(thrice,))
    layers: list[Layer] = [_layer("b", 30) if la.name == "b" else la for la in graph.layers]
    graph = LayerGraph(layers=tuple(layers), values=graph.values, tied=graph.tied)
    ranks = ((0,), (0,), (1,), (0,))
    totals = stage_totals(graph, PARTITION)
    once = without_repeats(
        msgspec.structs.replace(asked, graph=graph), ranks, totals, copies_of(graph, PARTITION)
    )
    assert [own.num_trainable for own in once] == [17, 20, 5, 13]
    assert [own.widest_trainable for own in once] == [17, 20, 5, 13]


@pytest.mark.parametrize("recompute", ["never", "auto"])
def test_values_between_stages_of_one_rank_count_once_where_all_stash_stays(recompute: str):
    asked = _problem(Training(), tied=False, last=13)
    # Layer b keeps its result for its backward, and c keeps it too.
    values = tuple(
        msgspec.structs.replace(own, bytes=100, kept_by=("b", "c")) if own.producer == "b" else own
        for own in asked.graph.values
    )
    demands = msgspec.structs.replace(asked.demands, recompute=recompute)
    graph = msgspec.structs.replace(asked.graph, values=values)
    asked = msgspec.structs.replace(asked, graph=graph, demands=demands)
    whole = stage_totals(asked.graph, PARTITION)
    once = without_repeats(asked, IN_A_V, whole, copies_of(asked.graph, PARTITION))
    handed = 100 if recompute == "never" else 0
    assert whole[2].stash_bytes - once[2].stash_bytes == handed
    assert all(once[s].stash_bytes == whole[s].stash_bytes for s in (0, 1, 3))
