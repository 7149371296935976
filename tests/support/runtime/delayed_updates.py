"""Training with several weight versions: in a pipeline without flushes, and by hand in one
process."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from autopart.errors import AutopartError
from autopart.records.plan import Plan, stage_ranks
from autopart.runtime.capture.stage_modules import split_stages
from autopart.runtime.checking.dropout import DropNothing
from autopart.runtime.engine.asynchronous_pipeline import make_asynchronous_pipeline
from autopart.runtime.models.model import Batch, build_training_model, example_batch
from autopart.runtime.models.model_file import load_model
from tests.support.runtime.plans import capture

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


Guess = tuple[int, int]
"""A version, and the further updates over which weights are predicted from it."""


@dataclass(frozen=True)
class Delayed:
    """Results of a run."""

    losses: list[float]
    """Mean loss per update."""
    state: dict[str, torch.Tensor]
    versions: Mapping[int, int]
    """Weight version by microbatch, in a pipeline."""
    most_versions: int = 0


def in_pipeline(rank: int, plan: Plan, schedule: str, updates: int, optimizer: str) -> Delayed:
    """The results on this rank."""
    source, dtype = load_model(plan.origin.model), plan.origin.dtype
    training = build_training_model(source, dtype=dtype)
    example = example_batch(source, plan.microbatch_size, dtype=dtype)
    pipeline = make_asynchronous_pipeline(
        plan, training.model, example, schedule, loss_fn=training.loss_fn
    )
    stepper = OPTIMIZERS[optimizer](pipeline.parameters.values())

    def step() -> None:
        stepper.step()
        stepper.zero_grad()

    with DropNothing():
        losses = pipeline.train(lambda m: microbatch(plan, m), updates, step, stepper)
    assert pipeline.seen is not None
    seen = pipeline.seen
    for versions in seen.versions.values():
        assert sorted(versions) == list(pipeline.microbatches(updates))
    state = {name: tensor.clone() for name, tensor in pipeline.state_dict().items()}
    stage = max(seen.versions, default=-1)
    versions, most = seen.versions.get(stage, {}), seen.most_versions.get(stage, 0)
    return Delayed(losses.tolist(), state, versions, most)


def complaint_of(rank: int, plan: Plan, schedule: str, optimizer: str = "adamw") -> str:
    """The error if the schedule cannot run, else an empty string."""
    try:
        in_pipeline(rank, plan, schedule, 1, optimizer)
    except AutopartError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def by_hand(
    plan: Plan,
    updates: int,
    per_update: int,
    optimizer: str,
    version: Callable[[int, int], int],
) -> Delayed:
    """Each microbatch runs with every stage's weights after `version(stage, microbatch)` updates.

    Its gradients change the newest weights.
    """
    training = build_training_model(load_model(plan.origin.model), dtype=plan.origin.dtype)
    parameters = {name.removeprefix("model."): p for name, p in training.named_parameters()}
    stages = stages_of_parameters(plan)
    stepper = OPTIMIZERS[optimizer](parameters.values())
    history = [copied(parameters)]
    losses: list[float] = []
    for update in range(updates):
        total = 0.0
        for m in range(update * per_update, (update + 1) * per_update):
            for name, parameter in parameters.items():
                parameter.data = history[version(stages[name], m)][name].clone()
            with DropNothing():
                loss = training(*microbatch(plan, m)) / per_update
            loss.backward()
            total += loss.item()
        for name, parameter in parameters.items():
            parameter.data = history[update][name].clone()
        stepper.step()
        stepper.zero_grad()
        history.append(copied(parameters))
        losses.append(total)
    return Delayed(losses, training.model.state_dict(), {})


def predicted_by_hand(
    plan: Plan,
    updates: int,
    forward: Callable[[int, int], Guess],
    backward: Callable[[int, int], Guess],
) -> Delayed:
    """Updates after each microbatch, with momentum, and with predicted weights.

    A guess repeats the last change of its version: W(v) + d (W(v) - W(v - 1)). `forward` and
    `backward` have the guesses of a stage and a microbatch.
    """
    training = build_training_model(load_model(plan.origin.model), dtype=plan.origin.dtype)
    parameters = {name.removeprefix("model."): p for name, p in training.named_parameters()}
    stages, history = stages_of_parameters(plan), [copied(parameters)]
    stepper = OPTIMIZERS["momentum"](parameters.values())
    losses: list[float] = []

    def overwrite(guess: Callable[[int, int], Guess], m: int) -> None:
        for name, parameter in parameters.items():
            version, distance = guess(stages[name], m)
            now, before = history[version][name], history[max(0, version - 1)][name]
            parameter.data.copy_(now + distance * (now - before))

    for m in range(updates):
        overwrite(forward, m)
        with DropNothing():
            loss = training(*microbatch(plan, m))
        overwrite(backward, m)
        loss.backward()
        overwrite(lambda stage, m: (m, 0), m)
        stepper.step()
        stepper.zero_grad()
        history.append(copied(parameters))
        losses.append(loss.item())
    return Delayed(losses, training.model.state_dict(), {})


def stages_of_parameters(plan: Plan) -> dict[str, int]:
    """The last stage that reads each parameter."""
    captured = capture(plan.origin.model, plan.microbatch_size, plan.origin.dtype)
    programs = split_stages(captured, [stage.layers for stage in plan.stages])
    assert len(programs) == len(stage_ranks(plan))
    return {name: s for s, program in enumerate(programs) for name in program.parameters}


def copied(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def microbatch(plan: Plan, m: int) -> Batch:
    source = load_model(plan.origin.model)
    return example_batch(source, plan.microbatch_size, dtype=plan.origin.dtype, seed=1 + m)
