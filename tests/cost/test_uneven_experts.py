"""Layers of the GPU with the fullest experts, against figures by hand."""

import msgspec
import pytest

from autopart.cost.uneven_experts import with_load
from autopart.errors import AutopartError
from autopart.records.expert_load import LayerLoad
from autopart.records.group_variants import GroupVariant
from autopart.records.layer_graph import Layer, Recompute, SplitBackward
from autopart.records.microbatch_sizes import scale_profile
from tests.support.expert_profiles import BACK, COUNTS, EXPERTS, LOADED, SENT, SUM, with_experts

(VARIANT,) = with_experts().variants


def experts(variant: GroupVariant) -> Layer:
    return variant.graph.layers[1]


def test_the_experts_part_grows_with_the_imbalance_and_all_else_stays():
    found = with_load(VARIANT, 1.5)
    own = experts(found)
    assert (own.forward_time, own.input_grad_time, own.weight_grad_time) == (2.5, 3.75, 1.125)
    assert (own.stash_bytes, own.workspace_bytes, own.backward_workspace_bytes) == (1300, 230, 351)
    assert own.recompute == Recompute(extra_time=2.0, stash_bytes=100)
    assert (own.param_bytes, own.grad_bytes) == (80, 80)
    assert found.graph.layers[0] == VARIANT.graph.layers[0]
    assert found.graph.values == VARIANT.graph.values


def test_the_fullest_gpu_gets_and_sends_back_more_entries():
    (own,) = with_load(VARIANT, 1.25).collectives
    assert [one.bytes for one in own.collectives] == [64, 1250, 1250, 1250, 1250, 500]
    assert [one.kind for one in own.collectives] == [
        one.kind for one in (COUNTS, SENT, SENT, BACK, BACK, SUM)
    ]


def test_at_both_ends_a_layer_is_the_one_that_was_profiled():
    assert with_load(VARIANT, msgspec.UNSET) == VARIANT
    assert with_load(VARIANT, 1.0) == VARIANT
    for asked in (2.0, 8.0):
        assert experts(with_load(VARIANT, asked)) == LOADED


def test_seconds_follow_the_mean_and_bytes_the_largest_imbalance():
    load = LayerLoad(layer="experts", expert=2, imbalance=1.25, largest=2.0)
    own = experts(with_load(VARIANT, (load,)))
    assert own.forward_time == 2.25 and own.stash_bytes == 1600
    (variant,) = with_experts(loads=[load]).variants
    assert with_load(variant, "measured").graph == with_load(VARIANT, (load,)).graph


def test_a_measurement_that_scatters_makes_no_layer_faster():
    faster = msgspec.structs.replace(LOADED, forward_time=1.9, stash_bytes=900)
    own = experts(with_load(with_experts([faster]).variants[0], 2.0))
    assert own.forward_time == 2.0 and own.stash_bytes == 1000


def test_pairs_and_split_backwards_lie_on_the_line_too():
    def split(size: int) -> SplitBackward:
        return SplitBackward(
            waiting_bytes=size,
            waiting_value_bytes=0,
            input_grad_workspace_bytes=2 * size,
            weight_grad_workspace_bytes=7,
        )

    balanced = msgspec.structs.replace(EXPERTS, pair_time=5.0, split_backward=split(10))
    loaded = msgspec.structs.replace(LOADED, pair_time=7.0, split_backward=split(30))
    graph = msgspec.structs.replace(VARIANT.graph, layers=(VARIANT.graph.layers[0], balanced))
    own = experts(
        with_load(msgspec.structs.replace(with_experts([loaded]).variants[0], graph=graph), 1.5)
    )
    assert own.pair_time == 6.0 and own.split_backward == split(20)
    # A pair takes at most both in turn: 2.5 s of F and 4.875 s of B.
    late = msgspec.structs.replace(loaded, pair_time=8.75)
    most = msgspec.structs.replace(balanced, pair_time=6.0)
    graph = msgspec.structs.replace(VARIANT.graph, layers=(VARIANT.graph.layers[0], most))
    variant = msgspec.structs.replace(with_experts([late]).variants[0], graph=graph)
    assert experts(with_load(variant, 1.5)).pair_time == 7.375


def test_other_samples_have_other_entries():
    variant = scale_profile(with_experts(), 8).variants[0]
    own = experts(with_load(variant, 1.5))
    assert own.forward_time == 5.0 and own.stash_bytes == 2600


def test_profiles_that_say_nothing_of_other_loads_are_refused():
    with pytest.raises(AutopartError, match="layer 'experts' under balanced load only; profile"):
        with_load(with_experts([]).variants[0], 1.5)
    with pytest.raises(AutopartError, match="every expert of the model sees every token"):
        with_load(with_experts(sent=0).variants[0], 1.5)
    with pytest.raises(AutopartError, match="no measured imbalance for expert degree 2"):
        with_load(VARIANT, "measured")
