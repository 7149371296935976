"""Profiles of models whose bytes can be counted by hand, and of all example models.

Times are never compared with a limit, because other processes share the machine.
"""

from pathlib import Path

import pytest
import torch

from autopart.errors import AutopartError, ClusterError, ModelError, UsageError
from autopart.records.layer_graph import Layer, Value
from autopart.records.profile import Profile, load_profile, save_profile, stash_error
from autopart.runtime.profiling.profiler import profile_model
from tests.support.long_tests import long_tests
from tests.support.places import MODELS

QUICK = ("gpt2", "resnet")
"""Models in the fast tests. To capture one takes one or two seconds, so the others are slow
tests."""


def _all_of(*names: str) -> list[object]:
    return [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]


def _profile(builder: str, **options: object) -> Profile:
    chosen = {"microbatch_size": 4, "warmup": 0, "repeats": 1, "granularity": "module"}
    return profile_model(
        f"{MODELS / 'profiled.py'}:build_{builder}",
        **{**chosen, **options},  # type: ignore[arg-type]
    )


def _layers(profile: Profile) -> dict[str, Layer]:
    return {layer.name: layer for layer in profile.graph.layers}


def _values(profile: Profile) -> dict[str, Value]:
    return {value.producer: value for value in profile.graph.values}


@pytest.mark.slow
def test_the_bytes_of_a_perceptron_equal_a_count_by_hand() -> None:
    profile = _profile("perceptron")
    layers, values = _layers(profile), _values(profile)
    assert list(layers) == ["0", "1", "2", "loss"]
    # Values between layers have 4 rows with 16 features, the last one 8. A linear layer keeps its
    # input, a ReLU its output, and the loss both its inputs. None of them is inside a layer.
    assert [values[n].bytes for n in ("0", "1", "2")] == [4 * 16 * 4, 4 * 16 * 4, 4 * 8 * 4]
    assert values["0"].kept_by == ()
    assert values["1"].kept_by == ("1", "2"), "one storage that two layers keep"
    assert values["2"].kept_by == ("loss",)
    assert [layer.stash_bytes for layer in layers.values()] == [0, 0, 0, 0]
    assert profile.whole is not None
    assert profile.whole.stash_bytes == profile.whole.layers_stash_bytes == 256 + 128
    assert [i.bytes for i in profile.graph.inputs] == [4 * 8 * 4, 4 * 8 * 4]


@pytest.mark.slow
def test_parameters_gradients_and_flops_of_a_perceptron() -> None:
    layers = _layers(_profile("perceptron"))
    assert [la.param_bytes for la in layers.values()] == [4 * (8 * 16 + 16), 0, 4 * (16 * 8 + 8), 0]
    assert [la.grad_bytes for la in layers.values()] == [576, 0, 544, 0]
    assert [la.num_trainable for la in layers.values()] == [144, 0, 136, 0]
    assert [la.forward_flops for la in layers.values()] == [2 * 4 * 8 * 16, 0, 2 * 4 * 16 * 8, 0]


@pytest.mark.slow
def test_workspace_is_needed_beside_the_kept_bytes() -> None:
    layers = _layers(_profile("perceptron"))
    # In backward a layer makes the gradients of its input (none for the first) and of its
    # parameters, before they are added to the sums. The gradient of its output exists already. It
    # counts where the stage has made it.
    assert layers["0"].backward_workspace_bytes == 576
    assert layers["1"].backward_workspace_bytes == 256
    assert layers["2"].backward_workspace_bytes == 256 + 544
    assert layers["0"].workspace_bytes == 256, "nobody keeps its output"


@pytest.mark.slow
@pytest.mark.usefixtures("told_seconds")
def test_a_stash_inside_a_layer_is_its_own_and_can_be_recomputed() -> None:
    profile = _profile("blocks", granularity="block")
    blocks = [layer for layer in profile.graph.layers if layer.kind == "Block"]
    assert len(blocks) == 4
    for block in blocks:
        assert block.stash_bytes == 4 * 32 * 4, "the result of tanh; x is a value"
        assert block.recompute is not None
        assert block.recompute.stash_bytes == 0
        assert block.recompute.extra_time > 0
        assert block.selective is None, "the product that would stay is as large as tanh's result"
    assert _layers(profile)["loss"].recompute is None, "to recompute it saves nothing"


