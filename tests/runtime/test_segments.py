"""A model run layer by layer does what the whole model does."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from autopart.runtime.execution.weight_gradients import Deed, put_off, run_put_off
from autopart.runtime.profiling.accounting import take_account, whole_stash_bytes
from autopart.runtime.profiling.segments import (
    BackwardCall,
    Segments,
    run_backward,
    run_forward,
)
from autopart.runtime.profiling.subject import Subject, prepare_subject
from autopart.runtime.profiling.whole_model import own_forward

PROFILED = Path(__file__).parents[1] / "models" / "profiled.py"

MODELS = [
    "zoo:unet-tiny",
    pytest.param("zoo:encdec-tiny", marks=pytest.mark.slow),
    f"{PROFILED}:build_tied",
    f"{PROFILED}:build_masked",
    f"{PROFILED}:build_frozen",
]


def _subject(model: str, granularity: str = "block") -> Subject:
    return prepare_subject(
        model,
        2,
        dtype="float64",
        device="cpu",
        granularity=granularity,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def llama() -> Subject:
    return _subject("zoo:llama-tiny")


def _gradients(subject: Subject) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}
    for parameter in subject.model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    return found


def _step(segments: Segments, *, halves: bool) -> None:
    """One segmented step, its backwards whole or in halves."""
    tape = run_forward(segments, lambda call: call.run())

    def around(call: BackwardCall) -> Sequence[torch.Tensor | None]:
        deeds: list[Deed] = []
        with put_off(deeds) if halves else nullcontext():
            gradients = call.run()
        run_put_off(deeds)
        return gradients

    run_backward(segments, tape, around)
    assert tape.runs == [], "a backward consumes its forward"


@pytest.mark.parametrize("model", MODELS)
def test_the_layers_gradients_are_the_whole_models(model: str) -> None:
    subject = _subject(model)
    own_forward(subject)().backward()
    expected = _gradients(subject)
    for segments, halves in (
        (subject.segments, False),
        (subject.timed, False),
        (subject.split, False),
        (subject.split, True),
        (subject.timed_split, True),
    ):
        _step(segments, halves=halves)
        found = _gradients(subject)
        for name, gradient in expected.items():
            # A key's bias has no gradient but rounding.
            tolerance = 1e-12 * float(gradient.abs().max()) + 1e-17
            assert float((found[name] - gradient).abs().max()) <= tolerance, name


def test_a_value_is_dropped_after_its_last_consumer() -> None:
    subject = _subject(f"{PROFILED}:build_masked")
    alive: list[tuple[str, ...]] = []

    def around(call: object) -> object:
        alive.append(call.awaiting)  # type: ignore[attr-defined]
        return call.run()  # type: ignore[attr-defined]

    run_forward(subject.segments, around)  # type: ignore[arg-type]
    assert alive == [(), ("linear", "gt"), ("gt", "tanh"), ("where",)]


def test_layers_that_share_a_table_compute_it_once_where_they_are_timed(llama: Subject) -> None:
    blocks = [la for la in llama.segments.layers if la.name.startswith("blocks.")]
    timed = [la for la in llama.timed.layers if la.name.startswith("blocks.")]
    lengths = [len(layer.program.graph.nodes) for layer in timed]  # type: ignore[attr-defined]
    assert all(len(layer.received) == 1 for layer in blocks)
    assert lengths[0] > lengths[1] == lengths[2]
    assert len(timed[0].outputs) > 1 and len(timed[1].received) > 1
    assert timed[1].outputs == blocks[1].outputs


def test_accounting_runs_layers_that_stand_alone(llama: Subject) -> None:
    account = take_account(llama.segments, llama.state, torch.device("cpu"))
    blocks = [
        b
        for la, b in zip(llama.segments.layers, account.layers, strict=True)
        if la.name.startswith("blocks.")
    ]
    assert len({block.stash_bytes for block in blocks}) == 1, "each could be alone on its stage"
    bytes_of = {value.name: value.bytes for value in llama.captured.values}
    assert whole_stash_bytes(account, bytes_of) > sum(b.stash_bytes for b in account.layers)
