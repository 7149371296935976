"""A model run layer by layer has the whole model's gradients."""

from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch

from autopart.runtime.profiling.layer_by_layer import (
    BackwardCall,
    LayerPrograms,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.layer_bytes import measure_layer_bytes, whole_stash_bytes
from autopart.runtime.profiling.profiled_model import ProfiledModel, prepare_model
from autopart.runtime.profiling.whole_model import own_forward
from autopart.runtime.transforms.split_backward import DeferredWork, defer, run_deferred
from tests.support.places import MODELS

PROFILED = MODELS / "profiled.py"

MODELS = [
    "zoo:unet-tiny",
    pytest.param("zoo:encdec-tiny", marks=pytest.mark.slow),
    f"{PROFILED}:build_tied",
    f"{PROFILED}:build_masked",
    f"{PROFILED}:build_frozen",
]


def _prepared(model: str, granularity: str = "block") -> ProfiledModel:
    return prepare_model(
        model,
        2,
        dtype="float64",
        device="cpu",
        granularity=granularity,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def llama() -> ProfiledModel:
    return _prepared("zoo:llama-tiny")


def _gradients(profiled: ProfiledModel) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in profiled.model.named_parameters() if p.grad is not None}
    for parameter in profiled.model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    return found


def _step(programs: LayerPrograms, *, split: bool) -> None:
    """One step layer by layer, with whole or with split backwards."""
    tape = run_forward(programs, lambda call: call.run())

    def around(call: BackwardCall) -> Sequence[torch.Tensor | None]:
        deferred: list[DeferredWork] = []
        with defer(deferred) if split else nullcontext():
            gradients = call.run()
        run_deferred(deferred)
        return gradients

    run_backward(programs, tape, around)
    assert tape.runs == [], "a backward consumes its forward"


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_layers_gradients_are_the_whole_models(model: str) -> None:
    profiled = _prepared(model)
    own_forward(profiled)().backward()
    expected = _gradients(profiled)
    for programs, split in (
        (profiled.programs, False),
        (profiled.timed, False),
        (profiled.split, False),
        (profiled.split, True),
        (profiled.timed_split, True),
    ):
        _step(programs, split=split)
        found = _gradients(profiled)
        for name, gradient in expected.items():
            # The gradient of a key's bias is only rounding.
            tolerance = 1e-12 * float(gradient.abs().max()) + 1e-17
            assert float((found[name] - gradient).abs().max()) <= tolerance, name


@pytest.mark.slow
def test_a_value_is_dropped_after_its_last_consumer() -> None:
    profiled = _prepared(f"{PROFILED}:build_masked")
    alive: list[tuple[str, ...]] = []

    def around(call: object) -> object:
        alive.append(call.awaiting)  # type: ignore[attr-defined]
        return call.run()  # type: ignore[attr-defined]

    run_forward(profiled.programs, around)  # type: ignore[arg-type]
    assert alive == [(), ("linear", "gt"), ("gt", "tanh"), ("where",)]


@pytest.mark.slow
def test_layers_that_share_a_table_compute_it_once_where_they_are_timed(
    llama: ProfiledModel,
) -> None:
    blocks = [la for la in llama.programs.layers if la.name.startswith("blocks.")]
    timed = [la for la in llama.timed.layers if la.name.startswith("blocks.")]
    lengths = [len(layer.module.graph.nodes) for layer in timed]  # type: ignore[attr-defined]
    assert all(len(layer.received) == 1 for layer in blocks)
    assert lengths[0] > lengths[1] == lengths[2]
    assert len(timed[0].outputs) > 1 and len(timed[1].received) > 1
    assert timed[1].outputs == blocks[1].outputs


@pytest.mark.slow
def test_bytes_are_measured_on_layers_that_run_alone(llama: ProfiledModel) -> None:
    model_bytes = measure_layer_bytes(llama.programs, llama.state, torch.device("cpu"))
    blocks = [
        b
        for la, b in zip(llama.programs.layers, model_bytes.layers, strict=True)
        if la.name.startswith("blocks.")
    ]
    assert len({block.stash_bytes for block in blocks}) == 1, "each could be alone on its stage"
    bytes_of = {value.name: value.bytes for value in llama.captured.values}
    assert whole_stash_bytes(model_bytes, bytes_of) > sum(b.stash_bytes for b in model_bytes.layers)