@pytest.mark.slow
@pytest.mark.usefixtures("told_seconds")
def test_identical_layers_share_a_measurement_unless_each_is_wanted() -> None:
    pooled = _profile("blocks", granularity="block", repeats=2)
    alone = _profile("blocks", granularity="block", repeats=2, each=True)
    # The first block returns no input gradient, so its computation differs.
    assert [layer.same_as for layer in pooled.graph.layers] == [None, None, "1", "1", None]
    times = {
        (la.forward_time, la.input_grad_time, la.weight_grad_time, la.update_time)
        for la in pooled.graph.layers[1:4]
    }
    assert len(times) == 1
    assert [layer.same_as for layer in alone.graph.layers] == [None] * 5
    assert len({la.forward_time for la in alone.graph.layers[1:4]}) == 3


@pytest.mark.slow
def test_a_tied_parameter_is_recorded_with_every_layer_that_reads_it() -> None:
    profile = _profile("tied")
    (tied,) = profile.graph.tied
    assert tied.layers == ("0", "2")
    assert (tied.param_bytes, tied.grad_bytes, tied.num_trainable) == (256, 256, 64)
    assert [la.param_bytes for la in profile.graph.layers] == [288, 0, 288, 0]
    assert profile.source.num_params == 64 + 8 + 8, "counted once"


@pytest.mark.slow
def test_no_gradient_flows_back_through_a_mask() -> None:
    values = {value.bytes: value for value in _profile("masked").graph.values}
    mask = values[4 * 8]
    assert not mask.has_gradient
    assert mask.kept_by == mask.consumers == ("layers.2",)
    assert all(value.has_gradient for size, value in values.items() if size != 32)


@pytest.mark.slow
def test_a_view_of_a_value_shares_its_storage() -> None:
    profile = _profile("reshaped")
    values = _values(profile)
    assert values["0"].kept_by == ("2",), "the view's consumer keeps the first value's storage"
    assert values["1"].kept_by == ()
    assert profile.whole is not None
    assert profile.whole.layers_stash_bytes == profile.whole.stash_bytes


@pytest.mark.slow
def test_the_rest_of_a_kept_storage_is_its_producers_stash() -> None:
    profile = _profile("halved")
    assert _values(profile)["0.wide"].bytes == 4 * 16 * 4
    assert _layers(profile)["0.wide"].stash_bytes == 4 * 16 * 4
    assert profile.whole is not None
    assert profile.whole.layers_stash_bytes == profile.whole.stash_bytes == 4 * 32 * 4 + 4 * 8 * 4


@pytest.mark.slow
def test_a_layer_that_counts_its_calls_is_not_recomputed() -> None:
    layers = _layers(_profile("normalized"))
    assert layers["1"].stash_bytes == 2 * 8 * 4, "mean and deviation of the batch"
    assert layers["1"].recompute is None, "a second forward would update the running mean again"
    assert layers["1"].buffer_bytes == 2 * 8 * 4 + 8


@pytest.mark.slow
def test_frozen_layers_have_no_gradients_and_no_backward() -> None:
    first = _layers(_profile("frozen"))["0"]
    assert (first.param_bytes, first.grad_bytes, first.num_trainable) == (576, 0, 0)
    assert (first.input_grad_time, first.weight_grad_time, first.update_time) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.usefixtures("told_seconds")
