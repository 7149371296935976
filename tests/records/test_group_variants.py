import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autopart.errors import FileError, ProfileError
from autopart.records.expert_load import LayerLoad
from autopart.records.files import encode
from autopart.records.group_variants import (
    Collective,
    GroupVariant,
    LayerCollectives,
    LoadedLayers,
    check_variants,
    groups_listed,
)
from autopart.records.layer_graph import LayerGraph
from autopart.records.microbatch_sizes import check_same_model, scale_profile
from autopart.records.profile import Profile, load_profile, profile_hash, save_profile
from autopart.records.rank_group import Group
from tests.support.expert_profiles import LOADED, with_experts
from tests.support.problems import chain_graph, layer, profile

LOAD = LayerLoad(layer="experts", expert=2, imbalance=1.5, largest=1.6)
WHOLE = chain_graph(layer("a", stash_bytes=8), layer("b"))
SHARD = chain_graph(layer("a", stash_bytes=4), layer("b", forward_time=0.5))
SUM = Collective(kind="all_reduce", bytes=100, phase="forward", recomputed=True)
NORMS = Collective(kind="all_reduce", bytes=6, phase="step")
TWO, SPLIT = Group(tensor=2), Group(tensor=2, sequence_parallel=True)


def variant(group: Group = TWO, **changed: Any) -> GroupVariant:
    own: dict[str, Any] = {
        "group": group,
        "graph": SHARD,
        "collectives": (LayerCollectives(layer="a", collectives=(SUM, NORMS)),),
    }
    return GroupVariant(**(own | changed))


def with_variants(*variants: GroupVariant) -> Profile:
    return msgspec.structs.replace(profile(WHOLE), variants=variants)


def of(**changed: Any) -> tuple[LayerCollectives, ...]:
    own: dict[str, Any] = {"kind": "all_reduce", "bytes": 1, "phase": "forward"}
    one = Collective(**(own | changed))
    return (LayerCollectives(layer="a", collectives=(one,)),)


def test_a_profile_with_variants_survives_its_file(tmp_path: Path):
    made = with_variants(variant(), variant(SPLIT), variant(Group(tensor=4)))
    save_profile(made, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == made


def test_a_profile_of_version_2_loads_without_variants_and_keeps_its_hash(tmp_path: Path):
    tree = json.loads(encode(profile(WHOLE))) | {"version": 2}
    del tree["variants"]
    (tmp_path / "profile.json").write_text(json.dumps(tree))
    loaded = load_profile(tmp_path / "profile.json")
    assert loaded == profile(WHOLE)
    assert profile_hash(loaded) == profile_hash(profile(WHOLE))


def test_the_hash_covers_each_variant():
    hashes = {
        profile_hash(one)
        for one in (
            with_variants(),
            with_variants(variant()),
            with_variants(variant(collectives=())),
            with_variants(variant(), variant(Group(tensor=4))),
        )
    }
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"graph": chain_graph(layer("a"))}, "it has 1 layer, the profile 2"),
        ({"graph": chain_graph(layer("a"), layer("c"))}, "layer 1 is 'c', in the profile 'b'"),
        (
            {"graph": chain_graph(msgspec.structs.replace(layer("a"), kind="loss"), layer("b"))},
            "layer 'a' has another kind or other connections in the profile",
        ),
        ({"graph": LayerGraph(layers=SHARD.layers)}, "it has 0 values, the profile 1"),
        (
            {"graph": LayerGraph(layers=SHARD.layers[::-1])},
            "layer 0 is 'b', in the profile 'a'",
        ),
        ({"collectives": of() + of()}, "layer 'a' has two lists of collectives"),
        (
            {"collectives": (LayerCollectives(layer="x", collectives=()),)},
            "collectives name an unknown layer 'x'",
        ),
        ({"collectives": of(beneath="weight_grad")}, "beneath W, but belongs to forward"),
        ({"collectives": of(phase="step", recomputed=True)}, "recomputed, but belongs to step"),
        ({"graph": chain_graph(layer("a"), layer("b", grad_bytes=9))}, "layer 'b' has 9 bytes of"),
    ],
)
def test_a_variant_that_contradicts_itself_or_its_profile_is_refused(
    changed: dict[str, Any], message: str
):
    with pytest.raises(ProfileError, match=rf"^p.json: tensor degree 2: .*{message}"):
        check_variants(WHOLE, [variant(**changed)], "p.json")


def test_a_degree_stands_once_with_each_word_on_sequence_parallelism(tmp_path: Path):
    save_profile(with_variants(variant(), variant(SPLIT)), tmp_path / "p.json")
    with pytest.raises(
        ProfileError, match="tensor degree 2 with sequence parallelism stands twice"
    ):
        save_profile(with_variants(*[variant(SPLIT)] * 2), tmp_path / "p.json")


def test_a_group_of_1_is_refused_with_its_place(tmp_path: Path):
    path = tmp_path / "profile.json"
    text = encode(with_variants(variant())).decode()
    path.write_text(text.replace('"tensor": 2', '"tensor": 1'))
    with pytest.raises(
        FileError, match=r"1 GPU: leave the group out - at `\$.variants\[0\].group`"
    ):
        load_profile(path)


def test_a_variant_is_scaled_with_its_profile_but_for_collectives_once_per_step():
    scaled = scale_profile(with_variants(variant()), 3 * profile(WHOLE).microbatch_size)
    (own,) = scaled.variants
    assert own.graph == scale_profile(profile(SHARD), scaled.microbatch_size).graph
    assert [one.bytes for one in own.collectives[0].collectives] == [300, 6]


