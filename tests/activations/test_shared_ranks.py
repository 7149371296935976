"""Policies of partitions whose stages choose together on each rank: many side by side, and one alone."""

import itertools
import random

import msgspec
import numpy as np
import pytest

from autopart.activations.best_policies import best_policies
from autopart.activations.shared_ranks import SharedRanks
from autopart.cost.cuts import all_cuts
from autopart.pricing import compile_layout, fits, price, price_paths
from autopart.records.layer_graph import Recompute
from autopart.records.layouts import Layout
from autopart.records.problem import Demands, Problem
from autopart.schedules.catalogue import KINDS
from tests.activations.test_frontier import RECOMPUTE, some_host, with_recompute_costs
from tests.support.problems import chain_graph, cluster, layer, problem, random_problem
from tests.support.seeds import seeds

ON_HOSTS = Demands(recompute="auto", offload="auto", offload_optimizer="auto")

PLACED = {"interleaved-1f1b": (2, 2), "zbv": (2, 2), "eager-1f1b": (3, 1), "zb-h2": (3, 1)}
"""Schedules with ranks and stages per rank."""


def drawn_layout(seed: int, demands: Demands = RECOMPUTE) -> tuple[Problem, Layout]:
    """A small problem and a layout for it, where memory often asks for recomputation."""
    rng = random.Random(seed)
    while True:
        asked = random_problem(rng, branching=seed % 2 > 0, tight=True)
        if len(asked.graph.layers) >= 4:
            break
    graph = with_recompute_costs(rng, asked.graph, alike=seed % 5 == 0)
    name = sorted(PLACED)[seed % 4]
    placement = KINDS[name].placement(*PLACED[name])
    layout = Layout(
        schedule=name, stage_ranks=tuple((rank,) for rank in placement), num_microbatches=6
    )
    roomy = msgspec.structs.replace(
        asked.cluster,
        num_nodes=1,
        gpus_per_node=4,
        memory_bytes=rng.randrange(400, 3000),
        host_link=some_host(rng, graph),
        host_memory_bytes=None if seed % 3 else rng.randrange(8000),
    )
    changed = msgspec.structs.replace(
        asked, graph=graph, cluster=roomy, num_microbatches=6, demands=demands
    )
    return changed, layout


@pytest.mark.parametrize("seed", seeds(6, 80))
def test_many_partitions_side_by_side_equal_each_alone(seed: int) -> None:
    asked, layout = drawn_layout(seed, ON_HOSTS if seed % 2 else RECOMPUTE)
    cuts = all_cuts(asked.graph)
    stages = len(layout.stage_ranks)
    paths = [
        (0, *inner, len(cuts.nested) - 1)
        for inner in itertools.combinations(range(1, len(cuts.nested) - 1), stages - 1)
    ]
    paths = [p for p in paths if all(cuts.nested[i, j] for i, j in itertools.pairwise(p))][:25]
    steps = price_paths(asked, layout, compile_layout(layout), cuts, paths)
    totals = SharedRanks(asked, layout, cuts).totals(np.array(paths))
    for row, path in enumerate(paths):
        partition = tuple(
            tuple(np.flatnonzero(cuts.ahead[j] & ~cuts.ahead[i]).tolist())
            for i, j in itertools.pairwise(path)
        )
        alone = price(asked, layout, partition)
        for stage, own in enumerate(alone.prediction.stages):
            on_host = own.host_stash_bytes or 0
            assert on_host == totals[stage].host_bytes[row]
            assert own.stash_bytes == totals[stage].stash_bytes[row]
            assert own.memory.workspace <= max(
                own.moving.first_backward,
                own.moving.input_grad_workspace,
                totals[stage].workspace_bytes[row],
                totals[stage].input_grad_workspace_bytes[row],
                totals[stage].weight_grad_workspace_bytes[row],
            )
        if fits(asked, alone):
            assert steps[row] == pytest.approx(alone.prediction.step_time)
        else:
            assert steps[row] == np.inf


def test_the_stage_with_more_microbatches_in_flight_is_recomputed() -> None:
    """Rank 0 keeps five microbatches, of stage 0 three or four of them."""
    again = Recompute(extra_time=1.0, stash_bytes=0)
    layers = [layer(name, stash_bytes=100, recompute=again) for name in "abcd"]
    layout = Layout(
        schedule="interleaved-1f1b", stage_ranks=((0,), (1,), (0,), (1,)), num_microbatches=4
    )
    stages = ((0,), (1,), (2,), (3,))

    def chosen(memory: int) -> tuple[tuple[int, ...], ...]:
        asked = problem(
            chain_graph(*layers, num_bytes=0),
            demands=RECOMPUTE,
            cluster=cluster(memory_bytes=memory),
        )
        return tuple(own.recompute for own in best_policies(asked, layout, stages))

    assert chosen(500) == ((), (), (), ())
    # With c recomputed, four microbatches of stage 0 and c's returned stash would stay: 500 bytes.
    assert chosen(499) == ((0,), (), (), ())
    assert chosen(300) == ((0,), (), (), ())
    assert chosen(299) == ((0,), (1,), (2,), ())