def test_i_and_w_add_up_to_the_whole_backward_without_the_cost_of_the_split() -> None:
    profile = _profile("perceptron", repeats=3)
    layers = _layers(profile)
    assert layers["0"].weight_grad_time > 0.0
    assert (layers["1"].weight_grad_time, layers["1"].split_time) == (0, 0), "a ReLU has no weights"
    assert layers["2"].weight_grad_time > 0.0
    assert profile.whole is not None
    backward = sum(la.input_grad_time + la.weight_grad_time for la in layers.values())
    assert profile.whole.layers_backward_time == pytest.approx(backward)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["gpt2", *long_tests("llama", "resnet", "unet"), "encdec", *long_tests("moe", "mlp")]
)
def test_bytes_equal_autograds_own_on_a_cpu_and_on_meta(name: str) -> None:
    model = f"zoo:{name}-tiny"
    real = profile_model(model, warmup=0, repeats=1)
    meta = profile_model(model, device="meta", gpu="h100-sxm")
    for profile in (real, meta):
        assert profile.whole is not None
        assert profile.whole.stash_bytes > 0
        assert abs(stash_error(profile.whole)) <= 0.02
    assert real.source.graph_hash == meta.source.graph_hash
    assert real.source.num_params == meta.source.num_params
    for ours, theirs in zip(real.graph.layers, meta.graph.layers, strict=True):
        assert ours.stash_bytes == theirs.stash_bytes, ours.name
        assert ours.workspace_bytes == theirs.workspace_bytes, ours.name
        assert ours.backward_workspace_bytes == theirs.backward_workspace_bytes, ours.name
        assert ours.forward_flops == theirs.forward_flops, ours.name
        assert ours.param_bytes == theirs.param_bytes, ours.name
        assert _stays(ours) == _stays(theirs), ours.name
    assert real.graph.values == meta.graph.values


def _stays(layer: Layer) -> list[int | None]:
    return [policy and policy.stash_bytes for policy in (layer.recompute, layer.selective)]


@pytest.mark.slow
def test_a_block_of_gpt2_keeps_its_products_where_only_the_rest_runs_again() -> None:
    profile = profile_model("zoo:gpt2-tiny", device="meta", gpu="h100-sxm", microbatch_size=2)
    block = _layers(profile)["blocks.0"]
    assert block.recompute is not None and block.selective is not None
    # Results of products, for 2 x 64 tokens of width 128: query, key and value, attention's output
    # projection, and the inner layer of 4-fold width.
    assert block.selective.stash_bytes == 2 * 64 * 128 * (3 + 1 + 4) * 4
    assert block.recompute.stash_bytes == 0 < block.selective.stash_bytes < block.stash_bytes
    assert 0 < block.selective.extra_time < block.recompute.extra_time < block.forward_time


@pytest.mark.slow
@pytest.mark.parametrize("name", [*long_tests("gpt2", "llama", "bert"), "t5"])
def test_bytes_of_hugging_face_models(name: str) -> None:
    profile = profile_model(str(MODELS / f"hf_{name}.py"), warmup=0, repeats=1)
    assert profile.whole is not None
    error = stash_error(profile.whole)
    if name == "llama":
        # During export, transformers writes the mask out and repeats keys and values, which it
        # avoids otherwise. The stages really keep more than the model's own code.
        assert 0.0 < error < 0.12
        assert any("captured graph" in warning for warning in profile.warnings)
    else:
        assert abs(error) <= 0.02


@pytest.mark.slow
def test_a_profile_on_meta_is_analytic_and_names_its_gpu() -> None:
    profile = _profile("perceptron", device="meta", gpu="a100-sxm-80gb", dtype="bfloat16")
    assert profile.method == "analytic"
    assert (profile.device.kind, profile.device.name) == ("meta", "a100-sxm-80gb")
    assert profile.device.memory_bytes == 80 << 30
    assert (profile.warmup, profile.repeats) == (0, 0)
    assert all(layer.forward_spread == 0.0 for layer in profile.graph.layers)
    # Three layers of one kernel each, at the launch time of 5 µs, and a loss.
    assert [la.forward_time for la in profile.graph.layers[:3]] == [5e-6, 5e-6, 5e-6]
    assert profile.graph.layers[0].param_bytes == 2 * 144


@pytest.mark.slow
def test_models_that_read_values_are_compared_with_their_graph_on_meta() -> None:
    model = str(MODELS / "hf_gpt2.py")
    profile = profile_model(model, device="meta", gpu="h100-sxm", dtype="bfloat16")
    assert profile.whole is not None
    assert abs(stash_error(profile.whole)) <= 0.02
    assert any("compared with the captured graph" in warning for warning in profile.warnings)


