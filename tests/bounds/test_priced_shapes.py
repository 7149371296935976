"""The bound for a shape with prices of memory, against the witness that tries every plan, and where it is nearly attained."""

import random
import time

import msgspec
import pytest

from autopart.bounds.glance import shape_bounds
from autopart.bounds.of_shape import quick_bounds
from autopart.records.layer_graph import Recompute, TiedParameter
from autopart.records.layouts import shapes
from autopart.records.problem import Demands, Problem
from autopart.records.training import Training
from autopart.search.branch_and_bound import BranchAndBound
from autopart.search.phases import run_phases
from tests.support.problems import chain_graph, cluster, layer, problem
from tests.support.seeds import seeds
from tests.support.witness.optimum import optimum


def short_of_memory(rng: random.Random) -> Problem:
    """Four or five layers, most of them with much stash, on two or three GPUs that cannot keep all of it."""
    layers = []
    for at in range(rng.randint(4, 5)):
        stash = rng.choice([40, 80, 100]) if rng.random() < 0.8 else 0
        kept, elements = rng.choice([0, stash // 4]), rng.choice([0, 1, 4])
        layers.append(
            layer(
                f"l{at}",
                forward_time=rng.choice([0.5, 1.0, 2.0]),
                stash_bytes=stash,
                workspace_bytes=rng.choice([0, 10, 60]) if stash else 0,
                num_trainable=elements,
                param_bytes=4 * elements,
                grad_bytes=4 * elements,
                recompute=Recompute(extra_time=rng.choice([0.5, 1.0, 1.5]), stash_bytes=kept),
            )
        )
    graph = chain_graph(*layers, num_bytes=1)
    if rng.random() < 0.3:
        ends = (layers[0].name, layers[-1].name)
        fewest = min(layers[0].num_trainable, layers[-1].num_trainable)
        tied = TiedParameter(
            name="tied", layers=ends, num_trainable=fewest, param_bytes=4 * fewest, grad_bytes=4 * fewest
        )  # fmt: skip
        graph = msgspec.structs.replace(graph, tied=(tied,) if fewest else ())
    gpus = rng.randint(2, 3)
    return problem(
        graph,
        cluster=cluster(1, gpus, memory_bytes=rng.randint(100, 350)),
        num_microbatches=rng.choice([6, 8]),
        training=Training(zero1=rng.random() < 0.5),
        demands=Demands(recompute="auto", schedules=rng.choice([("1f1b",), ("gpipe", "1f1b")])),
    )


@pytest.mark.parametrize("seed", seeds(40, 400, slow=80))
def test_no_plan_of_a_shape_beats_its_bound(seed: int) -> None:
    asked = short_of_memory(random.Random(seed))
    for (stages, replicas), bound in shape_bounds(asked, shapes(asked)).items():
        own = msgspec.structs.replace(asked.demands, num_stages=stages, num_replicas=replicas)
        best = optimum(msgspec.structs.replace(asked, demands=own))
        if best is not None:
            assert bound is not None
            assert bound <= best.value * (1 + 1e-9)


def test_a_stage_without_workspace_has_more_room_for_state():
    again = Recompute(extra_time=1.0, stash_bytes=10)
    layers = [
        layer("state", buffer_bytes=990),
        layer("workspace", workspace_bytes=900, stash_bytes=60, recompute=again),
    ]
    asked = problem(
        chain_graph(*layers, num_bytes=1),
        cluster=cluster(1, 2, memory_bytes=1000),
        demands=Demands(num_stages=2, num_replicas=1, recompute="auto", schedules=("1f1b",)),
        num_microbatches=4,
    )
    best, bound = optimum(asked), shape_bounds(asked, [(2, 1)])[2, 1]
    assert best is not None
    assert bound is not None
    assert bound <= best.value


@pytest.mark.parametrize(
    ("layers", "stages", "microbatches", "memory"),
    [(96, 4, 128, 5500), (96, 4, 128, 4200), (120, 3, 60, 7000), (120, 5, 40, 5500)],
)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_small_equal_layers_nearly_attain_it(
    layers: int, stages: int, microbatches: int, memory: int, schedule: str
) -> None:
    """With parts of layers the best 1F1B plan would attain it. GPipe has more in flight than the bound counts."""
    again = Recompute(extra_time=1.0, stash_bytes=10)
    sizes = {"num_trainable": 2, "param_bytes": 8, "grad_bytes": 8, "recompute": again}
    chain = [layer(f"l{at}", stash_bytes=100, workspace_bytes=20, **sizes) for at in range(layers)]
    asked = problem(
        chain_graph(*chain, num_bytes=1),
        cluster=cluster(1, stages, memory_bytes=memory),
        num_microbatches=microbatches,
        demands=Demands(recompute="auto", schedules=(schedule,), num_stages=stages, num_replicas=1),
    )
    shape = (stages, 1)
    bound, quick = shape_bounds(asked, [shape])[shape], quick_bounds(asked, [shape])[shape]
    search = BranchAndBound(asked, "dp")
    run_phases(search, time.perf_counter() + 60)
    best = search.best.value
    assert bound is not None
    assert quick is not None
    assert bound <= best
    if schedule == "1f1b":
        assert quick * 1.02 < bound
        assert 0.96 * best < bound
