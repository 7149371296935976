"""Memory on a rank: its kinds add up, equal the simulated peak, and grow with every demand for more."""

import random

import msgspec
import numpy as np
import pytest

from autopart.cost.cuts import all_cuts, stage_totals
from autopart.cost.memory import memory, rank_memory, total, with_versions
from autopart.pricing import predict
from autopart.records.layer_graph import LayerGraph
from autopart.records.layouts import Layout, Partition
from autopart.records.prediction import ON_DEVICE, MemoryUse, StagePrediction
from autopart.records.problem import CLASSIC, Problem
from autopart.records.training import Training, make_training
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.schedules.pipeline import Pipeline
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import simulate
from tests.support.pictures import copies, place_stages
from tests.support.problems import (
    TRAININGS,
    chain_graph,
    cluster,
    layer,
    problem,
    random_graph,
    value,
)
from tests.support.seeds import seeds

ABLE = list(KINDS.values())


def _drawn(seed: int, *, same_workspace: bool) -> tuple[Problem, Layout, Partition]:
    """A random chain in stages under a random schedule, on one pipeline or two."""
    rng = random.Random(seed)
    kind = ABLE[seed % len(ABLE)]
    ranks, replicas = rng.randint(1, 4), rng.randint(1, 2)
    counts = [v for v in (1, 2, 3) if kind.stages_per_rank in (None, v)]
    made = [
        (v, n)
        for v in counts
        for n in range(1, 13)
        if kind.takes(Pipeline(ranks, v, n)) and (v == 1 or ranks > 1)
    ]
    if not made:
        return _drawn(seed + len(ABLE), same_workspace=same_workspace)
    v, microbatches = rng.choice(made)
    graph = random_graph(rng, ranks * v, branching=False)
    if same_workspace:
        even = (msgspec.structs.replace(la, workspace_bytes=9) for la in graph.layers)
        graph = msgspec.structs.replace(graph, layers=tuple(even))
    placed = copies(place_stages(kind, ranks, v), [ranks * copy for copy in range(replicas)])
    layout = Layout(
        schedule=kind.name,
        stage_ranks=tuple(map(tuple, placed)),
        num_microbatches=microbatches * replicas,
    )
    asked = problem(
        graph,
        layout.num_microbatches,
        cluster=cluster(1, ranks * replicas, reserve_bytes=rng.randrange(9)),
        training=rng.choice(TRAININGS),
    )
    return asked, layout, tuple((at,) for at in range(ranks * v))


def _simulated(asked: Problem, layout: Layout, stages: tuple[StagePrediction, ...]) -> list[int]:
    schedule = make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)
    timeline = simulate(
        schedule, layout.stage_ranks, stages, (), action_overhead=0.5, sends_overlap=True
    )
    curves = memory_over_time(timeline, layout.stage_ranks, stages)
    return [curve.peak_bytes for curve in curves]


@pytest.mark.parametrize("seed", seeds(45, 300))
def test_the_simulated_peak_equals_the_memory_model(seed: int) -> None:
    asked, layout, partition = _drawn(seed, same_workspace=True)
    stages, _ = predict(asked, layout, partition)
    schedule = make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)
    simulated = _simulated(asked, layout, stages)
    by_rank = rank_memory(layout.stage_ranks, schedule, stages)
    reckoned = [total(by_rank[rank]) for rank in range(len(schedule))]
    if layout.schedule not in CLASSIC:
        assert simulated == reckoned
        return
    # The model counts two gradients under way on every stage under GPipe and 1F1B.
    for rank, (peak, most) in enumerate(zip(simulated, reckoned, strict=True)):
        (own,) = (s for s, ranks in zip(stages, layout.stage_ranks, strict=True) if rank in ranks)
        assert most - own.memory.receives - own.memory.sends <= peak <= most


def test_messages_go_at_the_end_of_the_action_that_used_them() -> None:
    """V-Min's I leaves 44 bytes more for its W; the gradient that it used stayed beside them until the next action."""
    test_the_simulated_peak_equals_the_memory_model(143)


@pytest.mark.parametrize("seed", seeds(30, 300))
def test_no_simulated_peak_exceeds_the_memory_model(seed: int) -> None:
    asked, layout, partition = _drawn(seed, same_workspace=False)
    stages, _ = predict(asked, layout, partition)
    schedule = make_schedule(layout.schedule, layout.stage_ranks, layout.num_microbatches)
    by_rank = rank_memory(layout.stage_ranks, schedule, stages)
    largest = max(stage.moving.workspace for stage in stages)
    for rank, peak in enumerate(_simulated(asked, layout, stages)):
        use = by_rank[rank]
        slack = use.receives + use.sends if layout.schedule in CLASSIC else 0
        assert total(use) - largest - slack <= peak <= total(use)
        assert use.recomputed == 0 and use.loss_stash == use.loss_workspace == use.versions == 0


def test_each_kind_of_memory_is_shown_once() -> None:
    apart = ("host", "recomputed", "loss_stash", "loss_workspace")
    assert set(MemoryUse.__struct_fields__) == {*ON_DEVICE, *apart}


def _trained(**words: object) -> Problem:
    sizes = {"param_bytes": 14, "grad_bytes": 14, "num_trainable": 7}
    return problem(chain_graph(layer("a", **sizes)), 4, training=make_training("bfloat16", **words))