@pytest.mark.long
def test_an_8b_model_needs_no_memory_on_meta() -> None:
    profile = profile_model("zoo:llama-8b", device="meta", gpu="h100-sxm", dtype="bfloat16")
    assert profile.source.num_params == 8_030_261_248
    assert profile.whole is not None
    assert abs(stash_error(profile.whole)) <= 0.02
    blocks = [layer for layer in profile.graph.layers if layer.kind == "Block"]
    assert len(blocks) == 32
    assert blocks[31].same_as == blocks[0].name
    assert blocks[0].forward_time == blocks[31].forward_time > 1e-3


@pytest.mark.slow
def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    profile = _profile("tied", repeats=2)
    save_profile(profile, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile


@pytest.mark.slow
def test_a_profile_says_how_it_was_made() -> None:
    profile = _profile("perceptron", warmup=1, repeats=2, dtype="float64")
    assert profile.method == "measured"
    assert profile.device.kind == "cpu"
    assert profile.device.name
    assert profile.device.threads == torch.get_num_threads()
    assert (profile.warmup, profile.dtype, profile.microbatch_size) == (1, "float64", 4)
    assert profile.repeats >= 2
    assert profile.source.software["torch"] == torch.__version__
    assert {"python", "autopart"} <= profile.source.software.keys()
    assert profile.created.endswith("+00:00")


@pytest.mark.slow
def test_progress_goes_from_nothing_to_everything() -> None:
    told: list[tuple[int, int, str]] = []
    _profile("perceptron", repeats=2, progress=lambda *step: told.append(step))
    done = [step[0] for step in told]
    assert done == sorted(set(done))
    assert done[0] == 0
    assert told[-1][0] == told[-1][1]
    assert {"bytes of each layer", "round 1 of 2"} <= {name for _, _, name in told}


@pytest.mark.slow
def test_measuring_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    _profile("dropout")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"dtype": "float8"}, ModelError, r"float8.*float32, bfloat16, float16, float64"),
        ({"device": "tpu"}, UsageError, r"unknown device 'tpu'; known: cpu, cuda, meta"),
        ({"device": "meta"}, UsageError, r"--gpu; known: .*h100-sxm"),
        (
            {"device": "meta", "gpu": "h1000"},
            ClusterError,
            r"unknown GPU 'h1000'; did you mean h100-\w+\? known: .*h100",
        ),
        ({"gpu": "h100-sxm"}, UsageError, r"--gpu h100-sxm goes with --device meta"),
        ({"microbatch_size": 0}, UsageError, r"--microbatch-size 0: it must be at least 1"),
        ({"repeats": 0}, UsageError, r"--repeats 0"),
        ({"warmup": -1}, UsageError, r"--warmup -1"),
        ({"granularity": "op"}, UsageError, r"unknown granularity 'op'; known: block, module"),
        (
            {"device": "meta", "gpu": "h100-sxm", "dtype": "float64"},
            ClusterError,
            r"h100-sxm.*float64",
        ),
    ],
)
def test_bad_options_are_named(
    options: dict[str, object], kind: type[AutopartError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        _profile("perceptron", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is wrong where there is no GPU")
def test_cuda_without_a_gpu_names_an_alternative() -> None:
    with pytest.raises(UsageError, match=r"finds no CUDA GPU here; use --device cpu"):
        _profile("perceptron", device="cuda")


def test_a_model_that_raises_is_shown_with_its_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(
        "def build_model():\n    raise ValueError('no weights here')\n\n"
        "def example_inputs(microbatch_size):\n    return ()\n"
    )
    with pytest.raises(ModelError, match=r"ValueError: no weights here .*broken.py:2"):
        profile_model(str(broken))


@pytest.mark.slow
def test_code_that_cannot_run_twice_is_not_offered_recomputation() -> None:
    """It computes gradients in its forward, which torch's checkpointing cannot repeat."""
    profile = profile_model(f"{MODELS / 'opaque.py'}:forces", warmup=0, repeats=1)
    opaque = profile.graph.layers[0]
    assert opaque.recompute is None and opaque.selective is None
    place = "computes gradients in its forward (tests/support/models/opaque.py:"
    assert any(place in warning for warning in profile.warnings), profile.warnings
