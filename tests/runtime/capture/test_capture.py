"""Captured models: leaves of the batch, hashes, fingerprints, the meta device."""

import contextlib
import dataclasses
import io
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from autopart.errors import ModelError
from autopart.records.graph_check import check_graph
from autopart.records.layer_graph import Layer as GraphLayer
from autopart.records.layer_graph import LayerGraph, Value
from autopart.runtime.capture.capture import Captured, batch_leaves, capture_model
from autopart.runtime.models.model import TrainingModel
from tests.support.places import ROOT
from tests.support.runtime.hugging_face import captured_hugging_face, hugging_face
from tests.support.runtime.small_models import (
    WIDTH,
    Block,
    Blocks,
    TiedDecoder,
    batch,
    decoder_batch,
    decoder_loss,
    linear,
    square_loss,
    training,
)


@pytest.mark.slow
def test_the_captured_graph_computes_the_models_loss_from_the_tensors_of_a_batch() -> None:
    model = training(TiedDecoder(), decoder_loss)
    captured = capture_model(model, decoder_batch())
    leaves = batch_leaves(captured, decoder_batch())
    assert list(leaves) == ["ids", "mask", "target"]
    assert torch.equal(captured.module(*leaves.values()), model(*decoder_batch()))


@pytest.mark.slow
def test_the_graphs_parameters_are_the_models_own_under_its_own_names() -> None:
    model = training(TiedDecoder(), decoder_loss)
    captured = capture_model(model, decoder_batch())
    own = dict(model.model.named_parameters())
    found = dict(captured.module.named_parameters())
    assert found.keys() == own.keys()
    assert all(found[name] is own[name] for name in found)


@pytest.mark.slow
def test_capturing_leaves_the_model_its_buffers_and_the_random_state_as_they_were() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(WIDTH), linear()
            self.seen: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = self.linear(self.norm(x))
            self.seen.append(self.last)
            return self.last

    model = training(Remembering())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    captured = capture_model(model, batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not hasattr(model.model, "last") and model.model.seen == []
    assert "tensors in attributes" in captured.warnings[0] and "last" in captured.warnings[0]


def test_leaves_are_named_by_keyword_or_place_and_no_name_is_taken_twice() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(
            self, input: torch.Tensor, more: dict[str, Any], target: torch.Tensor, scale: float
        ) -> torch.Tensor:
            return self.linear(input + more["a"][0] + target) * scale

    x = batch()[0][0]
    given = {"input": x, "more": {"a": [x + 1, None]}, "target": x + 2, "scale": 0.5}
    captured = capture_model(training(Many()), (given, x + 3))
    assert [leaf.name for leaf in captured.inputs] == [
        "input_1",
        "more_a_0",
        "inputs_target",
        "target",
    ]
    assert captured.constants == {"more_a_1": None, "scale": 0.5}
    leaves = batch_leaves(captured, (dict(reversed(given.items())), x + 3))
    assert torch.equal(leaves["inputs_target"], x + 2) and torch.equal(leaves["target"], x + 3)


@pytest.mark.slow
def test_labels_that_are_the_input_ids_themselves_are_an_input_of_their_own() -> None:
    model, (inputs, _), captured = captured_hugging_face("gpt2")
    assert inputs["labels"] is inputs["input_ids"]
    consumers = {leaf.name: leaf.consumers for leaf in captured.inputs}
    assert consumers["input_ids"] == ("transformer.wte",)
    assert consumers["labels"] == ("lm_head",)
    other = {**inputs, "labels": inputs["labels"].roll(1, 1)}
    leaves = batch_leaves(captured, (other, None))
    assert torch.equal(captured.module(*leaves.values()), model(other, None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: ({"x": x[:2], "scale": 2.0}, None), r"'x' has shape \(2, 8\)"),
        (lambda x: ({"x": x.float(), "scale": 2.0}, None), r"torch.float32, but the model was"),
        (
            lambda x: ({"y": x, "scale": 2.0}, None),
            "has no tensor 'x'; the model was captured with x",
        ),
        (lambda x: ({"x": x, "y": x, "scale": 2.0}, None), "has one more tensor, 'y'"),
        (
            lambda x: ({"x": x, "scale": 3.0}, None),
            "'scale' is 3.0, but the model was captured with 2.0",
        ),
        (lambda x: ({"x": x}, None), "'scale' is None"),
        (lambda x: ({"x": x, "scale": 2.0}, x), "'target' is"),
    ],
    ids=["shape", "dtype", "missing", "more", "constant", "no constant", "target"],
)
def test_a_batch_unlike_the_captured_one_is_refused(
    change: Callable[[torch.Tensor], Any], message: str
) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear()

        def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
            return self.linear(x) * scale

    x = batch()[0][0]
    captured = capture_model(training(Scaled()), ({"x": x, "scale": 2.0}, None))
    with pytest.raises(ModelError, match=message):
        batch_leaves(captured, change(x))


