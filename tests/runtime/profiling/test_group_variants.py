"""Tensor variants: the bytes of one rank beside published formulas, checks, and refusals."""

from pathlib import Path

import msgspec
import pytest
import torch

from autopart.cost.uneven_experts import with_load
from autopart.errors import ModelError, UsageError
from autopart.records.layer_graph import Layer, LayerGraph
from autopart.records.profile import Profile, load_profile, save_profile
from autopart.records.rank_group import Group
from autopart.runtime.models.model import build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.profiling.fused_ops import FusedOps
from autopart.runtime.profiling.layer_bytes import measure_layer_bytes, whole_stash_bytes
from autopart.runtime.profiling.profiled_model import local_profiled, prepare_model
from autopart.runtime.profiling.profiler import profile_model
from autopart.runtime.profiling.whole_model import graph_forward, saved_bytes
from autopart.runtime.sharding import local_graph
from autopart.runtime.sharding.group_graphs import graphs_of
from autopart.runtime.sharding.groups import LoneRank, registered
from autopart.runtime.sharding.local_graph import GROUP
from autopart.runtime.sharding.local_model import local_model
from autopart.runtime.sharding.shard import shard_graph
from tests.support.long_tests import long_tests
from tests.support.places import SCRIPTS
from tests.support.runtime.routing import LAYERS, SKEWED, entries_by_hand, fullest_share

GPT2, LLAMA, MLP = "zoo:gpt2-tiny", "zoo:llama-tiny", "zoo:mlp-tiny"
MOE, ENCDEC = "zoo:moe-tiny", "zoo:encdec-tiny"


def on_meta(model: str, *degrees: int, sequence_parallel: bool = False) -> Profile:
    return profile_model(
        model,
        microbatch_size=2,
        device="meta",
        gpu="h100-sxm",
        tensor=degrees,
        sequence_parallel=sequence_parallel,
    )


def block(graph: LayerGraph, name: str) -> Layer:
    return next(layer for layer in graph.layers if layer.name == name)


def kept_bytes(graph: LayerGraph, name: str) -> int:
    """A block's stash and the input that it keeps."""
    values = [v.bytes for v in graph.values if name in v.kept_by and name in v.consumers]
    return block(graph, name).stash_bytes + sum(values)


@pytest.mark.slow
def test_a_blocks_activations_follow_the_published_formulas(tmp_path: Path) -> None:
    """Korthikanti et al. (2022), in elements of batch x sequence x width: 4 + 12/t without dropout.

    With sequence parallelism 16/t, and 2 (1 - 1/t) more: the two gathered inputs stay. Attention
    adds a number per head and position.
    """
    profile = on_meta(GPT2, 1, 2, 4, sequence_parallel=True)
    assert [(v.group.tensor, v.group.sequence_parallel) for v in profile.variants] == [
        (2, False), (2, True), (4, False), (4, True),
    ]  # fmt: skip
    whole = kept_bytes(profile.graph, "blocks.3")
    unit = whole / 16
    for variant in profile.variants:
        t = variant.group.tensor
        wanted = 16 / t + 2 * (1 - 1 / t) if variant.group.sequence_parallel else 4 + 12 / t
        assert kept_bytes(variant.graph, "blocks.3") / unit == pytest.approx(wanted, rel=0.01)
    save_profile(profile, tmp_path / "p.json")
    assert load_profile(tmp_path / "p.json") == profile