def _state(asked: Problem, replicas: int) -> tuple[int, int, int]:
    (totals,) = stage_totals(asked.graph, ((0,),))
    use = memory(totals, asked, replicas, 1)
    return use.gradients, use.master, use.optimizer


def test_precision_and_optimizer_set_the_state_per_trained_element() -> None:
    assert _state(_trained(), 1) == (14, 28, 56)
    assert _state(_trained(precision="bfloat16"), 1) == (14, 0, 28)
    assert _state(_trained(gradient_dtype="float32", optimizer="5"), 1) == (28, 28, 35)


def test_zero1_shares_state_and_update_and_leaves_the_sync_time() -> None:
    asked, plain = _trained(zero1=True), _trained()
    assert [_state(asked, r)[1:] for r in (1, 2, 3, 8)] == [(28, 56), (16, 32), (12, 24), (4, 8)]
    assert _state(plain, 8)[1:] == _state(plain, 1)[1:]
    layout = Layout(schedule="1f1b", stage_ranks=((0, 1),), num_microbatches=4)
    (shared,), syncs = predict(asked, layout, ((0,),))
    (whole,), before = predict(plain, layout, ((0,),))
    assert shared.update_time == whole.update_time / 2
    assert [sync.time for sync in syncs] == [sync.time for sync in before]
    wide = _trained(zero1=True, gradient_dtype="float32")
    (_, ring), (_, both) = predict(plain, layout, ((0,),)), predict(wide, layout, ((0,),))
    assert both[0].time == pytest.approx(1.5 * ring[0].time)


@pytest.mark.parametrize("seed", range(20))
def test_matrices_of_stages_equal_single_stages(seed: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, 5, branching=False)
    for training in TRAININGS:
        asked = problem(graph, 6, training=training)
        cuts = all_cuts(graph)
        replicas, in_flight = rng.randint(1, 3), rng.randint(1, 4)
        sizes = np.broadcast_to(total(memory(cuts.totals, asked, replicas, in_flight)), (6, 6))
        for i in range(5):
            partition = (tuple(range(i)), tuple(range(i, 5))) if i else (tuple(range(5)),)
            totals = stage_totals(graph, partition)[-1]
            assert sizes[i, -1] == total(memory(totals, asked, replicas, in_flight))


@pytest.mark.parametrize("seed", range(20))
def test_more_of_anything_never_needs_fewer_bytes(seed: int) -> None:
    rng = random.Random(seed)
    (totals,) = stage_totals(random_graph(rng, 4, branching=False), (tuple(range(4)),))

    def needed(replicas: int = 2, in_flight: int = 2, reserve: int = 5, **words: object) -> int:
        asked = problem(
            LayerGraph(layers=(layer("unused"),)),
            8,
            cluster=cluster(reserve_bytes=reserve),
            training=make_training("bfloat16", **words),
        )
        return total(memory(totals, asked, replicas, in_flight))

    assert needed(in_flight=3) >= needed() >= needed(in_flight=1)
    assert needed(reserve=6) == needed() + 1
    assert needed(zero1=True) <= needed()
    assert needed(replicas=4, zero1=True) <= needed(zero1=True)
    assert needed(precision="bfloat16") <= needed()
    assert needed(optimizer="sgd") <= needed(optimizer="sgd-momentum") <= needed()
    assert needed(optimizer="adafactor") == needed(optimizer="sgd-momentum")


def test_the_loss_has_its_own_shares_of_stash_and_workspace() -> None:
    layers = (
        layer("head", workspace_bytes=30, stash_bytes=5),
        msgspec.structs.replace(layer("loss", workspace_bytes=70, stash_bytes=11), kind="loss"),
    )
    graph = LayerGraph(layers=layers, values=(value("head", "loss", bytes=40, kept_by=("loss",)),))
    layout = Layout(schedule="gpipe", stage_ranks=((0,),), num_microbatches=3)
    (stage,), _ = predict(problem(graph, 3), layout, ((0, 1),))
    use = stage.memory
    assert (use.stash, use.loss_stash) == (3 * (5 + 11 + 40), 3 * (11 + 40))
    # Without the loss the head's 30 is the largest transient, and the loss's stash of 11 is not there then.
    assert (use.workspace, use.loss_workspace) == (70, 70 - (30 - 11))
    apart = Layout(schedule="gpipe", stage_ranks=((0,), (1,)), num_microbatches=3)
    (head, loss), _ = predict(problem(graph, 3), apart, ((0,), (1,)))
    assert (head.memory.loss_stash, head.memory.loss_workspace) == (0, 0)
    assert (loss.memory.loss_stash, loss.memory.loss_workspace) == (3 * (11 + 40), 70)


def test_weight_versions_are_further_copies() -> None:
    asked = _trained()
    layout = Layout(schedule="1f1b", stage_ranks=((0,),), num_microbatches=4)
    (stage,), _ = predict(asked, layout, ((0,),))
    more = with_versions(stage, in_flight=3, copies=2)
    assert (more.versions, more.weights) == (28, 14)
    assert total(more) == stage.peak_bytes + 2 * 14 + 2 * stage.stash_bytes


def test_training_defaults_fit_a_float32_profile() -> None:
    assert make_training("float32") == Training()
