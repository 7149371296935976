import pytest

from autopart.errors import AutopartError
from autopart.records.demands import check_demands
from autopart.records.problem import Demands, Objective, Pin
from tests.support.problems import chain_graph, layer

GRAPH = chain_graph(*(layer(name) for name in ("embed", "block", "head")))


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        (Demands(num_stages=0), "0 stages: there must be at least 1"),
        (Demands(num_replicas=2, replicas_per_stage=True), "ask for one of them"),
        (Demands(stages_per_rank=2, replicas_per_stage=True), "2 stages per rank need equal replicas"),
        (Demands(schedules=("1f1b", "banana")), "schedule is one of gpipe, 1f1b, .*, not 'banana'"),
        (Demands(schedules=("chimera", "custom")), "own orders are not searched for two pipelines"),
        (Demands(schedules=("gems",), replicas_per_stage=True), "for replicas of their own, .*not 'gems'"),
        (Demands(schedules=()), "name at least one"),
        (Demands(schedules=("1f1b", "1f1b")), "each once"),
        (Demands(schedules=("zb-h1",), replicas_per_stage=True), "for replicas of their own, "),
        (Demands(pins=(Pin(layer="blok", stage=0),)), "no layer 'blok'; near it: block"),
        (Demands(same_stage=(("block", "x"),)), "no layer 'x'"),
        (Demands(different_stage=(("x", "block"),)), "no layer 'x'"),
        (Demands(recompute_layers=("x",)), "no layer 'x'"),
        (Demands(selective_layers=("x",)), "no layer 'x'"),
        (Demands(offload_layers=("x",)), "no layer 'x'"),
        (Demands(keep_layers=("x",)), "no layer 'x'"),
        (Demands(pins=(Pin(layer="block", stage=2),), num_stages=2), "count from 0 to 1"),
        (Demands(pins=(Pin(layer="block", stage=0), Pin(layer="block", stage=1))), "stands twice in one demand"),
        (Demands(different_stage=(("block", "block"),)), "'block' stands twice in one demand"),
        (Demands(same_stage=(("head", "block", "head"),)), "'head' stands twice"),
    ],
)  # fmt: skip
def test_impossible_demands_are_refused_with_a_reason(demands: Demands, message: str):
    with pytest.raises(AutopartError, match=message):
        check_demands(demands, "step", GRAPH)


def test_a_schedule_with_pairs_needs_a_profile_with_pair_times():
    demands = Demands(schedules=("1f1b", "paired-1f1b"))
    with pytest.raises(AutopartError, match=r"'paired-1f1b' runs .* 'autopart profile --pairs'"):
        check_demands(demands, "step", GRAPH)
    check_demands(demands, "step", chain_graph(layer("a"), layer("b", pair_time=2.5)))
    with pytest.raises(AutopartError, match="for the bottleneck, schedule is one of"):
        check_demands(demands, "bottleneck", chain_graph(layer("a", pair_time=2.5)))


@pytest.mark.parametrize(
    ("demands", "message"),
    [
        (Demands(replicas_per_stage=True), "the bottleneck needs equal replicas"),
        (Demands(schedules=("zbv",)), "for the bottleneck, schedule is one of gpipe, 1f1b"),
    ],
)
def test_the_bottleneck_has_demands_of_its_own(demands: Demands, message: str):
    with pytest.raises(AutopartError, match=message):
        check_demands(demands, "bottleneck", GRAPH)


@pytest.mark.parametrize("objective", ["step", "bottleneck"])
def test_possible_demands_pass(objective: Objective):
    pins = (Pin(layer="embed", stage=0), Pin(layer="head", stage=1))
    check_demands(Demands(num_stages=2, pins=pins), objective, GRAPH)
    check_demands(Demands(same_stage=(("embed", "block"),)), objective, GRAPH)
