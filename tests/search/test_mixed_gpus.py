import random

import msgspec
import pytest

from autopart.bounds.classic_schedules import stage_bounds
from autopart.bounds.of_shape import classic_shape_bounds
from autopart.certificate.verify import verify
from autopart.cost.cuts import all_cuts
from autopart.errors import ClusterError, InfeasibleError
from autopart.records.cluster import (
    Cluster,
    GpuGroup,
    check_cluster,
    load_cluster,
    num_gpus,
    save_cluster,
)
from autopart.records.layouts import shapes
from autopart.records.mixed_cluster import mixed_cluster
from autopart.search.infeasible import all_tried
from autopart.search.planner import solve
from tests.bounds.test_classic_schedules import largest
from tests.support.oracle import best_step_time, every_layout, layout_stages, partitions, step_time
from tests.support.problems import chain_graph, cluster, layer, problem, profile, random_problem
from tests.support.seeds import seeds


def mixed(rng: random.Random, machine: Cluster) -> Cluster:
    """The same cluster with GPUs of up to three kinds."""
    groups: list[GpuGroup] = []
    left = num_gpus(machine)
    while left:
        count = rng.randint(1, left)
        left -= count
        groups.append(
            GpuGroup(
                count=count,
                name=f"kind{len(groups)}",
                memory_bytes=int(machine.memory_bytes * rng.choice([0.7, 1.0, 1.5])),
                speed=rng.choice([0.5, 1.0, 1.0, 1.7]),
            )
        )
    least = min(group.memory_bytes for group in groups)
    return msgspec.structs.replace(machine, gpus=tuple(groups), memory_bytes=least)


