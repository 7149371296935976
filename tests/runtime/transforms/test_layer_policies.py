"""Activation policies keep gradients equal, and free memory only for the layers that are named."""

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.errors import PlanError
from autopart.records.plan import Plan
from autopart.runtime.capture.capture import batch_leaves, capture_model
from autopart.runtime.capture.stage_modules import StageProgram, port, split_stages
from autopart.runtime.measuring.live_bytes import LiveStorages
from autopart.runtime.models.model import TrainingModel, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from autopart.runtime.transforms.host_copies import HostCopies
from autopart.runtime.transforms.layer_policies import (
    OffloadedLayer,
    Policy,
    apply_policies,
    offloading,
    recomputing,
    selective,
)
from autopart.runtime.transforms.offload import HostStash
from tests.runtime.engine.test_placements import Ranks, V, checked
from tests.runtime.engine.test_placements import plan as placed
from tests.support.long_tests import long_tests
from tests.support.runtime.plans import capture
from tests.support.runtime.rank_pool import RankPool

WIDTH = 32
ONE_TENSOR = 16 * WIDTH * 8
Tensors = dict[str, torch.Tensor]


class Mixing(nn.Module):
    """A linear layer behind an operation that no other layer has; it keeps a large stash."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.operation(x * 2.0))


class Writing(Mixing):
    """Writes into the previous layer's output."""

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


def run(
    program: StageProgram, leaves: Tensors, host: HostStash | None = None
) -> tuple[torch.Tensor, Tensors]:
    """Loss and gradients; each call draws random numbers from the same seed."""
    program.module.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    with host.forward(0) if host else nullcontext():
        (loss,) = program.module(*(leaves[name] for name in program.inputs))
    with host.backward(0) if host else nullcontext():
        loss.backward()
    named = program.module.named_parameters()
    return loss.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def recompute(program: StageProgram, layers: Sequence[str]) -> None:
    apply_policies(program, dict.fromkeys(layers, recomputing))


def offload(program: StageProgram, layers: Sequence[str]) -> HostStash:
    host = HostStash(HostCopies())
    apply_policies(program, dict.fromkeys(layers, offloading(host)))
    return host


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


@pytest.mark.slow
@pytest.mark.parametrize("layers", [(), ("1",), ("2", "4"), ("1", "2", "3", "4")])
def test_recomputed_layers_run_forward_twice_and_other_layers_once(layers: Sequence[str]):
    program, leaves = program_of(four_layers())
    plain = run(program, leaves)
    recompute(program, layers)
    with Count() as count:
        trained = run(program, leaves)
    torch.testing.assert_close(trained, plain, rtol=0, atol=0)
    calls = {layer: count.calls[name] for layer, name in FORWARDS.items()}
    assert calls == {layer: 2 if layer in layers else 1 for layer in FORWARDS}


def live_bytes(program: StageProgram, leaves: Tensors, host: HostStash | None = None) -> int:
    """Bytes alive between forward and backward, counted by storage, without parameters."""
    with LiveStorages() as live:
        for tensor in (*program.module.parameters(), *leaves.values()):
            live.ignore(tensor)
        with host.forward(0) if host else nullcontext():
            (loss,) = program.module(*(leaves[name] for name in program.inputs))
        kept = live.live_bytes - loss.nbytes
    with host.backward(0) if host else nullcontext():
        loss.backward()
    return kept


def test_a_recomputed_layer_keeps_only_its_inputs():
    program, leaves = program_of(four_layers())
    before = live_bytes(program, leaves)
    recompute(program, ["2", "3"])
    # No longer kept: the sigmoid's result, which is the linear's input, and gelu's scaled input and
    # result. Kept instead: each layer's input, which is the sum that the previous layer returns.
    assert before - live_bytes(program, leaves) == (3 - 2) * ONE_TENSOR


PRODUCTS = ("aten::mm", "aten::addmm")


@pytest.mark.slow
def test_a_selective_layer_runs_everything_except_its_products_again():
    program, leaves = program_of(four_layers())
    with Count() as count:
        plain = run(program, leaves)
    apply_policies(program, dict.fromkeys(["2", "4"], selective))
    with Count() as again:
        trained = run(program, leaves)
    torch.testing.assert_close(trained, plain, rtol=0, atol=0)
    assert {layer: again.calls[name] for layer, name in FORWARDS.items()} == {
        **dict.fromkeys(("1", "3"), 1),
        **dict.fromkeys(("2", "4"), 2),
    }
    assert all(again.calls.get(name) == count.calls.get(name) for name in PRODUCTS)


