"""Recomputed and offloaded layers: the gradients stay, the memory goes, and only where it is asked."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.plan import Plan
from autopart.runtime.capture.capture import batch_leaves, capture_model
from autopart.runtime.capture.split import StageProgram, split_stages
from autopart.runtime.execution.offload import Offload
from autopart.runtime.execution.treated_layers import OffloadedLayer, treat_layers
from autopart.runtime.models.model import (
    TrainingModel,
    build_training_model,
    example_batch,
    load_model,
)
from autopart.runtime.profiling.stash import SavedStorages, storage_keys
from tests.runtime.plans import capture
from tests.runtime.rank_pool import RankPool
from tests.runtime.test_placements import Ranks, V, checked
from tests.runtime.test_placements import plan as placed

WIDTH = 32
ONE_TENSOR = 16 * WIDTH * 8
Tensors = dict[str, torch.Tensor]


class Mixing(nn.Module):
    """A linear layer behind an operation that only this layer has; it keeps much for its backward."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.operation(x * 2.0))


class Writing(Mixing):
    """Writes into what the layer before made."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mul_(2.0))


def chain(*operations: Any) -> nn.Module:
    """A linear layer, 0, and one layer for each operation, from 1."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *(Mixing(of) for of in operations))


def program_of(model: nn.Module) -> tuple[StageProgram, Tensors]:
    training = TrainingModel(model, lambda output, _: output.square().mean()).double()
    torch.manual_seed(1)
    batch = ((torch.randn(16, WIDTH, dtype=torch.float64),), None)
    captured = capture_model(training, batch)
    (program,) = split_stages(captured, [[layer.name for layer in captured.layers]])
    return program, batch_leaves(captured, batch)


def run(program: StageProgram, leaves: Tensors) -> tuple[torch.Tensor, Tensors]:
    """Loss and gradients; random numbers from the same seed each time."""
    program.module.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    (loss,) = program.module(*(leaves[name] for name in program.inputs))
    loss.backward()
    named = program.module.named_parameters()
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


class Count(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] = self.calls.get(func.name(), 0) + 1
        return func(*args, **(kwargs or {}))


FORWARDS = {"1": "aten::tanh", "2": "aten::sigmoid", "3": "aten::gelu", "4": "aten::erf"}


def four_layers() -> nn.Module:
    return chain(torch.tanh, torch.sigmoid, nn.functional.gelu, torch.erf)


@pytest.mark.parametrize("layers", [(), ("1",), ("2", "4"), ("1", "2", "3", "4")])
def test_recomputed_layers_run_forward_twice_and_the_others_once(layers: Sequence[str]):
    program, leaves = program_of(four_layers())
    plain = run(program, leaves)
    treat_layers(program, layers, ())
    with Count() as count:
        treated = run(program, leaves)
    torch.testing.assert_close(treated, plain, rtol=0, atol=0)
    calls = {layer: count.calls[name] for layer, name in FORWARDS.items()}
    assert calls == {layer: 2 if layer in layers else 1 for layer in FORWARDS}


def held_bytes(program: StageProgram, leaves: Tensors) -> int:
    """What autograd keeps between forward and backward, counted by storage, without parameters."""
    own = storage_keys([*program.module.parameters(), *leaves.values()])
    with SavedStorages() as saved:
        (loss,) = program.module(*(leaves[name] for name in program.inputs))
        held = sum(size for key, size in saved.held().items() if key not in own)
    loss.backward()
    return held


def test_a_recomputed_layer_keeps_nothing_but_what_it_takes():
    program, leaves = program_of(four_layers())
    before = held_bytes(program, leaves)
    treat_layers(program, ["2", "3"], ())
    # The sigmoid's result, which is the linear's input; gelu's scaled input and its result. What
    # each layer takes is kept instead: the sum that the layer before gives.
    assert before - held_bytes(program, leaves) == (3 - 2) * ONE_TENSOR


def test_the_stash_of_an_offloaded_layer_leaves_the_device():
    """On a CPU both are host memory: what was kept is freed, and its copy is as large."""
    program, leaves = program_of(four_layers())
    plain = run(program, leaves)
    treat_layers(program, (), ["2", "4"])
    freed: list[StorageWeakRef] = []
    kept = Offload._pack

    def noting(self: Offload, tensor: torch.Tensor) -> Any:
        packed = kept(self, tensor)
        if not isinstance(packed, torch.Tensor):
            freed.append(StorageWeakRef(tensor.untyped_storage()))
        return packed

    Offload._pack = noting
    try:
        (loss,) = program.module(*(leaves[name] for name in program.inputs))
        assert len(freed) == 4 and all(storage.expired() for storage in freed)
        loss.backward()
    finally:
        Offload._pack = kept
    layers = [m for m in program.module.modules() if isinstance(m, OffloadedLayer)]
    # The sigmoid's result, also the linear's input; erf's scaled input and its result.
    assert {la.name: la.moved_bytes for la in layers} == {"2": ONE_TENSOR, "4": 2 * ONE_TENSOR}
    torch.testing.assert_close(run(program, leaves), plain, rtol=0, atol=0)