def drawn(seed: int, per_stage: bool):
    """A random problem on different GPUs."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.3, tight=rng.random() < 0.5)
    demands = msgspec.structs.replace(asked.demands, replicas_per_stage=per_stage)
    return msgspec.structs.replace(asked, cluster=mixed(rng, asked.cluster), demands=demands)


@pytest.mark.parametrize("per_stage", [False, True])
@pytest.mark.parametrize("seed", seeds(3, 60))
def test_a_plan_for_different_gpus_is_proven_fastest(seed: int, per_stage: bool):
    asked = drawn(seed, per_stage)
    best, given = best_step_time(asked), profile(asked.graph)
    try:
        plan = solve(
            given,
            asked.cluster,
            num_microbatches=asked.num_microbatches,
            replicas_per_stage=per_stage,
        )
    except InfeasibleError:
        assert best is None
        return
    assert plan.prediction.step_time == pytest.approx(best, rel=1e-9)
    assert plan.certificate.gap == pytest.approx(0.0, abs=1e-9)
    checks = verify(plan, given)
    assert all(check.passed for check in checks), checks[-1]


@pytest.mark.parametrize("seed", seeds(10, 60))
def test_no_plan_for_different_gpus_is_faster_than_its_bounds(seed: int):
    asked = drawn(seed, per_stage=False)
    cuts, quick = all_cuts(asked.graph), classic_shape_bounds(asked, shapes(asked))
    for layout in every_layout(asked):
        bounds = stage_bounds(asked, layout, cuts)
        shape = layout_stages(layout), len(layout.stage_ranks[0])
        for partition in partitions(asked, layout_stages(layout)):
            time = step_time(asked, layout, partition)
            if time is not None:
                assert largest(cuts, bounds, partition) <= time * (1 + 1e-9)
                least = quick[shape]
                assert least is not None and least <= time * (1 + 1e-9)


def two_kinds(speed: float = 1.0, memory: int = 1000) -> Cluster:
    """Two ranks: the first has speed 1 and 1000 bytes, the second `speed` and `memory`."""
    groups = (
        GpuGroup(count=1, name="new", memory_bytes=1000),
        GpuGroup(count=1, name="old", memory_bytes=memory, speed=speed),
    )
    return cluster(1, 2, memory_bytes=min(1000, memory), gpus=groups)


def test_a_slow_gpu_gets_fewer_layers():
    row = profile(chain_graph(*(layer(f"l{i}") for i in range(9)), num_bytes=1))
    plan = solve(row, two_kinds(speed=0.5), num_microbatches=16, num_stages=2)
    layers_of_rank = {stage.ranks[0]: len(stage.layers) for stage in plan.stages}
    assert layers_of_rank == {0: 6, 1: 3}
    assert {stage.forward_time for stage in plan.prediction.stages} == {6.0}
    assert "any assignment of ranks to GPUs" in plan.certificate.assumes


def test_gpus_are_taken_out_of_their_order_where_that_is_faster():
    # A large stash in the first stage wants the large GPU, which is the last one.
    row = profile(
        chain_graph(layer("a", stash_bytes=500), *(layer(f"l{i}") for i in range(3)), num_bytes=1)
    )
    machine = two_kinds(speed=0.5, memory=3000)
    plan = solve(row, machine, num_microbatches=4, num_stages=2, schedule="gpipe")
    assert plan.stages[0].ranks == (1,)
    assert all(check.passed for check in verify(plan, row))
    with pytest.raises(InfeasibleError, match="nothing fits"):
        solve(
            row,
            machine,
            num_microbatches=4,
            schedule="gpipe",
            num_stages=2,
            replicas_per_stage=True,
        )


@pytest.mark.parametrize("solver", ["dp", "ilp"])
def test_every_exact_solver_takes_account_of_a_slow_or_small_gpu(solver: str):
    row = profile(chain_graph(*(layer(f"l{i}", param_bytes=100) for i in range(9)), num_bytes=1))
    plan = solve(row, two_kinds(speed=0.5), num_microbatches=16, num_stages=2, solver=solver)
    assert {stage.ranks[0]: len(stage.layers) for stage in plan.stages} == {0: 6, 1: 3}
    small = two_kinds(speed=2.0, memory=310)
    plan = solve(row, small, num_microbatches=16, num_stages=2, solver=solver)
    assert {stage.ranks[0]: len(stage.layers) for stage in plan.stages} == {0: 6, 1: 3}


def test_a_small_gpu_gets_fewer_layers():
    row = profile(chain_graph(*(layer(f"l{i}", param_bytes=100) for i in range(8)), num_bytes=1))
    plan = solve(row, two_kinds(memory=310), num_microbatches=16, num_stages=2)
    assert {stage.ranks[0]: len(stage.layers) for stage in plan.stages} == {0: 5, 1: 3}
    assert all(check.passed for check in verify(plan, row))


def test_the_infeasible_message_names_the_missing_memory_of_different_gpus():
    row = profile(chain_graph(*(layer(f"l{i}", param_bytes=100) for i in range(8)), num_bytes=1))
    small = tuple(
        msgspec.structs.replace(group, memory_bytes=10 + at)
        for at, group in enumerate(two_kinds().gpus)
    )
    tight = msgspec.structs.replace(two_kinds(), gpus=small, memory_bytes=10)
    with pytest.raises(InfeasibleError, match=r"each GPU would need .* more at least"):
        solve(row, tight, num_microbatches=2)


def test_gpu_groups_that_contradict_counts_or_memory_are_refused(tmp_path):
    machine = two_kinds(memory=500)
    save_cluster(machine, tmp_path / "cluster.json")
    assert load_cluster(tmp_path / "cluster.json") == machine
    short = msgspec.structs.replace(machine, gpus_per_node=3)
    with pytest.raises(ClusterError, match="gpus lists 2 GPUs, but 1 node of 3 would be 3"):
        check_cluster(short)
    save_cluster(msgspec.structs.replace(machine, memory_bytes=700), tmp_path / "wrong.json")
    with pytest.raises(ClusterError, match=r"memory_bytes is 700.*write 500"):
        load_cluster(tmp_path / "wrong.json")
    with pytest.raises(ClusterError, match="counts must add up"):
        solve(profile(chain_graph(layer("a"))), short)


def test_known_gpus_of_two_kinds_have_the_speeds_of_their_peak_rates():
    machine = mixed_cluster([("h100-sxm", 2), ("l40s", 2)], "h100-sxm", "bfloat16", nodes=2)
    first, second = machine.gpus
    assert (first.count, first.speed, second.name) == (2, 1.0, "l40s")
    assert second.speed == pytest.approx(362.05 / 989.4)
    assert machine.memory_bytes == second.memory_bytes < first.memory_bytes
    assert machine.intra_node.bandwidth == 32e9
    check_cluster(machine)
    with pytest.raises(ClusterError, match="no rate is known for float64"):
        mixed_cluster([("h100-sxm", 2)], "h100-sxm", "float64")


def test_a_search_does_not_try_all_of_gpus_with_different_memory():
    given = problem(chain_graph(layer("a"), layer("b")), 2, cluster=two_kinds(memory=500))
    alike = msgspec.structs.replace(given, cluster=two_kinds(memory=1000))
    assert all_tried([alike])
    assert not all_tried([alike, given])