def fingerprints(*blocks: nn.Module) -> list[str]:
    captured = capture_model(training(Blocks(*blocks)), batch())
    return [layer.fingerprint for layer in captured.layers if layer.name.startswith("blocks")]


@pytest.mark.slow
def test_identical_blocks_share_a_fingerprint_whatever_their_weights() -> None:
    assert len(set(fingerprints(Block(), Block(), Block()))) == 1
    for name in ("gpt2", "llama", "bert"):
        captured = captured_hugging_face(name)[2]
        blocks = {la.fingerprint for la in captured.layers if la.kind.endswith(("Block", "Layer"))}
        assert len(blocks) == 1, name


@pytest.mark.slow
def test_blocks_that_differ_in_width_constants_dropout_or_training_do_not() -> None:
    wider = Block()
    wider.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
    careful = Block()
    careful.norm.eps = 1e-3
    frozen = Block()
    frozen.requires_grad_(requires_grad=False)
    exact = Block()
    exact.mlp[1] = nn.GELU("tanh")
    others = [
        wider,
        careful,
        frozen,
        exact,
        Block(scale=0.5),
        Block(dropout=0.1),
        Block(dropout=0.2),
    ]
    found = fingerprints(Block(), *others)
    assert len(set(found)) == len(found)


def captured_with(**changes: Any) -> Captured:
    size = {"blocks": 2, "width": WIDTH, "rows": 4, **changes}
    model = Blocks(*[Block(scale=size.get("scale", 1.0)) for _ in range(size["blocks"])])
    if "renamed" in changes:
        model.other, model.last = model.last, nn.Identity()
        model.blocks.append(model.other)
    return capture_model(training(model), batch(size["rows"], WIDTH))


@pytest.mark.slow
def test_the_graph_hash_changes_with_shapes_operations_and_names() -> None:
    variants = [{}, {"blocks": 3}, {"rows": 6}, {"scale": 0.5}, {"renamed": True}]
    hashes = [captured_with(**variant).graph_hash for variant in variants]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.slow
def test_the_graph_hash_does_not_change_with_the_weights() -> None:
    model = training(Blocks(Block()))
    first = capture_model(model, batch()).graph_hash
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    assert (
        capture_model(model, ((torch.zeros(4, WIDTH, dtype=torch.float64),), None)).graph_hash
        == first
    )


_HASHES = """
from autopart.runtime.capture.capture import capture_model
from tests.support.runtime.small_models import Hesitating, TiedDecoder, batch, decoder_batch, decoder_loss, training
for model, example in (
    (training(TiedDecoder(), decoder_loss), decoder_batch()),
    (training(Hesitating()), batch()),
):
    captured = capture_model(model, example)
    print(captured.graph_hash, *(layer.fingerprint for layer in captured.layers))
"""