def test_only_layers_that_are_named_are_offloaded():
    program, leaves = program_of(four_layers())
    treat_layers(program, (), ["3"])
    run(program, leaves)
    (layer,) = (m for m in program.module.modules() if isinstance(m, OffloadedLayer))
    assert layer.name == "3" and layer.moved_bytes == 2 * ONE_TENSOR


def test_dropout_draws_the_same_mask_again():
    program, leaves = program_of(chain(nn.Dropout(0.5), torch.tanh, nn.Dropout(0.3)))
    plain = run(program, leaves)
    treat_layers(program, ["1", "3"], ())
    treated = run(program, leaves)
    torch.testing.assert_close(treated, plain, rtol=0, atol=0)


def test_the_statistics_of_a_recomputed_layer_are_those_of_one_forward():
    twins = [program_of(chain(nn.BatchNorm1d(WIDTH), torch.tanh)) for _ in range(2)]
    treat_layers(twins[1][0], ["1"], ())
    for _ in range(3):
        plain, treated = (run(*twin) for twin in twins)
        torch.testing.assert_close(treated, plain, rtol=0, atol=0)
    of_plain, of_treated = (dict(program.module.named_buffers()) for program, _ in twins)
    for name, buffer in of_plain.items():
        torch.testing.assert_close(of_treated[name], buffer, rtol=0, atol=0)
    assert any("running_mean" in name for name in of_plain)


def test_microbatches_in_flight_keep_to_their_own_statistics():
    """Two forwards, then their backwards: putting statistics back is no fault to the other one."""
    program, leaves = program_of(chain(nn.BatchNorm1d(WIDTH), torch.tanh))
    treat_layers(program, ["1"], ())
    first, second = (program.module(*leaves.values())[0] for _ in range(2))
    first.backward()
    second.backward()


def test_layers_that_write_into_what_another_made_are_recomputed_with_it():
    program, leaves = program_of(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), Mixing(torch.tanh), Writing(None))
    )
    plain = run(program, leaves)
    assert program.layers == ("0", "1", "loss")
    treat_layers(program, ["1"], ())
    torch.testing.assert_close(run(program, leaves), plain, rtol=0, atol=0)


@pytest.mark.parametrize("model", ["zoo:gpt2-tiny", "zoo:unet-tiny", "zoo:moe-tiny"])
def test_every_layer_of_a_model_can_be_treated(model: str):
    """Skips, masks that all blocks share, tied weights, several outputs of a layer."""
    source = load_model(model)
    training, batch = (
        build_training_model(source, dtype="float64"),
        example_batch(source, 2, dtype="float64"),
    )
    captured = capture_model(training, batch)
    names = [layer.name for layer in captured.layers]
    leaves = batch_leaves(captured, batch)

    def fresh() -> StageProgram:
        return split_stages(captured, [names])[0]

    plain = run(fresh(), leaves)
    for recompute, offload in ((names, ()), ((), names), (names[::2], names[1::2])):
        program = fresh()
        treat_layers(program, recompute, offload)
        treated = run(program, leaves)
        torch.testing.assert_close(treated, plain, rtol=1e-12, atol=1e-14)


def with_treatments(of: Plan) -> Plan:
    """Every layer but each third is recomputed or offloaded in turn."""
    stages = [
        msgspec.structs.replace(stage, recompute=stage.layers[::3], offload=stage.layers[1::3])
        for stage in of.stages
    ]
    return msgspec.structs.replace(of, stages=tuple(stages))


@pytest.mark.parametrize(
    ("ranks", "halves"), [([[0], [1]], False), (V, True)], ids=["whole", "V in halves"]
)
def test_a_plan_with_recomputed_and_offloaded_layers_trains_as_the_plain_model(
    two_ranks: RankPool, ranks: Ranks, halves: bool
):
    checked(two_ranks, with_treatments(placed("zoo:gpt2-tiny", ranks, halves=halves)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet", "unet", "encdec", "llama", "moe"])
def test_treated_examples_train_as_the_plain_model(two_ranks: RankPool, name: str):
    of = placed(f"zoo:{name}-tiny", [[0], [1]])
    once = {la.name for la in capture(f"zoo:{name}-tiny", 2, "float64").layers if la.buffers}
    stages = [
        msgspec.structs.replace(
            stage, recompute=[n for n in stage.layers[::2] if n not in once or name == "resnet"]
        )
        for stage in of.stages
    ]
    checked(two_ranks, msgspec.structs.replace(of, stages=tuple(stages)))
