"""Every reason why nothing fits is true: without the cause that it names, it is gone."""

import random
import re

import msgspec
import pytest

from autopart.cost.cuts import all_cuts
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.cluster import GpuGroup, HostLink, load_cluster
from autopart.records.problem import CLASSIC, Demands, Pin, Problem
from autopart.records.profile import load_profile
from autopart.records.training import Training
from autopart.search.conflicts import (
    as_typed,
    conflicting_demands,
    layer_demands,
    with_layer_demands,
)
from autopart.search.infeasible import why_infeasible
from autopart.search.microbatch_sizes import search_sizes
from autopart.search.planner import solve
from autopart.stopping.time_limit import deadline_in
from tests.activations.test_frontier import some_host, with_recompute_costs
from tests.support.oracle import every_layout, layout_stages, partitions, step_time
from tests.support.problems import chain_graph, cluster, layer, profile, random_problem
from tests.support.seeds import seeds
from tests.support.shared_data import CASES, needs_cases

UNLIMITED = 1 << 50


def reason(asked: Problem) -> str | None:
    """The reason why nothing fits; None where a plan is found."""
    try:
        found = search_sizes([asked], "auto", deadline_in(120))
    except InfeasibleError as error:
        return str(error)
    if found.best is not None:
        return None
    assert found.certain, "a small problem is searched whole"
    return str(why_infeasible(asked, "auto"))


def on(asked: Problem, **fields: object) -> Problem:
    """The problem on a cluster with other fields."""
    return msgspec.structs.replace(asked, cluster=msgspec.structs.replace(asked.cluster, **fields))


def with_memory(asked: Problem, memory_bytes: int) -> Problem:
    """The problem with other memory on every GPU."""
    groups = tuple(
        msgspec.structs.replace(group, memory_bytes=memory_bytes) for group in asked.cluster.gpus
    )
    return on(asked, memory_bytes=memory_bytes, gpus=groups)


def some_demands(rng: random.Random, asked: Problem) -> Demands:
    """Random demands of every kind; many contradict each other or the memory."""
    names = [la.name for la in asked.graph.layers]

    def groups() -> tuple[tuple[str, ...], ...]:
        few = rng.random() < 0.3 and len(names) > 1
        return (tuple(rng.sample(names, rng.randint(2, min(3, len(names))))),) if few else ()

    pinned = rng.sample(names, min(len(names), rng.choice([0, 0, 1, 2])))
    return Demands(
        num_stages=rng.choice([None, None, None, 2]),
        replicas_per_stage=rng.random() < 0.3,
        schedules=CLASSIC,
        pins=tuple(Pin(layer=name, stage=rng.choice([0, 0, 1])) for name in pinned),
        same_stage=groups(),
        different_stage=groups(),
        recompute=rng.choice(["never", "never", "auto", "always"]),
        offload=rng.choice(["never", "never", "auto", "always"]),
        offload_optimizer=rng.choice(["never", "never", "auto", "always"]),
    )


def random_asked(seed: int) -> Problem:
    """A random problem with little memory and many demands."""
    rng = random.Random(seed)
    asked = random_problem(rng, branching=seed % 3 == 0, tight=True)
    graph = with_recompute_costs(rng, asked.graph, alike=False)
    training = rng.choice([Training(), Training(zero1=True)])
    demands = some_demands(rng, asked)
    if demands.offload == "always" and demands.recompute == "always":
        demands = msgspec.structs.replace(demands, recompute="never")
    asked = msgspec.structs.replace(asked, graph=graph, training=training, demands=demands)
    asked = on(
        asked,
        host_link=some_host(rng, graph),
        host_memory_bytes=rng.choice([None, rng.randrange(2000)]),
    )
    gpus = asked.cluster.gpus_per_node * asked.cluster.num_nodes
    if rng.random() < 0.3 and gpus > 1:
        size = asked.cluster.memory_bytes
        groups = (
            GpuGroup(count=1, name="a", memory_bytes=size, speed=1.0),
            GpuGroup(count=gpus - 1, name="b", memory_bytes=int(1.2 * size) + 1, speed=0.7),
        )
        asked = on(asked, gpus=groups)
    return asked


def some_plan_keeps_all(asked: Problem) -> bool:
    """Whether some plan fits and keeps all demands on layers, by trying each."""
    names = [la.name for la in asked.graph.layers]
    demands = asked.demands
    for layout in every_layout(asked):
        for partition in partitions(asked, layout_stages(layout)):
            home = {names[at]: s for s, own in enumerate(partition) for at in own}
            kept = all(home[pin.layer] == pin.stage for pin in demands.pins)
            kept &= all(len({home[name] for name in own}) == 1 for own in demands.same_stage)
            kept &= all(
                len({home[name] for name in own}) == len(own) for own in demands.different_stage
            )
            if kept and step_time(asked, layout, partition) is not None:
                return True
    return False


def check_conflict(asked: Problem, said: str) -> None:
    """The named demands contradict each other, and no fewer of them do, whatever the memory."""
    conflict = conflicting_demands(asked, all_cuts(asked.graph))
    assert as_typed(conflict) in said
    roomy = on(with_memory(asked, UNLIMITED), host_memory_bytes=None)
    assert reason(with_layer_demands(roomy, conflict)) is not None
    for demand in conflict:
        fewer = [other for other in conflict if other is not demand]
        assert reason(with_layer_demands(roomy, fewer)) is None, (said, fewer)


