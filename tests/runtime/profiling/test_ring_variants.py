"""Variants with a ring beside those that gather keys and values."""

import pytest

from autopart.records.group_variants import Collective, GroupVariant
from autopart.records.layer_graph import Layer
from autopart.records.profile import Profile
from autopart.records.rank_group import Group
from autopart.runtime.profiling.profiler import profile_model

pytestmark = pytest.mark.slow

LLAMA, ENCDEC = "zoo:llama-tiny", "zoo:encdec-tiny"


@pytest.fixture(scope="module")
def llama() -> Profile:
    return profile_model(
        LLAMA, microbatch_size=2, device="meta", gpu="h100-sxm", dtype="bfloat16", context=(4,)
    )


def pair(profile: Profile, degree: int) -> tuple[GroupVariant, GroupVariant]:
    """The variants of a context degree: with a gather, and with a ring."""
    gather, ring = (one for one in profile.variants if one.group.context == degree)
    return gather, ring


def layer(variant: GroupVariant, name: str) -> Layer:
    return next(one for one in variant.graph.layers if one.name == name)


def listed(variant: GroupVariant, name: str) -> tuple[Collective, ...]:
    return next(one.collectives for one in variant.collectives if one.layer == name)


def test_a_ring_keeps_one_block_in_place_of_all(llama: Profile) -> None:
    degree = 4
    gather, ring = pair(llama, degree)
    assert (gather.group, ring.group) == (
        Group(context=degree),
        Group(context=degree, exchange="ring"),
    )
    keys = listed(gather, "blocks.1")[0].bytes
    less = layer(gather, "blocks.1").stash_bytes - layer(ring, "blocks.1").stash_bytes
    assert less == keys - keys // degree
    # Recomputed layers keep neither.
    own, other = layer(gather, "blocks.1"), layer(ring, "blocks.1")
    assert own.recompute is not None and own.recompute == other.recompute
    assert own.selective is not None and own.selective == other.selective
    assert [one.bytes for one in listed(ring, "blocks.1") if one.kind == "ring"] == [keys, keys]


def test_seconds_are_those_of_the_variant_that_gathers(llama: Profile) -> None:
    gather, ring = pair(llama, 4)
    for one, other in zip(gather.graph.layers, ring.graph.layers, strict=True):
        assert one.forward_time == other.forward_time
        assert one.input_grad_time == other.input_grad_time
        assert one.weight_grad_time == other.weight_grad_time


def test_attention_is_a_part_of_a_layer_s_seconds(llama: Profile) -> None:
    _, ring = pair(llama, 4)
    own = layer(ring, "blocks.1")
    forward, backward = (c for c in listed(ring, "blocks.1") if c.kind == "ring")
    assert isinstance(forward.compute_time, float) and isinstance(backward.compute_time, float)
    assert 0 < forward.compute_time < own.forward_time
    assert 0 < backward.compute_time < own.input_grad_time
    assert all(
        c.kind != "ring"
        for one in ring.collectives
        if "blocks" not in one.layer
        for c in one.collectives
    )


def test_layers_that_gather_all_the_same_are_named() -> None:
    profile = profile_model(ENCDEC, microbatch_size=2, device="meta", gpu="h100-sxm", context=(2,))
    told = [w for w in profile.warnings if "ring" in w]
    assert told == [
        "context degree 2 with ring exchange: layer 'encoder.0': scaled_dot_product_attention has a mask of its own "
        "(and 5 more operations), and gathers"
    ]
    _, ring = pair(profile, 2)
    kinds = [c.kind for c in listed(ring, "decoder.1") if c.phase == "forward"]
    assert kinds == ["ring", "all_gather"]


def test_no_ring_where_no_attention_can_have_one() -> None:
    profile = profile_model(
        "zoo:mlp-tiny", microbatch_size=2, device="meta", gpu="h100-sxm", context=(2,)
    )
    assert [one.group for one in profile.variants] == [Group(context=2)]
    assert any(
        w.startswith("ring exchange is left out: context degree 2: no") for w in profile.warnings
    )
