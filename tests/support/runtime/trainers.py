"""A tiny GPT-2 in the trainers that people use: plain in one process, and under a plan on each rank."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from autopart.errors import AutopartError
from autopart.records.plan import Plan
from autopart.runtime.models.model import TrainingModel
from tests.support.runtime.captured_once import captured_once
from tests.support.runtime.hugging_face import tiny_gpt2
from tests.support.runtime.plans import plan_for

BATCH = 8
Log = list[dict[str, float]]


class Tokens(Dataset[dict[str, torch.Tensor]]):
    """Random tokens; with `pads`, each sample has its own number of labels."""

    def __init__(self, size: int, *, pads: bool = True) -> None:
        self._ids = torch.randint(2, 64, (size, 8), generator=torch.Generator().manual_seed(1))
        self._pads = pads

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels = self._ids[index].clone()
        if self._pads:
            labels[3 + index % 5 :] = -100
        return {"labels": labels, "input_ids": self._ids[index]}


def gpt2(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return tiny_gpt2(dropout)


@cache
def plan_of(cut: float = 0.5, replicas: int = 1, microbatches: int = 4) -> Plan:
    """A plan for the GPT-2 in two stages, or in one for a cut of 1."""
    example = {name: torch.stack([t, t]) for name, t in reversed(Tokens(1)[0].items())}
    captured = captured_once(TrainingModel(gpt2(), name="gpt2").train(), (example, None))
    return plan_for("gpt2", captured, [cut], replicas=replicas, num_microbatches=microbatches)


@contextmanager
def fresh_accelerate() -> Generator[None]:
    """In this block accelerate has no state from before. None stays behind it."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        for state in states:
            state._reset_state()  # pyright: ignore[reportPrivateUsage]


@contextmanager
def as_under_torchrun(rank: int, size: int) -> Generator[None]:
    """What torchrun tells its processes, for one that has its process group already."""
    told = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "TORCHELASTIC_RUN_ID": "none",
    }
    os.environ.update(told)
    try:
        with fresh_accelerate():
            yield
    finally:
        for name in told:
            del os.environ[name]


def arguments(folder: Path, **changes: Any) -> Any:
    """Training arguments with all that a run may use: schedule, clipping, evaluation, checkpoints."""
    from transformers import TrainingArguments

    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": BATCH,
            "gradient_accumulation_steps": 2,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "warmup_steps": 1,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "logging_steps": 1,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **changes,
        }
    )


def plain_trainer(folder: Path, resume: Path | None = None, **changes: Any) -> Log:
    from transformers import Trainer

    return _logged(Trainer, folder, resume, changes)


def planned_trainer(
    rank: int, plan: Plan, folder: Path, resume: Path | None = None, changes: Any = None
) -> Log:
    """The log of a run under a plan, on one of its ranks."""
    from autopart.trainers.with_transformers import PipelineTrainer

    def make(**keywords: Any) -> PipelineTrainer:
        return PipelineTrainer(plan, **keywords)

    with as_under_torchrun(rank, len(plan.orders)):
        return _logged(make, folder, resume, changes or {})


