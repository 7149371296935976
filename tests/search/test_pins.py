import itertools
import json
import random

import msgspec
import pytest

from autopart.certificate.verify import verify
from autopart.cli.main import exit_code
from autopart.errors import AutopartError, InfeasibleError
from autopart.records.layouts import layouts, shapes
from autopart.records.problem import Demands
from autopart.records.profile import save_profile
from autopart.search.planner import solve
from tests.support.oracle import layout_stages, partitions, step_time
from tests.support.problems import chain_graph, cluster, layer, profile, random_problem
from tests.support.seeds import seeds

ROW = profile(chain_graph(*(layer(f"l{i}") for i in range(6))))


def homes(plan) -> dict[str, int]:
    return {name: index for index, stage in enumerate(plan.stages) for name in stage.layers}


@pytest.mark.parametrize("solver", ["auto", "ilp"])
def test_pins_are_obeyed_even_if_they_cost_time(solver: str):
    plan = solve(
        ROW, cluster(1, 2), num_microbatches=8, num_stages=2, pins={"l4": 0}, solver=solver
    )
    assert homes(plan)["l4"] == 0
    plan = solve(
        ROW,
        cluster(1, 2),
        num_microbatches=8,
        num_stages=2,
        same_stage=[("l0", "l4")],
        solver=solver,
    )
    assert homes(plan)["l0"] == homes(plan)["l4"]
    plan = solve(
        ROW,
        cluster(1, 2),
        num_microbatches=8,
        num_stages=2,
        different_stage=[("l4", "l5")],
        solver=solver,
    )
    assert homes(plan)["l4"] != homes(plan)["l5"]


def test_contradicting_pins_are_infeasible():
    with pytest.raises(InfeasibleError, match=r"no partition into .* keeps --pin"):
        solve(ROW, cluster(1, 2), num_microbatches=8, num_stages=2, pins={"l0": 1})


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ({"l9": 0}, "no layer 'l9'; near it: l0, l1, l2"),
        ({"l1": 2}, "pinned to stage 2; stages count from 0 to 1"),
    ],
)
def test_an_invalid_pin_is_refused(pins: dict[str, int], message: str):
    with pytest.raises(AutopartError, match=message):
        solve(ROW, cluster(1, 2), num_microbatches=8, num_stages=2, pins=pins)


def test_verify_refuses_a_plan_that_breaks_its_pin():
    plan = solve(ROW, cluster(1, 2), num_microbatches=8, num_stages=2, pins={"l4": 0})
    demands = msgspec.structs.replace(
        plan.demands, pins=(msgspec.structs.replace(plan.demands.pins[0], stage=1),)
    )
    check = verify(msgspec.structs.replace(plan, demands=demands), ROW)[-1]
    assert not check.passed and "pinned to stage 1, but on stage 0" in check.detail


def drawn(rng: random.Random, names: list[str], num_stages: int) -> dict[str, object]:
    chosen = rng.sample(names, min(2, len(names)))
    if len(chosen) < 2 or rng.random() < 0.4:
        return {"pins": {chosen[0]: rng.randrange(num_stages)}}
    return {rng.choice(["same_stage", "different_stage"]): [tuple(chosen)]}


def keeps(partition, names: list[str], pins) -> bool:
    home = {names[at]: index for index, stage in enumerate(partition) for at in stage}
    groups = {kind: pins.get(kind, []) for kind in ("same_stage", "different_stage")}
    return (
        all(home[name] == stage for name, stage in pins.get("pins", {}).items())
        and all(home[a] == home[b] for a, b in groups["same_stage"])
        and all(home[a] != home[b] for a, b in groups["different_stage"])
    )


@pytest.mark.parametrize("seed", seeds(6, 60))
def test_a_plan_with_pins_is_the_fastest_that_obeys_them(seed: int):
    rng = random.Random(seed)
    asked = random_problem(rng, branching=rng.random() < 0.5, tight=False)
    names = [la.name for la in asked.graph.layers]
    gpus = asked.cluster.num_nodes * asked.cluster.gpus_per_node
    num_stages = rng.randint(1, min(len(names), gpus))
    pins = drawn(rng, names, num_stages)
    demanded = msgspec.structs.replace(asked, demands=Demands(num_stages=num_stages))
    times = [
        step_time(demanded, layout, partition)
        for layout in itertools.chain(*(layouts(demanded, *shape) for shape in shapes(demanded)))
        for partition in partitions(demanded, layout_stages(layout))
        if keeps(partition, names, pins)
    ]
    fast = min((time for time in times if time is not None), default=None)
    given = profile(asked.graph)
    try:
        plan = solve(
            given,
            asked.cluster,
            num_microbatches=asked.num_microbatches,
            num_stages=num_stages,
            **pins,
        )  # pyright: ignore
    except InfeasibleError:
        assert fast is None
        return
    assert plan.prediction.step_time == pytest.approx(fast, rel=1e-9)
    assert all(check.passed for check in verify(plan, given))


def test_stages_with_replicas_of_their_own_keep_pins_too():
    own = {"num_microbatches": 4, "replicas_per_stage": True}
    plan = solve(ROW, cluster(1, 3), pins={"l4": 0}, **own)
    assert "l4" in plan.stages[0].layers
    with pytest.raises(InfeasibleError):
        # No layer lies ahead of the first one.
        solve(ROW, cluster(1, 3), pins={"l0": 1}, **own)


def test_pins_are_typed_on_the_command_line(tmp_path, capsys):
    save_profile(ROW, tmp_path / "row.json")
    typed = (
        f"solve --profile {tmp_path}/row.json --gpus 2 --stages 2 --json -o {tmp_path}/plan.json"
    )
    assert exit_code([*typed.split(), "--pin", "l4=0", "--different-stage", "l4,l5"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert "l4" in stages[0]["layers"] and "l5" in stages[1]["layers"]
    assert exit_code([*typed.split(), "--pin", "l4"]) == 2
    assert "write a layer and a stage: head=3" in capsys.readouterr().err