@pytest.mark.slow
def test_a_block_with_dropout_and_scores_has_the_published_bytes_in_full() -> None:
    """Korthikanti et al. (2022), Table 2: s b h (10 + 24/t + 5 a s / (h t)) bytes, with s tokens and a heads.

    With sequence parallelism s b h / t (34 + 5 a s / h), and 4 (1 - 1/t) more for two gathered inputs.
    """
    width, heads, tokens = 6144, 64, 2048
    profile = profile_model(
        str(SCRIPTS / "megatron_gpt.py:build_22b"),
        device="meta",
        gpu="a100-sxm-80gb",
        dtype="bfloat16",
        tensor=(8,),
        sequence_parallel=True,
    )
    scores = 5 * heads * tokens / width
    plain, split = (kept_bytes(v.graph, "blocks.1") / (tokens * width) for v in profile.variants)
    assert plain == pytest.approx(10 + 24 / 8 + scores / 8, rel=5e-4)
    assert split == pytest.approx((34 + scores) / 8 + 4 * (1 - 1 / 8), rel=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("model", [GPT2, *long_tests(LLAMA), MOE, *long_tests(ENCDEC)])
def test_the_stashes_of_a_ranks_layers_are_what_autograd_holds(
    model: str, *, sequence_parallel: bool
) -> None:
    profiled = prepare_model(model, 2, dtype=None, device="cpu", granularity="block")
    sharded = shard_graph(profiled.captured, 2, sequence_parallel=sequence_parallel)
    own = local_profiled(profiled, local_model(sharded, 0))
    with registered(GROUP, LoneRank(2)):
        found = measure_layer_bytes(own.programs, own.state, own.leaves[0].device)
        held = saved_bytes(graph_forward(own), own.state)
    layers = whole_stash_bytes(found, {value.name: value.bytes for value in own.captured.values})
    assert layers == pytest.approx(held, rel=0.02)


@pytest.mark.slow
def test_a_variant_has_a_ranks_shards_and_everything_that_a_layer_has() -> None:
    profile = on_meta(LLAMA, 2, sequence_parallel=True)
    own = block(profile.graph, "blocks.2")
    sent = {v.name: v.bytes for v in profile.graph.values}
    for variant in profile.variants:
        local = block(variant.graph, "blocks.2")
        norms = 2 * 96 * 4
        assert local.param_bytes == (own.param_bytes - norms) / 2 + norms
        assert local.forward_flops == pytest.approx(own.forward_flops / 2)
        assert local.recompute is not None and local.split_backward is not None
        # The last product of a block is not kept, as in the whole model.
        assert local.selective is not None and own.selective is not None
        assert local.selective.stash_bytes == pytest.approx(own.selective.stash_bytes / 2, rel=0.4)
        for value in variant.graph.values:
            is_slice = variant.group.sequence_parallel and value.producer != "head"
            is_sharded = value.producer == "head"
            assert value.bytes == sent[value.name] / (2 if is_slice or is_sharded else 1)
        kinds = {one.kind for at in variant.collectives for one in at.collectives}
        assert ("all_gather" in kinds) == variant.group.sequence_parallel


@pytest.mark.slow
@pytest.mark.usefixtures("told_seconds")
def test_a_measured_variant_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = profile_model(MLP, warmup=0, repeats=1, tensor=(2,))
    (variant,) = profile.variants
    assert all(layer.forward_time > 0 for layer in variant.graph.layers)
    monkeypatch.setattr(local_graph, "reduce", lambda x, group: x)
    with pytest.raises(ModelError, match="the ranks together differ from the model"):
        profile_model(MLP, warmup=0, repeats=1, tensor=(2,))


@pytest.mark.slow
def test_what_stays_whole_is_a_warning_and_a_degree_that_shards_nothing_an_error() -> None:
    profile = on_meta("zoo:moe-tiny", 2)
    wanted = "linear of blocks.0 and 3 more stays whole: softmax over the sharded dimension"
    assert f"tensor degree 2: {wanted}" in profile.warnings
    with pytest.raises(ModelError, match=r"'head.weight' .* is a multiple of 4.*2, 5 would do"):
        on_meta("zoo:resnet-tiny", 4)


@pytest.mark.parametrize(
    ("tensor", "others", "message"),
    [
        ((2, 2), {}, "--tensor has 2 twice"),
        ((0,), {}, "--tensor 0: a tensor degree is 1 to 4096"),
        ((1,), {"sequence_parallel": True}, "needs --tensor with a degree above 1"),
        ((2,), {"compile": True}, "--compile does not take"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tensor: tuple[int, ...], others: dict[str, bool], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        profile_model(MLP, tensor=tensor, **others)  # type: ignore[arg-type]


@pytest.mark.slow
def test_bytes_at_another_load_are_those_of_a_rank_that_has_it() -> None:
    """Half of the experts' ranks get 1.5 times the mean: an independent measurement beside the line through 1 and 2."""
    pytest.importorskip("transformers")
    (variant,) = profile_model(
        SKEWED, microbatch_size=4, device="meta", gpu="h100-sxm", expert=(2,)
    ).variants
    profiled = prepare_model(SKEWED, 4, dtype=None, device="meta", granularity="block")
    graphs = graphs_of(profiled.captured, Group(expert=2))
    own = local_profiled(profiled, graphs.local(0))
    with graphs.alone(1.5), FusedOps(dropout=True):
        found = measure_layer_bytes(own.programs, own.state, torch.device("meta"))
    priced = with_load(variant, 1.5).graph.layers
    assert [layer.stash_bytes for layer in priced] == [one.stash_bytes for one in found.layers]
    for layer, one in zip(priced, found.layers, strict=True):
        assert layer.workspace_bytes >= one.workspace_bytes
        assert layer.backward_workspace_bytes is not None
        assert layer.backward_workspace_bytes >= one.backward_workspace_bytes
    assert variant.loaded is not msgspec.UNSET and variant.loads is msgspec.UNSET
    assert [layer.name for layer in variant.loaded.layers] == ["model.layers.1", "model.layers.2"]
    # The experts' products for 2 samples of 16 tokens with 2 experts each, of width 32 and 16.
    products = 2 * 64 * (32 * 32 + 16 * 32)
    for layer in variant.loaded.layers:
        assert layer.forward_flops - block(variant.graph, layer.name).forward_flops == products


@pytest.mark.slow
def test_a_device_that_runs_the_model_measures_its_imbalance() -> None:
    pytest.importorskip("transformers")
    (variant,) = profile_model(SKEWED, microbatch_size=2, warmup=0, repeats=1, expert=(2,)).variants
    source = load_model(SKEWED)
    plain = build_training_model(source).model
    by_hand = entries_by_hand(plain, [example_batch(source, 2)])
    assert variant.loads is not msgspec.UNSET
    assert [one.layer for one in variant.loads] == list(LAYERS)
    for one in variant.loads:
        share = fullest_share(by_hand[one.layer][0], 2)
        assert one.expert == 2 and share > 1.1
        assert one.imbalance == one.largest == pytest.approx(share)
