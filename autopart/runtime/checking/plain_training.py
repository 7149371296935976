"""Trains the plain model with a run's settings, as the reference for its check.

A run without flushes is compared with a plain model that trains with the same older or predicted weights.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from autopart.errors import ModelError
from autopart.records.plan import Plan, cast_of
from autopart.records.training import has_master_copies
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.checking.check import CheckRecord
from autopart.runtime.checking.own_rounding import gradients_in_float64
from autopart.runtime.checking.plain_optimizer import PlainOptimizer
from autopart.runtime.checking.reference_run import run_reference
from autopart.runtime.checking.weight_history import (
    Guess,
    Guesses,
    History,
    PredictionHistory,
    WeightHistory,
)
from autopart.runtime.engine.asynchronous_rules import AsynchronousRules, rules_of
from autopart.runtime.engine.microbatches import Microbatches
from autopart.runtime.engine.run_settings import RunSettings, optimizer_name
from autopart.runtime.models.model import TrainingModel, build_training_model
from autopart.runtime.models.precision import coarsest_dtype
from autopart.runtime.transforms.seeded_parts import Parts, plain_parts_seeded
from autopart.runtime.update.optimizer import LEARNING_RATES
from autopart.schedules.asynchronous_kind import weight_version
from autopart.zoo.source import ModelSource


def train_plain(
    plan: Plan,
    settings: RunSettings,
    source: ModelSource,
    data: Microbatches,
    device: str,
    programs: Sequence[StageProgram],
    parts: Parts,
    note: Callable[[str], None],
) -> CheckRecord:
    """Train the plain model with the run's settings.

    `programs` are the pipeline's stages. A parameter's stage decides its weight versions in an
    asynchronous run. `parts` are those of the captured model. `note` is told about the progress.
    Raises ModelError where both models have the same parameter objects.
    """
    stages = {name: index for index, of in enumerate(programs) for name in of.parameters}
    size, name = plan.num_microbatches, settings.asynchronous
    rules = None if name is None else rules_of(plan, name)
    microbatches_per_update = size if rules is None else rules.setting.num_microbatches
    updates = settings.steps * size // microbatches_per_update
    autocast = torch.bfloat16 if settings.autocast else None
    optimizer = optimizer_name(settings)
    lr = LEARNING_RATES[optimizer] if settings.lr is None else settings.lr
    has_masters = has_master_copies(plan.training)
    model = build_training_model(source, dtype=cast_of(plan), device=device, seed=settings.seed)
    check_other(model, programs)
    dtype = coarsest_dtype(model, plan.origin.dtype)
    with plain_parts_seeded(model, parts):
        reference = run_reference(
            model,
            lambda update, m: data.batch(
                *divmod(update * microbatches_per_update + m, size), device
            ),
            steps=updates,
            num_microbatches=microbatches_per_update,
            optimizer=lambda trained: PlainOptimizer(
                optimizer, trained, lr, has_masters=has_masters, clip_norm=settings.clip_norm
            ),
            note=note,
            autocast=autocast,
            history=None if rules is None else partial(_history, rules, stages),
        )
    batches = partial(data.batch, 0, device=device)
    in_float64 = partial(
        gradients_in_float64, source, settings.seed, batches, size, device, settings.clip_norm
    )
    is_plain = dtype == "float32" and autocast is None and rules is None
    return CheckRecord(
        in_float64=in_float64 if is_plain else None,
        reference=reference,
        dtype=dtype if autocast is None else "bfloat16",
        steps=updates,
        optimizer=optimizer,
        lr=lr,
        weights="" if rules is None else "predicted" if rules.kind.predicts_with else "older",
    )


def check_other(model: TrainingModel, programs: Sequence[StageProgram]) -> None:
    """Raise ModelError where the plain model has parameters of the pipeline itself."""
    ours = {id(p) for program in programs for p in program.module.parameters()}
    if not ours.isdisjoint(map(id, model.parameters())):
        raise ModelError(
            f"{model.name}: its builder returns the same module in each call, and a check needs two; "
            "build a new one in each call"
        )


def _history(
    rules: AsynchronousRules,
    stages: Mapping[str, int],
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: PlainOptimizer,
) -> History:
    """The plain model's weights for each microbatch, under an asynchronous schedule."""
    if not rules.kind.predicts_with:
        return WeightHistory(parameters, partial(_version, rules, stages))
    kind, setting = rules
    n = setting.num_microbatches

    def forward(name: str, microbatch: int) -> Guess:
        # A batch's weights are predicted before its first forward. The stages after this one have
        # one microbatch each, whose backward comes later.
        stage, first = stages.get(name, 0), microbatch // n * n
        version = max(0, first - (setting.num_stages - 1 - stage)) // n
        return Guess(version, int(kind.forward_delay(setting, stage)))

    def backward(name: str, microbatch: int) -> Guess:
        return Guess(microbatch // n, int(kind.backward_delay(setting, stages.get(name, 0))))

    return PredictionHistory(parameters, optimizer.stepped, Guesses(forward, backward))


def _version(
    rules: AsynchronousRules, stages: Mapping[str, int], name: str, microbatch: int
) -> int:
    """Weight version for one parameter. A parameter without a stage has no gradient; any version
    fits."""
    return weight_version(rules.kind, rules.setting, stages.get(name, 0), microbatch)