class Feeding(nn.Module):
    """Two products, with a cheap operation behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(torch.tanh(x))))


@pytest.mark.slow
def test_a_selective_layer_keeps_the_products_that_its_other_operations_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), Feeding(), Mixing(torch.tanh))
    program, leaves = program_of(model)
    kept = live_bytes(program, leaves)
    apply_policies(program, {"1": selective})
    # No longer kept: two results of tanh. Kept instead: the first product, and the layer's input,
    # which only sums read before. The second product is not kept, since only a sum reads it.
    assert kept - live_bytes(program, leaves) == (2 - 1 - 1) * ONE_TENSOR
    whole, _ = program_of(model)
    apply_policies(whole, {"1": recomputing})
    assert kept - live_bytes(whole, leaves) == (2 - 1) * ONE_TENSOR


class Overwriting(nn.Module):
    """Writes into its product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.relu_(self.linear(x))


def test_a_layer_that_writes_into_its_products_is_not_recomputed_selectively():
    program, leaves = program_of(nn.Sequential(nn.Linear(WIDTH, WIDTH), Overwriting()))
    plain = run(program, leaves)
    with pytest.raises(PlanError, match=r"layer '1' .* recompute all of it"):
        apply_policies(program, {"1": selective})
    recompute(program, ["1"])
    torch.testing.assert_close(run(program, leaves), plain, rtol=0, atol=0)


class OverwritingBehindDropout(nn.Module):
    """Dropout of probability 0 returns its input, so this writes into its product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.linear(x))
        x[:, 0] = 0
        return self.last(torch.tanh(x))


def test_a_write_behind_a_dropout_of_0_is_a_write_into_the_product():
    program, leaves = program_of(nn.Sequential(nn.Linear(WIDTH, WIDTH), OverwritingBehindDropout()))
    plain = run(program, leaves)
    with pytest.raises(PlanError, match=r"layer '1' .* recompute all of it"):
        apply_policies(program, {"1": selective})
    recompute(program, ["1"])
    torch.testing.assert_close(run(program, leaves), plain, rtol=0, atol=0)


class Skipping(nn.Module):
    """Python's and numpy's generators decide whether its layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            if x.sum() < 1e9 and np.random.random() + random.random() < 1:
                x = torch.tanh(layer(x))
        return x


@pytest.mark.slow
def test_a_recomputed_layer_draws_the_same_numbers_from_pythons_and_numpys_generators():
    def seeded() -> tuple[torch.Tensor, Tensors]:
        random.seed(1)
        np.random.seed(1)
        return run(program, leaves)

    program, leaves = program_of(nn.Sequential(nn.Linear(WIDTH, WIDTH), Skipping()))
    plain = seeded()
    follows = np.random.random()
    recompute(program, ["1"])
    torch.testing.assert_close(seeded(), plain, rtol=0, atol=0)
    assert np.random.random() == follows, "the second forward leaves no trace in the generators"