def _logged(
    make: Callable[..., Any], folder: Path, resume: Path | None, changes: dict[str, Any]
) -> Log:
    trainer = make(
        model=gpt2(),
        args=arguments(folder, **changes),
        train_dataset=Tokens(64),
        eval_dataset=Tokens(19),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    kept = ("step", "loss", "eval_loss", "grad_norm", "learning_rate")
    return [{k: v for k, v in line.items() if k in kept} for line in trainer.state.log_history]


def last_checkpoint(rank: int, plan: Plan, folder: Path) -> str | None:
    """The newest checkpoint in a new folder that only this rank's trainer makes."""
    from transformers.trainer_utils import get_last_checkpoint

    from autopart.trainers.with_transformers import PipelineTrainer

    own = folder / str(rank)
    with as_under_torchrun(rank, len(plan.orders)):
        PipelineTrainer(
            plan, gpt2(), arguments(own), train_dataset=Tokens(8), eval_dataset=Tokens(8)
        )
        return get_last_checkpoint(own)


def trainer_complaints(
    rank: int, plan: Plan, folder: Path, cases: list[dict[str, Any]]
) -> list[str]:
    """The error for each change of arguments; keys that start with `:` are keywords of the trainer."""
    from autopart.trainers.with_transformers import PipelineTrainer

    said: list[str] = []
    for case in cases:
        given = {"train_dataset": Tokens(64)} | {
            k[1:]: v for k, v in case.items() if k.startswith(":")
        }
        changes = {k: v for k, v in case.items() if not k.startswith(":")}
        with as_under_torchrun(rank, len(plan.orders)):
            try:
                args = arguments(folder, eval_strategy="no", **changes)
                PipelineTrainer(plan, gpt2(), args, **given).train()
                said.append("")
            except AutopartError as error:
                said.append(f"{type(error).__name__}: {error}")
    return said


def accelerated(
    make: Callable[[Any], Any], folder: Path, resume: Path | None, steps: int = 4
) -> tuple[Log, list[str]]:
    """A loop with accelerate as its pages show it; saves the state after step 2.

    `make` gives the accelerator, from an example of a batch. Returns the log, and the names of saved tensors.
    """
    from accelerate.utils import set_seed
    from safetensors.torch import load_file
    from torch.utils.data import DataLoader

    set_seed(3)
    loader = DataLoader(Tokens(64), batch_size=BATCH)
    accelerator = make(next(iter(DataLoader(Tokens(8), batch_size=BATCH))))
    model = gpt2()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    if resume is not None:
        accelerator.load_state(str(resume))
        loader = accelerator.skip_first_batches(loader, 4)
    log: Log = []
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            line = {"loss": loss.item(), "rate": schedule.get_last_lr()[0]}
            if accelerator.sync_gradients:
                line["norm"] = float(accelerator.clip_grad_norm_(model.parameters(), 0.5))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        log.append(line)
        if len(log) == 4 and resume is None:
            accelerator.save_state(str(folder))
    model.eval()
    with torch.no_grad():
        log.append({"loss": model(**batch).loss.item()})
    accelerator.wait_for_everyone()
    return log, sorted(load_file(folder / "model.safetensors")) if resume is None else []


def plain_accelerate(folder: Path, resume: Path | None = None) -> tuple[Log, list[str]]:
    from accelerate import Accelerator

    with fresh_accelerate():
        return accelerated(
            lambda _: Accelerator(cpu=True, gradient_accumulation_steps=2), folder, resume
        )


def planned_accelerate(
    rank: int, plan: Plan, folder: Path, resume: Path | None = None
) -> tuple[Log, list[str]]:
    from autopart.trainers.with_accelerate import PipelineAccelerator

    def make(example: Any) -> Any:
        return PipelineAccelerator(plan, example, cpu=True, gradient_accumulation_steps=2)

    with as_under_torchrun(rank, len(plan.orders)):
        return accelerated(make, folder, resume)


def accelerate_complaints(rank: int, plan: Plan) -> list[str]:
    """The errors for a loss that is not the model's, another model, another batch, and no name."""
    from autopart.trainers.with_accelerate import PipelineAccelerator

    batch = {name: torch.stack([t] * BATCH) for name, t in Tokens(1)[0].items()}
    said: list[str] = []
    with as_under_torchrun(rank, len(plan.orders)):
        accelerator = PipelineAccelerator(plan, batch, cpu=True)
        model = accelerator.prepare(gpt2())
        calls: list[Callable[[], Any]] = [
            lambda: accelerator.backward(model(**batch).loss * 2),
            lambda: accelerator.prepare(gpt2()),
            lambda: model(**{name: t[:3] for name, t in batch.items()}),
            lambda: model(batch["input_ids"]),
            lambda: model(**batch, attention_mask=batch["labels"]),
            lambda: PipelineAccelerator(
                plan, {"input_ids": batch["input_ids"][:1]}, cpu=True
            ).prepare(gpt2()),
        ]
        for call in calls:
            try:
                call()
                said.append("")
            except AutopartError as error:
                said.append(f"{type(error).__name__}: {error}")
    return said


def script_run(rank: int, folder: Path, text: str) -> None:
    """Run a script in `folder`, on the two ranks of its plan, as torchrun would."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        with as_under_torchrun(rank, 2):
            exec(compile(text, "script.py", "exec"), {"__name__": "__main__"})
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("model", None)