@pytest.mark.slow
def test_hashes_are_the_same_in_every_process() -> None:
    root = ROOT
    other = subprocess.run(
        [sys.executable, "-c", _HASHES],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(_HASHES, {})
    assert other.stdout == here.getvalue() and len(here.getvalue().split()) == 13


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_a_model_on_the_meta_device_is_captured_as_the_same_graph(name: str) -> None:
    """A plan from an analytic profile runs on a real device."""
    _, example, real = captured_hugging_face(name)
    with torch.device("meta"):
        empty = hugging_face(name)[0].to("meta")
    moved = {key: value.to("meta") for key, value in example[0].items()}
    captured = capture_model(empty, (moved, None))
    assert captured.graph_hash == real.graph_hash
    for there, here in zip(captured.layers, real.layers, strict=True):
        assert (there.name, there.kind, there.parameters) == (here.name, here.kind, here.parameters)
    for there, here in zip(captured.values, real.values, strict=True):
        assert dataclasses.replace(there, name=here.name) == here


@pytest.mark.slow
def test_a_model_of_billions_of_parameters_is_captured_without_memory_for_them() -> None:
    with torch.device("meta"):
        config = LlamaConfig(
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=12,
            num_attention_heads=32,
        )
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        ids = torch.zeros(1, 2048, dtype=torch.long)
    assert sum(p.numel() for p in model.parameters()) > 2.5e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    captured = capture_model(
        TrainingModel(model).train(), ({"input_ids": ids, "labels": ids}, None)
    )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 300 * 2**20
    assert len(captured.layers) == 15
    assert {value.bytes for value in captured.values} == {2048 * 4096 * 2}


@pytest.mark.slow
def test_layers_and_values_make_a_layer_graph() -> None:
    for name in ("gpt2", "t5"):
        captured = captured_hugging_face(name)[2]
        zero = {"forward_time": 0.0, "input_grad_time": 0.0, "weight_grad_time": 0.0}
        layers = tuple(GraphLayer(name=la.name, kind=la.kind, **zero) for la in captured.layers)
        fields = ("name", "producer", "consumers", "bytes", "has_gradient")
        values = tuple(Value(**{f: getattr(v, f) for f in fields}) for v in captured.values)
        check_graph(LayerGraph(layers=layers, values=values))


def test_every_node_is_in_one_layer_or_depends_on_no_parameter() -> None:
    captured = captured_hugging_face("llama")[2]
    nodes = [name for layer in captured.layers for name in layer.nodes]
    assert len(nodes) == len(set(nodes))
    assert captured.layer_of == {n: la.name for la in captured.layers for n in la.nodes}
    shared = {
        node.name
        for node in captured.module.graph.nodes
        if node.op == "call_function" and node.name not in captured.layer_of
    }
    assert {"cos", "sin"} <= shared
    for node in captured.module.graph.nodes:
        if node.name in shared:
            assert not any(before.name in captured.layer_of for before in node.all_input_nodes)


@pytest.mark.slow
def test_a_loss_that_no_parameter_can_lower_is_refused() -> None:
    model = training(Blocks(Block()))
    model.requires_grad_(requires_grad=False)
    with pytest.raises(ModelError, match="no parameter that requires a gradient has a part"):
        capture_model(model, batch())


def test_a_model_that_fails_on_its_batch_is_refused_with_its_own_words() -> None:
    with pytest.raises(ModelError, match=r"raised RuntimeError: .*shapes cannot be multiplied"):
        capture_model(training(Blocks(Block())), batch(4, WIDTH + 1))


def test_a_part_with_a_name_that_graph_modules_need_is_refused() -> None:
    class Graphic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = linear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.graph(x)

    with pytest.raises(ModelError, match=r"'graph.weight', a name that graph modules use"):
        capture_model(training(Graphic()), batch())


@pytest.mark.slow
def test_a_loss_modules_own_state_keeps_its_name() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weights", torch.arange(16.0, dtype=torch.float64))

        def forward(self, output: Any, target: torch.Tensor) -> torch.Tensor:
            logits = output["logits"].flatten(0, 1)
            return functional.cross_entropy(logits, target.flatten(), self.weights)

    captured = capture_model(training(TiedDecoder(), Weighted()), decoder_batch())
    assert captured.layers[-1].name == "loss"
    assert captured.layers[-1].buffers == ("loss_fn.weights",)


def test_a_capture_is_a_value() -> None:
    captured = capture_model(training(Blocks(Block()), square_loss), batch())
    with pytest.raises(dataclasses.FrozenInstanceError):
        captured.graph_hash = ""  # pyright: ignore[reportAttributeAccessIssue]
