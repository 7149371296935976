import msgspec
import pytest

from autopart.cost.cuts import stage_totals
from autopart.cost.in_flight import microbatches_in_flight, most_in_flight, stages_in_flight
from autopart.cost.links import send_time
from autopart.cost.stage_times import cut_links
from autopart.cost.syncs import all_reduce_time
from autopart.pricing import predict
from autopart.records.cluster import GpuGroup, Link
from autopart.records.layer_graph import Input, LayerGraph, TiedParameter
from autopart.records.layouts import Layout, own_microbatches
from autopart.schedules.actions import parse_order
from tests.support.problems import chain_graph, cluster, layer, problem, value


def test_a_send_takes_the_latency_per_tensor_and_all_bytes_over_the_bandwidth():
    assert send_time(Link(bandwidth=100.0, latency=0.5), 200, 3) == pytest.approx(3.5)


def test_an_all_reduce_on_one_rank_takes_no_time_and_on_two_sends_the_bytes_once():
    link = Link(bandwidth=10.0, latency=1.0)
    assert all_reduce_time(link, 100, 1) == 0
    assert all_reduce_time(link, 100, 2) == pytest.approx(2 * (1 + 5))
    slow = msgspec.structs.replace(link, all_reduce_factor=1.5)
    assert all_reduce_time(slow, 100, 2) == pytest.approx(1.5 * 2 * (1 + 5))


def test_gpipe_has_all_microbatches_in_flight_and_one_f_one_b_one_per_stage_behind():
    row = ((0,), (1,), (2,), (3,))
    assert (
        microbatches_in_flight(Layout(schedule="gpipe", stage_ranks=row, num_microbatches=9), 0)
        == 9
    )
    layout = Layout(schedule="1f1b", stage_ranks=row, num_microbatches=9)
    assert [microbatches_in_flight(layout, s) for s in range(4)] == [4, 3, 2, 1]
    assert microbatches_in_flight(msgspec.structs.replace(layout, num_microbatches=2), 0) == 2


def test_with_unequal_replicas_a_rank_has_enough_in_flight_for_all_ranks_behind():
    ranks = ((0, 1), (2,), (3, 4, 5))
    layout = Layout(schedule="1f1b", stage_ranks=ranks, num_microbatches=12)
    assert [microbatches_in_flight(layout, s) for s in range(3)] == [3, 4, 1]
    assert [own_microbatches(layout, s) for s in range(3)] == [6, 12, 4]
    gpipe = msgspec.structs.replace(layout, schedule="gpipe")
    assert [microbatches_in_flight(gpipe, s) for s in range(3)] == [6, 12, 4]


def test_an_output_with_two_consumers_crosses_a_cut_once():
    layers = (layer("a"), layer("b"), layer("c"))
    graph = LayerGraph(layers=layers, values=(value("a", "b", "c", bytes=10),))
    first, second = stage_totals(graph, ((0,), (1, 2)))
    assert first.sent.bytes == second.received.bytes == 10
    assert (first.sent.tensors, first.sent.grad_bytes) == (1, 10)


def test_a_skip_is_relayed_and_kept_by_every_stage_between_but_not_by_its_maker():
    layers = (layer("a"), layer("b"), layer("c"))
    values = (value("a", "b", bytes=10), value("b", "c", bytes=20))
    skip = value("a", "c", bytes=7, has_gradient=False)
    graph = LayerGraph(layers=layers, values=(*values, skip))
    first, middle, last = stage_totals(graph, ((0,), (1,), (2,)))
    assert (first.sent.bytes, middle.sent.bytes) == (17, 27)
    assert middle.sent.grad_bytes == 20
    assert (first.stash_bytes, middle.stash_bytes, last.stash_bytes) == (0, 10 + 7, 27)
    assert (first.output_bytes, middle.output_bytes, last.output_bytes) == (17, 20, 0)


def test_a_result_that_only_later_stages_need_is_an_output():
    layers = (layer("a"), layer("b"), layer("c"))
    both = value("a", "b", "c", bytes=10, kept_by=("b", "c"))
    graph = LayerGraph(layers=layers, values=(both,))
    first, last = stage_totals(graph, ((0,), (1, 2)))
    assert (first.stash_bytes, first.output_bytes, last.stash_bytes) == (0, 10, 10)
    first, last = stage_totals(graph, ((0, 1), (2,)))
    assert (first.stash_bytes, first.output_bytes, last.stash_bytes) == (10, 0, 10)


def test_a_value_inside_a_stage_is_kept_only_where_backward_needs_it():
    layers = (layer("a"), layer("b"), layer("c"))
    needed, free = value("a", "b", bytes=10, kept_by=("b",)), value("b", "c", bytes=20)
    graph = LayerGraph(layers=layers, values=(needed, free))
    (whole,) = stage_totals(graph, ((0, 1, 2),))
    assert whole.stash_bytes == whole.inner_stash_bytes == 10


def test_a_tied_parameter_counts_once_on_a_stage_and_once_on_each_of_two():
    sizes = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    tied = TiedParameter(name="w", layers=("a", "c"), **sizes)
    layers = (layer("a", **sizes), layer("b"), layer("c", **sizes))
    graph = LayerGraph(layers=layers, tied=(tied,))
    (whole,) = stage_totals(graph, ((0, 1, 2),))
    assert (whole.weight_bytes, whole.grad_bytes, whole.num_trainable) == (40, 40, 10)
    first, last = stage_totals(graph, ((0,), (1, 2)))
    assert (first.weight_bytes, last.weight_bytes) == (40, 40)