def test_profiles_with_different_degrees_do_not_belong_together():
    other = msgspec.structs.replace(with_variants(variant()), microbatch_size=7)
    with pytest.raises(ProfileError, match="list of tensor degrees is 1 and 1, 2"):
        check_same_model([profile(WHOLE), other])


def test_variants_of_version_3_load_and_keep_their_hash(tmp_path: Path):
    """A version 3 file had a degree and a word in place of the group; the hash is from that version's code."""
    made = with_variants(variant(), variant(SPLIT))
    tree = json.loads(encode(made)) | {"version": 3}
    for one in tree["variants"]:
        group = one.pop("group")
        one |= {"degree": group["tensor"], "sequence_parallel": "sequence_parallel" in group}
    (tmp_path / "p.json").write_text(json.dumps(tree))
    assert load_profile(tmp_path / "p.json") == made
    assert profile_hash(made) == "b23c6e8d870ac31c"


def test_variants_with_a_context_degree_survive_a_file_and_have_a_hash_of_their_own(
    tmp_path: Path,
):
    keys = Collective(kind="all_gather", bytes=4, phase="forward", among="context")
    of_context = variant(
        Group(tensor=2, context=2),
        collectives=(LayerCollectives(layer="a", collectives=(SUM, keys)),),
    )
    made = with_variants(variant(), of_context)
    save_profile(made, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == made
    assert profile_hash(made) != profile_hash(with_variants(variant()))
    assert groups_listed(made.variants) == "1, 2, tensor degree 2 and context degree 2"


def test_collectives_are_among_gpus_that_the_group_has(tmp_path: Path):
    with pytest.raises(ProfileError, match=r"collective 0 of layer 'a' is among .context., and"):
        save_profile(with_variants(variant(collectives=of(among="context"))), tmp_path / "p.json")


def test_a_profile_has_no_sharded_state(tmp_path: Path):
    sharded = Group(tensor=2, data=2, shard="zero2", reduce="step")
    with pytest.raises(ProfileError, match="a profile has no variant with sharded state"):
        save_profile(with_variants(variant(sharded)), tmp_path / "p.json")


def test_a_profile_with_loads_survives_its_file(tmp_path: Path):
    made = with_experts(loads=[LOAD])
    save_profile(made, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == made


def test_a_variant_without_loads_keeps_the_hash_of_older_profiles():
    # Written before profiles had loads.
    assert b"load" not in encode(with_variants(variant()))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"imbalance": 2.5}, "loaded layers have an imbalance of 2.5; it is above 1, and at most"),
        ({"imbalance": 1.0}, "loaded layers have an imbalance of 1; it is above 1"),
        ({"layers": (layer("other"),)}, "loaded layer 'other' is unknown, of another kind"),
        (
            {"layers": (LOADED, LOADED)},
            "loaded layer 'experts' is unknown, of another kind, or stands",
        ),
        (
            {"layers": (msgspec.structs.replace(LOADED, grad_bytes=100),)},
            "loaded layers: layer 'experts' has 100 bytes of gradients",
        ),
    ],
)
def test_impossible_loaded_layers_are_found(changed: dict[str, Any], message: str):
    made = with_experts()
    (one,) = made.variants
    given: dict[str, Any] = {"imbalance": 2.0, "layers": (LOADED,)}
    loaded = LoadedLayers(**(given | changed))
    with pytest.raises(ProfileError, match=message):
        check_variants(made.graph, (msgspec.structs.replace(one, loaded=loaded),), "file")


@pytest.mark.parametrize(
    "changed", [{"layer": "other"}, {"expert": 4}, {"imbalance": 1.7}, {"largest": 2.5}]
)
def test_impossible_loads_are_found(changed: dict[str, Any]):
    made = with_experts(loads=[msgspec.structs.replace(LOAD, **changed)])
    with pytest.raises(ProfileError, match="imbalance"):
        check_variants(made.graph, made.variants, "file")


RING = Collective(kind="ring", bytes=8, phase="forward", among="context", compute_time=0.5)
WITH_RING = Group(context=2, exchange="ring")


def of_ring(group: Group = WITH_RING, **changed: Any) -> GroupVariant:
    one = msgspec.structs.replace(RING, **changed)
    return variant(group, collectives=(LayerCollectives(layer="a", collectives=(one,)),))


def test_a_ring_is_scaled_with_its_attention():
    """Both exchanges of one degree stand beside each other in a file."""
    scaled = scale_profile(
        with_variants(variant(Group(context=2), collectives=()), of_ring()),
        3 * profile(WHOLE).microbatch_size,
    )
    assert (
        groups_listed(scaled.variants) == "1, context degree 2, context degree 2 with ring exchange"
    )
    (own,) = scaled.variants[1].collectives
    assert own.collectives == (msgspec.structs.replace(RING, bytes=24, compute_time=1.5),)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"compute_time": msgspec.UNSET}, "is a ring without compute_time"),
        ({"kind": "all_gather"}, "is no ring, but all_gather with a compute_time"),
        ({"group": Group(context=2)}, "which only context ranks with ring exchange have"),
        ({"group": Group(tensor=2, context=2, exchange="ring"), "among": "tensor"}, "only context"),
        ({"phase": "weight_grad"}, "which belongs to forward or input_grad"),
        ({"phase": "input_grad", "beneath": "weight_grad"}, "beneath its attention"),
    ],
)
def test_a_ring_that_contradicts_itself_is_refused(changed: dict[str, Any], message: str):
    check_variants(WHOLE, [of_ring()], "p.json")
    with pytest.raises(ProfileError, match=rf"collective 0 of layer 'a' .*{message}"):
        check_variants(WHOLE, [of_ring(**changed)], "p.json")
