"""Imports exported modules, and compares their training with the plain model."""

import importlib
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from autopart.exporters.targets import export_plan
from autopart.records.plan import Plan
from autopart.runtime.models.model import TrainingModel, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.runtime.rank_pool import RankPool

LEARNING_RATE = 0.05
MOMENTUM = 0.9
STEPS = 2


class Trained(NamedTuple):
    """The results of a few training steps."""

    losses: list[float]
    gradients: dict[str, np.ndarray]
    """Gradients from the last step, by parameter name."""
    parameters: dict[str, np.ndarray]


def import_files(files: Mapping[str, str], folder: Path) -> ModuleType:
    """The exported `pipeline` module, from files in `folder`, in place of an earlier export's."""
    for name, text in files.items():
        (folder / name).write_text(text)
    names = [Path(file).stem for file in files if file.endswith(".py")]
    for name in names:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        modules = {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(folder))
    return modules["pipeline"]


def import_export(plan: Plan) -> ModuleType:
    """The plan's exported `pipeline` module. Its files are gone when this returns."""
    with TemporaryDirectory() as folder:
        return import_files(export_plan(plan, "torch").files, Path(folder))


def check_training(pool: RankPool, plan: Plan, model: str, max_norm: float | None = None) -> None:
    """Train the plan's export on the pool, and compare with the plain model."""
    size, files = plan.microbatch_size, dict(export_plan(plan, "torch").files)
    plain = train_plain(model, size, plan.num_microbatches, max_norm)
    assert_same(plain, pool.call(train_exported, files, model, size, max_norm))


def train_exported(
    rank: int, files: Mapping[str, str], model: str, microbatch_size: int, max_norm: float | None
) -> Trained:
    """Train one rank. Returns its part of the gradients and parameters."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        return _train(import_files(files, Path(folder)), rank, model, microbatch_size, max_norm)


def _train(
    pipeline: ModuleType, rank: int, model: str, microbatch_size: int, max_norm: float | None
) -> Trained:
    source = load_model(model)
    training = build_training_model(source)
    example = example_batch(source, microbatch_size, seed=99)
    stages = pipeline.build_stages(training.model, training.loss_fn, example, rank, "cpu")
    schedule = pipeline.build_schedule(stages)
    optimizer = torch.optim.SGD(stages.module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    mine = range(stages.replica, pipeline.NUM_MICROBATCHES, pipeline.NUM_REPLICAS)
    losses = []
    for step in range(STEPS):
        microbatches = [example_batch(source, microbatch_size, seed=1000 * step + m) for m in mine]
        loss = pipeline.train_step(stages, schedule, optimizer, microbatches, max_norm)
        losses.append(loss.item())
    return Trained(losses, *_arrays(dict(stages.module.named_parameters())))


def train_plain(
    model: str, microbatch_size: int, num_microbatches: int, max_norm: float | None
) -> Trained:
    """Train the plain model for the same steps in this process."""
    source = load_model(model)
    training = build_training_model(source)
    parameters = dict(training.model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=LEARNING_RATE, momentum=MOMENTUM)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = sum(
            _backward(
                training,
                example_batch(source, microbatch_size, seed=1000 * step + m),
                num_microbatches,
            )
            for m in range(num_microbatches)
        )
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm)
        optimizer.step()
        losses.append(float(loss))
    return Trained(losses, *_arrays(parameters))


def assert_same(plain: Trained, ranks: list[Trained], tolerance: float = 1e-5) -> None:
    """Assert that every rank has the plain model's losses and whole tensors.

    Together the ranks have every trained tensor.
    """
    seen: set[str] = set()
    for rank, trained in enumerate(ranks):
        np.testing.assert_allclose(
            trained.losses, plain.losses, rtol=tolerance, err_msg=f"rank {rank}"
        )
        for name in trained.parameters:
            for kind in ("gradients", "parameters"):
                expected, actual = getattr(plain, kind).get(name), getattr(trained, kind).get(name)
                assert (expected is None) == (actual is None), f"{kind} of {name} on rank {rank}"
                if expected is not None:
                    error = np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)
                    assert error <= tolerance, f"{kind} of {name} on rank {rank}: {error:.2g}"
            seen.add(name)
    assert seen >= set(plain.gradients)


def _backward(training: TrainingModel, batch: Any, num_microbatches: int) -> float:
    loss = training(*batch) / num_microbatches
    loss.backward()
    return loss.item()


def _arrays(
    parameters: Mapping[str, torch.nn.Parameter],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    gradients = {n: p.grad.numpy().copy() for n, p in parameters.items() if p.grad is not None}
    return gradients, {n: p.detach().numpy().copy() for n, p in parameters.items()}