def test_an_input_that_two_layers_read_counts_once():
    mask = Input(name="mask", consumers=("a", "b"), bytes=5)
    graph = LayerGraph(layers=(layer("a"), layer("b")), inputs=(mask,))
    assert [s.input_bytes for s in stage_totals(graph, ((0, 1),))] == [5]
    assert [s.input_bytes for s in stage_totals(graph, ((0,), (1,)))] == [5, 5]


def test_peak_bytes_are_the_sum_over_kinds():
    fields = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10, "buffer_bytes": 3}
    graph = chain_graph(
        layer("a", stash_bytes=100, workspace_bytes=17, **fields), layer("b", workspace_bytes=9)
    )
    asked = problem(graph, 4, cluster=cluster(reserve_bytes=1000))
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1,)), num_microbatches=4)
    (first, last), syncs = predict(asked, layout, ((0,), (1,)))
    use = first.memory
    assert (use.weights, use.gradients, use.optimizer) == (43, 40, 80)
    assert (use.stash, use.workspace, use.reserve) == (2 * 100, 17, 1000)
    # Of two microbatches in flight both results may be under way.
    assert (use.receives, use.sends) == (8, 2 * 8)
    assert first.peak_bytes == 43 + 40 + 80 + 200 + 17 + 8 + 16 + 1000
    assert (last.in_flight, last.memory.receives, last.memory.sends) == (1, 8, 2 * 8)
    assert syncs == ()


def test_replicas_and_tied_stages_sync_over_their_slowest_link():
    sizes = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    tied = TiedParameter(name="w", layers=("a", "b"), **sizes)
    twice = {name: 2 * size for name, size in sizes.items()}
    graph = LayerGraph(layers=(layer("a", **twice), layer("b", **twice)), tied=(tied,))
    machine = cluster(2, 2, intra_node=Link(bandwidth=40.0), inter_node=Link(bandwidth=4.0))
    layout = Layout(schedule="1f1b", stage_ranks=((0, 1), (2, 3)), num_microbatches=2)
    _, syncs = predict(problem(graph, cluster=machine), layout, ((0,), (1,)))
    assert [(s.what, s.ranks) for s in syncs] == [
        ("stage 0", (0, 1)), ("stage 1", (2, 3)), ("w", (0, 1, 2, 3)),
    ]  # fmt: skip
    assert [s.time for s in syncs] == pytest.approx([1.0, 1.0, 15.0])


def test_a_cut_uses_the_slowest_link_of_its_replicas():
    machine = cluster(2, 3)
    assert cut_links(machine, ((0, 1), (2, 3))) == [machine.inter_node]
    assert cut_links(machine, ((0,), (1,), (3,))) == [machine.intra_node, machine.inter_node]
    assert cut_links(machine, ((0,), (1, 2), (0, 3))) == [machine.intra_node, machine.inter_node]
    assert cut_links(machine, ((0,), (0,))) == [None]


def test_a_stage_takes_the_time_of_its_slowest_gpu():
    kinds = (
        GpuGroup(count=2, name="new", memory_bytes=9),
        GpuGroup(count=2, name="old", memory_bytes=7, speed=0.5),
    )
    machine = cluster(1, 4, memory_bytes=7, gpus=kinds)
    layout = Layout(schedule="1f1b", stage_ranks=((0,), (1, 2), (3,)), num_microbatches=4)
    graph = chain_graph(*(layer(f"l{i}", update_time=0.25) for i in range(3)))
    stages, _ = predict(problem(graph, cluster=machine), layout, ((0,), (1,), (2,)))
    assert [s.forward_time for s in stages] == [1.0, 2.0, 2.0]
    assert [s.busy_time for s in stages] == [3.0, 6.0, 6.0]
    assert [s.update_time for s in stages] == [0.25, 0.5, 0.5]


def test_blocking_sends_add_to_the_busy_time_of_both_ranks():
    graph = chain_graph(layer("a"), layer("b"), layer("c"), num_bytes=10)
    slow = cluster(1, 3, intra_node=Link(bandwidth=100.0), sends_overlap=False, action_overhead=0.5)
    layout = Layout(schedule="gpipe", stage_ranks=((0,), (1,), (2,)), num_microbatches=4)
    stages, _ = predict(problem(graph, cluster=slow), layout, ((0,), (1,), (2,)))
    assert [s.busy_time for s in stages] == pytest.approx([4.2, 4.4, 4.2])


def test_the_replica_with_the_most_in_flight_counts_for_its_stage():
    """Microbatches 0 and 2 run one after the other, 1 and 3 side by side."""
    orders = (parse_order("0F0 0B0 0F2 0B2"), parse_order("0F1 0F3 0B1 0B3"))
    assert [most_in_flight(of) for of in stages_in_flight(orders, ((0, 1),))] == [2]
    split = (parse_order("0F0 0I0 0F2 0W0 0I2 0W2"), parse_order("0F1 0B1 0F3 0B3"))
    assert [most_in_flight(of) for of in stages_in_flight(split, ((0, 1),))] == [2]
