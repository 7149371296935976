"""Layers with sharded state, by hand: bytes that stay, bytes that are whole for a while, and exposed messages."""

from typing import Any

import msgspec
import pytest

from autopart.cost.chosen_groups import problem_of_choice
from autopart.cost.sharded_state import sharded_variant
from autopart.records.cluster import Link
from autopart.records.group_choice import GroupChoice
from autopart.records.layer_graph import Layer, LayerGraph, Recompute, SplitBackward, TiedParameter
from autopart.records.rank_group import Group, Reduce, Shard
from autopart.records.training import Training
from tests.support.problems import chain_graph, cluster, layer, problem, profile

WHOLE = {"param_bytes": 400, "grad_bytes": 400, "num_trainable": 100, "workspace_bytes": 7}
GRAPH = chain_graph(
    layer("a", **WHOLE, buffer_bytes=3, update_time=9.0, unshared_update_time=1.0),
    layer("b"),
    layer("c", **(WHOLE | {"param_bytes": 1000}), backward_workspace_bytes=20),
)
"""The second layer has no parameters, and the third some that are not trained."""


def group(shard: Shard = "zero3", data: int = 4, reduce: Reduce = "microbatch") -> Group:
    return Group(data=data, shard=shard, reduce=reduce)


def sharded(graph: LayerGraph, of: Group, training: Training | None = None) -> tuple[Layer, ...]:
    return sharded_variant(graph, (), of, training or Training()).graph.layers


def test_each_gpu_keeps_its_part_rounded_up():
    a, b, c = sharded(GRAPH, group(data=8))
    assert (a.param_bytes, a.grad_bytes, a.num_trainable, a.buffer_bytes) == (50, 50, 13, 3)
    assert c.param_bytes == 125 and b == msgspec.structs.replace(
        GRAPH.layers[1], workspace_bytes=b.workspace_bytes
    )
    assert sharded(GRAPH, group("zero2"))[0].param_bytes == 400
    assert a.update_time == 1.0 + 8.0 / 8


def test_the_running_layer_and_the_next_one_are_whole():
    a, b, c = sharded(GRAPH, group())
    # Without a figure of its own the backward shares that of the forward: the larger one counts.
    # Forward: the weights of a and c. Backward: those of a, its gradients, and c's on their way into a quarter.
    assert a.workspace_bytes == 7 + max(400 + 1000, 400 + 400 + 400 + 100)
    assert b.workspace_bytes == max(1000, 400 + 400 + 100)
    # c is the last layer in forward, and the first in backward.
    assert (c.workspace_bytes, c.backward_workspace_bytes) == (7 + 1000, 20 + 1000 + 400 + 400)
    assert sharded(GRAPH, group("zero2"))[2].workspace_bytes == 7


def test_a_sum_once_per_step_keeps_whole_gradients_and_copies_none():
    a, _, c = sharded(GRAPH, group(reduce="step"))
    assert (a.grad_bytes, a.unscattered_grad_bytes) == (100, 300)
    assert c.backward_workspace_bytes == 20 + 1400
    mixed = Training(precision="bfloat16-mixed", gradient_dtype="float32")
    assert sharded(GRAPH, group(reduce="step"), mixed)[0].unscattered_grad_bytes == 4 * (100 - 25)


def test_a_tied_parameter_has_one_part_and_its_gradients_wait_whole():
    tied = TiedParameter(
        name="t", layers=("a", "c"), param_bytes=40, grad_bytes=40, num_trainable=10
    )
    graph = msgspec.structs.replace(GRAPH, tied=(tied,))
    variant = sharded_variant(graph, (), group(data=8), Training())
    (own,) = variant.graph.tied
    assert (own.param_bytes, own.grad_bytes, own.num_trainable) == (5, 5, 2)
    assert variant.graph.layers[0].param_bytes == 360 // 8 + 5
    a, b, c = sharded(graph, group("zero2", data=8))
    plain = sharded(GRAPH, group("zero2", data=8))
    # While b runs, c's gradient waits; a adds its own to it in a tensor of its own.
    extra = [
        mine.workspace_bytes - one.workspace_bytes
        for mine, one in zip((a, b, c), plain, strict=True)
    ]
    assert extra == [2 * 35, 35, 0]


def test_a_split_backward_gathers_in_i_and_scatters_in_w():
    split = SplitBackward(
        waiting_bytes=0,
        waiting_value_bytes=0,
        input_grad_workspace_bytes=3,
        weight_grad_workspace_bytes=5,
    )
    one = chain_graph(layer("a", **WHOLE, split_backward=split))
    own = sharded(one, group())[0].split_backward
    assert own is not None
    assert (own.input_grad_workspace_bytes, own.weight_grad_workspace_bytes) == (3 + 400, 5 + 400)


def timed(bandwidth: float, shard: Shard = "zero3", **fields: Any) -> Layer:
    """The layer of a group of 4 GPUs, where a ring's gather of 400 bytes takes 300 / bandwidth seconds."""
    graph = chain_graph(layer("a", **(WHOLE | {"workspace_bytes": 0} | fields)))
    links = cluster(1, 4, intra_node=Link(bandwidth=bandwidth))
    given = problem(graph, cluster=links, num_microbatches=4)
    return problem_of_choice(given, profile(graph), GroupChoice(group(shard))).graph.layers[0]


@pytest.mark.parametrize(
    ("bandwidth", "forward", "whole", "weights"),
    [(1000, 1.0, 2.0, 1.0), (150, 2.0, 4.0, 2.0), (200, 1.5, 3.0, 1.5), (375, 1.0, 2.0, 1.0)],
)
def test_compute_hides_messages_up_to_its_own_seconds(
    bandwidth: float, forward: float, whole: float, weights: float
):
    own = timed(bandwidth)
    assert own.forward_time == pytest.approx(forward)
    assert own.input_grad_time + own.weight_grad_time == pytest.approx(whole)
    assert own.weight_grad_time == pytest.approx(weights)
    # I alone takes its own second or the gather's.
    in_i = own.input_grad_time + own.split_time
    assert in_i == pytest.approx(max(1.0, 300 / bandwidth))


def test_zero2_gathers_weights_once_per_step():
    own = timed(100, "zero2", update_time=8.0)
    assert (own.forward_time, own.update_time) == (1.0, pytest.approx(8.0 / 4 + 3.0))
    assert own.input_grad_time + own.weight_grad_time == pytest.approx(3.0)


def test_a_recomputed_forward_hides_messages_too():
    # Whole: 2 s of compute under 3 s of messages; with 2 s more compute, 4 s in all.
    again = timed(200, recompute=Recompute(extra_time=2.0, stash_bytes=0)).recompute
    assert again is not None and again.extra_time == pytest.approx(1.5)
    fast = timed(1e9, recompute=Recompute(extra_time=2.0, stash_bytes=0)).recompute
    assert fast is not None and fast.extra_time == pytest.approx(2.0)


def test_a_group_has_a_share_of_the_microbatches_and_of_the_ranks():
    given = problem(GRAPH, cluster=cluster(2, 8), num_microbatches=16)
    own = problem_of_choice(given, profile(GRAPH), GroupChoice(group(data=4)))
    assert (own.microbatch_size, own.num_microbatches, own.cluster.gpus_per_node) == (4, 4, 2)