def check_reason(asked: Problem, said: str) -> str:
    """Remove the cause that a reason names; returns the kind of the reason."""
    limit = asked.cluster.memory_bytes
    size = re.search(r"\((\d+) bytes\)", said)
    if said.startswith("no partition into"):
        check_conflict(asked, said)
        return "conflict"
    if "share of its host" in said:
        # More memory on the devices may help too, where the error says so.
        assert "more memory" in said or reason(with_memory(asked, UNLIMITED)) is not None
        without = reason(on(asked, host_memory_bytes=None))
        assert without is None or "share of its host" not in without, said
        return "host"
    if "the least that would do is" in said:
        assert size is not None
        assert reason(on(asked, memory_bytes=int(size[1]))) is None, said
        assert reason(on(asked, memory_bytes=int(size[1]) - 1)) is not None, said
        return "least"
    if ") would do" in said:
        assert size is not None
        assert reason(on(asked, memory_bytes=int(size[1]))) is None, said
        return "would do"
    if "is needed" in said:
        assert size is not None
        assert limit < int(size[1])
        assert reason(on(asked, memory_bytes=int(size[1]) - 1)) is not None, said
        return "at least"
    if "more at least" in said:
        assert size is not None
        more = int(size[1]) - 1
        groups = tuple(
            msgspec.structs.replace(group, memory_bytes=group.memory_bytes + more)
            for group in asked.cluster.gpus
        )
        assert reason(on(asked, memory_bytes=limit + more, gpus=groups)) is not None, said
        return "each GPU"
    if said.startswith("no partition that fits keeps"):
        assert reason(with_layer_demands(asked, ())) is None, said
        return "conflict and memory"
    if said.startswith("nothing fits into GPUs"):
        assert reason(with_memory(asked, UNLIMITED)) is None, said
        return "row of GPUs"
    if said.startswith("no plan keeps all demands"):
        roomy = on(with_memory(asked, UNLIMITED), host_memory_bytes=None)
        assert reason(with_layer_demands(roomy, ())) is None, said
        return "all together"
    assert re.search("cannot be made|cannot be used", said), said
    return "counts"


@pytest.mark.slow
@pytest.mark.parametrize("block", seeds(1, 40, slow=3))
def test_without_the_cause_that_a_reason_names_the_reason_is_gone(block: int) -> None:
    kinds = []
    for seed in range(15 * block, 15 * block + 15):
        asked = random_asked(seed)
        said = reason(asked)
        if said is None:
            continue
        assert "cannot be" in said or not some_plan_keeps_all(asked), (seed, said)
        kinds.append(check_reason(asked, said))
    assert kinds


def chain_of_four() -> Problem:
    graph = chain_graph(*(layer(f"l{at}", stash_bytes=10) for at in range(4)))
    base = random_problem(random.Random(0), branching=False, tight=False)
    return msgspec.structs.replace(
        base, graph=graph, cluster=cluster(1, 2), num_microbatches=8, demands=Demands()
    )


def test_a_conflict_names_only_the_demands_that_contradict_each_other() -> None:
    demands = Demands(
        pins=(Pin(layer="l0", stage=0), Pin(layer="l3", stage=1)),
        same_stage=(("l0", "l3"), ("l1", "l2")),
    )
    asked = msgspec.structs.replace(chain_of_four(), demands=demands)
    conflict = conflicting_demands(asked, all_cuts(asked.graph))
    assert as_typed(conflict) == "--pin l3=1 and --same-stage l0,l3"
    assert len(layer_demands(demands)) == 4


def test_a_group_larger_than_the_number_of_stages_is_named_with_that_number() -> None:
    demands = Demands(different_stage=(("l0", "l1", "l2"),))
    said = reason(msgspec.structs.replace(chain_of_four(), demands=demands))
    assert said == ("no partition into 1 to 2 stages keeps --different-stage l0,l1,l2; drop it")


def test_stages_per_rank_that_no_schedule_has_are_the_reason() -> None:
    given = profile(chain_of_four().graph)
    with pytest.raises(InfeasibleError, match="suits the schedules gpipe, 1f1b with the stages"):
        solve(given, cluster(1, 2), num_microbatches=8, stages_per_rank=2)


def test_offload_under_a_bidirectional_schedule_is_refused_with_its_name() -> None:
    asked = random_asked(1)
    machine = on(asked, gpus=(), memory_bytes=UNLIMITED, host_link=HostLink(bandwidth=1e9)).cluster
    words = {"num_microbatches": 8, "schedule": "chimera"}
    for field in ("offload", "offload_optimizer"):
        with pytest.raises(AutopartError, match="nothing is offloaded under chimera, only where"):
            solve(profile(asked.graph), machine, **words, **{field: "always"})  # pyright: ignore


def test_a_first_stage_that_bounds_let_fit_alone_does_not_hide_another_plan() -> None:
    # Bounds let ranks be passed over, so they count one microbatch in flight on l0: 260 bytes. With
    # two it needs 360. One stage on two replicas shares its optimizer state and needs 340.
    state = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    graph = chain_graph(layer("l0", stash_bytes=100, **state), layer("l1", **state), num_bytes=0)
    groups = (
        GpuGroup(count=1, name="a", memory_bytes=345),
        GpuGroup(count=1, name="b", memory_bytes=345, speed=0.7),
    )
    machine = cluster(1, 2, memory_bytes=345, gpus=groups)
    plan = solve(profile(graph), machine, num_microbatches=3, replicas_per_stage=True, zero1=True)
    assert [len(stage.ranks) for stage in plan.stages] == [2]
    assert max(plan.prediction.rank_peak_bytes) == 340


@needs_cases
def test_replicas_per_stage_with_sharded_state_fit_where_one_stage_on_three_ranks_does() -> None:
    given = load_profile(CASES / "fi.profile.json")
    machine = load_cluster(CASES / "fi.cluster.json")
    plan = solve(given, machine, replicas_per_stage=True, zero1=True, global_batch=5)
    assert len(plan.stages) == 1
    assert max(plan.prediction.rank_peak_bytes) <= 370