class Shifting(nn.Module):
    """Each layer reads the batch moved by one, which is written into a tensor of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = torch.zeros_like(x)
        shifted[:, 1:] = x[:, :-1]
        for layer in self.layers:
            x = torch.tanh(layer(x) + shifted)
        return x


@pytest.mark.parametrize("recomputed", [["layers.0"], ["layers.1", "layers.2"]])
def test_writes_into_a_tensor_that_no_layer_makes_are_repeated_for_each_layer_that_reads_it(
    recomputed: list[str],
):
    program, leaves = program_of(Shifting())
    plain = run(program, leaves)
    recompute(program, recomputed)
    torch.testing.assert_close(run(program, leaves), plain, rtol=0, atol=0)


@pytest.mark.slow
def test_the_stash_of_an_offloaded_layer_leaves_the_device():
    program, leaves = program_of(four_layers())
    plain, before = run(program, leaves), live_bytes(program, leaves)
    host = offload(program, ["2", "4"])
    layers = [m for m in program.module.modules() if isinstance(m, OffloadedLayer)]
    assert before - live_bytes(program, leaves, host) == 3 * ONE_TENSOR
    # The sigmoid's result, which is also the linear's input; erf's scaled input and its result.
    assert {la.name: la.moved_bytes for la in layers} == {"2": ONE_TENSOR, "4": 2 * ONE_TENSOR}
    torch.testing.assert_close(run(program, leaves, host), plain, rtol=0, atol=0)


def test_only_the_named_layers_are_offloaded():
    program, leaves = program_of(four_layers())
    run(program, leaves, offload(program, ["3"]))
    (layer,) = (m for m in program.module.modules() if isinstance(m, OffloadedLayer))
    assert layer.name == "3" and layer.moved_bytes == 2 * ONE_TENSOR


@pytest.mark.parametrize("policy", [recomputing, selective])
def test_dropout_draws_the_same_mask_again(policy: Policy):
    program, leaves = program_of(chain(nn.Dropout(0.5), torch.tanh, nn.Dropout(0.3)))
    plain = run(program, leaves)
    apply_policies(program, dict.fromkeys(["1", "3"], policy))
    trained = run(program, leaves)
    torch.testing.assert_close(trained, plain, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [recomputing, selective])
def test_a_recomputed_layer_updates_its_statistics_once(policy: Policy):
    twins = [program_of(chain(nn.BatchNorm1d(WIDTH), torch.tanh)) for _ in range(2)]
    apply_policies(twins[1][0], {"1": policy})
    for _ in range(3):
        plain, trained = (run(*twin) for twin in twins)
        torch.testing.assert_close(trained, plain, rtol=0, atol=0)
    of_plain, of_recomputed = (dict(program.module.named_buffers()) for program, _ in twins)
    for name, buffer in of_plain.items():
        torch.testing.assert_close(of_recomputed[name], buffer, rtol=0, atol=0)
    assert any("running_mean" in name for name in of_plain)


def test_restored_statistics_are_no_error_for_other_microbatches_in_flight():
    """Two forwards run, then their backwards."""
    program, leaves = program_of(chain(nn.BatchNorm1d(WIDTH), torch.tanh))
    recompute(program, ["1"])
    first, second = (program.module(*leaves.values())[0] for _ in range(2))
    first.backward()
    second.backward()


def test_layers_that_write_into_another_layer_s_output_are_recomputed_with_it():
    program, leaves = program_of(
        nn.Sequential(nn.Linear(WIDTH, WIDTH), Mixing(torch.tanh), Writing(None))
    )
    plain = run(program, leaves)
    assert program.layers == ("0", "1", "loss")
    recompute(program, ["1"])
    torch.testing.assert_close(run(program, leaves), plain, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["zoo:gpt2-tiny", "zoo:unet-tiny", "zoo:moe-tiny"])
def test_every_layer_of_a_model_takes_every_policy(model: str):
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
    host = HostStash(HostCopies())
    policies = [recomputing, selective, offloading(host)]
    for shift in range(3):
        program = fresh()
        apply_policies(program, {name: policies[(n + shift) % 3] for n, name in enumerate(names)})
        trained = run(program, leaves, host)
        torch.testing.assert_close(trained, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", [recomputing, selective])
def test_the_gradient_of_a_skip_is_copied_before_earlier_layers_run_their_backward(policy: Policy):
    """It is part of a larger tensor, which its copy frees."""
    captured = capture("zoo:unet-tiny")
    names = [layer.name for layer in captured.layers]
    program = split_stages(captured, [names[:6], names[6:]])[1]
    apply_policies(program, dict.fromkeys([n for n in names[6:] if n != "loss"], policy))
    nodes = list(program.module.graph.nodes)
    taken = [node for node in nodes if node.all_input_nodes[:1] and node.target is port]
    received = [node for node in taken if node.all_input_nodes[0].op == "placeholder"]
    assert len(received) == 4, "three skips, and the result of the layer before"
    for node in received:
        behind = nodes[nodes.index(node) + 1 :]
        assert next(n for n in behind if n.target is not port) in node.users


def with_policies(of: Plan) -> Plan:
    """Layers are recomputed, selectively recomputed, offloaded and kept in turn."""
    stages = [
        msgspec.structs.replace(
            stage,
            recompute=stage.layers[::4],
            selective=stage.layers[1::4],
            offload=stage.layers[2::4],
        )
        for stage in of.stages
    ]
    return msgspec.structs.replace(of, stages=tuple(stages))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "split_backward"),
    [
        pytest.param([[0], [1]], False, id="whole", marks=pytest.mark.long),
        pytest.param(V, True, id="V with split backwards"),
    ],
)
def test_a_plan_with_recomputed_and_offloaded_layers_trains_as_the_plain_model(
    two_ranks: RankPool, ranks: Ranks, split_backward: bool
):
    checked(two_ranks, with_policies(placed("zoo:gpt2-tiny", ranks, split_backward=split_backward)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*long_tests("resnet"), "unet", *long_tests("encdec", "llama"), "moe"]
)
def test_examples_with_recomputed_layers_train_as_the_plain_model(two_ranks: RankPool, name: str):
    of = placed(f"zoo:{name}-tiny", [[0], [1]])
    once = {la.name for la in capture(f"zoo:{name}-tiny", 2, "float64").layers if la.buffers}
    stages = [
        msgspec.structs.replace(
            stage, recompute=[n for n in stage.layers[::2] if n not in once or name == "resnet"]
        )
        for stage in of.stages
    ]
    checked(two_ranks, msgspec.structs.replace(of, stages=tuple(stages)))
