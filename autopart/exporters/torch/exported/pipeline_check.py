"""The check of `pipeline.py`: one step, compared with your plain model.

Written by autopart. `python pipeline.py --check model.py` starts all ranks on this machine's CPU.
Under torchrun, each process is one rank; `--device cuda` then uses the GPUs.

`model.py` defines `build_model()` and `example_inputs(microbatch_size)`. Where the model returns no
loss of its own, it also defines `example_target(microbatch_size)` and `loss_fn(output, target)`.

Every rank trains the plain model too: the same weights, microbatches and random numbers. The check
compares the mean loss, and each gradient on each rank that has its parameter.
"""

import argparse
import contextlib
import datetime
import importlib
import importlib.util
import logging
import math
import os
import random
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn
from torch.utils import _pytree as pytree

from pipeline_capture import ModelWithLoss, give_shapes, lazy_parameters
from pipeline_draws import SameDraws, seed_by_microbatch
from pipeline_plan import (
    CASTS,
    DTYPE,
    MICROBATCH_SIZE,
    MODEL,
    NUM_MICROBATCHES,
    NUM_REPLICAS,
    RANKS,
)
from pipeline_schedule import build_schedule
from pipeline_stages import build_stages
from pipeline_training import accumulate_gradients, sum_shared_gradients

# Largest difference between two gradients, relative to the plain model's largest element.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}
# A difference counts as rounding up to this many machine epsilons of the model's largest gradient.
FLOOR_EPSILONS = 4.0
SEED = 0


class CheckError(Exception):
    """The check failed, or could not run."""


class Model(NamedTuple):
    """The functions in a model file."""

    build_model: Callable[[], nn.Module]
    example_inputs: Callable[[int], Any]
    example_target: Callable[[int], Any] | None
    loss_fn: Callable[[Any, Any], torch.Tensor] | None


class Difference(NamedTuple):
    """One difference from the plain model, relative to the plain value."""

    what: str
    size: float
    allowed: float


def main(description: str | None) -> None:
    """Read the command line, run the check and print its result; exit with 1 where it fails."""
    parser = argparse.ArgumentParser(prog="pipeline.py", description=description)
    parser.add_argument("--check", nargs="?", const=MODEL, required=True, metavar="MODEL")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    try:
        if "RANK" in os.environ:
            _as_rank(int(os.environ["RANK"]), options.check, options.device, None)
        else:
            _on_this_machine(options.check, options.device)
    except CheckError as error:
        # Under torchrun every rank knows the verdict, and rank 0 tells it.
        sys.exit(1 if os.environ.get("RANK", "0") != "0" else f"error: {error}")


def _on_this_machine(model: str, device: str) -> None:
    load_model(model)  # a missing or broken file is told before any rank starts
    ranks = {rank for on in RANKS for rank in on}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells each end
    with tempfile.TemporaryDirectory(prefix="pipeline-check-") as folder:
        meeting = f"file://{folder}/meeting"
        try:
            spawn(_spawned, (len(ranks), model, device, meeting), len(ranks))
        except ProcessRaisedException as error:
            # The text ends with the line of the rank's own error: the class, and its message.
            last = str(error).strip().splitlines()[-1]
            raise CheckError(last.partition(": ")[2] or last) from None
        except ProcessExitedException as error:
            raise CheckError(f"a rank ended: {error}") from None


def _spawned(rank: int, size: int, model: str, device: str, meeting: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank))
    try:
        _as_rank(rank, model, device, meeting)
    except CheckError:
        raise
    except Exception as error:  # building and capturing run the user's code
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckError(f"rank {rank}: {told}") from error


def _as_rank(rank: int, model: str, device: str, meeting: str | None) -> None:
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=meeting,
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=datetime.timedelta(minutes=10),
    )
    try:
        said = check(load_model(model), rank, place)
        if rank == 0:
            print(said)  # noqa: T201 - the result
    finally:
        dist.destroy_process_group()


def load_model(text: str) -> Model:
    """The functions in a model file, named `model.py` or `model.py:build`. Raises CheckError."""
    path, _, builder = text.partition(":")
    spec = importlib.util.spec_from_file_location("checked_model", path)
    if not Path(path).is_file() or spec is None or spec.loader is None:
        raise CheckError(f"{path}: there is no such Python file; name it with --check model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["checked_model"] = module
    sys.path.append(str(Path(path).resolve().parent))
    spec.loader.exec_module(module)
    builder = builder or "build_model"
    for name in (builder, "example_inputs"):
        if not callable(getattr(module, name, None)):
            raise CheckError(f"{path}: there is no function {name} in it")
    target, loss_fn = (getattr(module, name, None) for name in ("example_target", "loss_fn"))
    return Model(getattr(module, builder), module.example_inputs, target, loss_fn)


def check(model: Model, rank: int, device: torch.device) -> str:
    """Compare one step on this rank with the plain model. Collective over all ranks.

    Returns a sentence on the result. Raises CheckError on every rank where something differs.
    """
    batch = [_microbatch(model, m) for m in range(NUM_MICROBATCHES)]
    plain, other, draws = _built(model), _built(model), SameDraws()
    if not {*plain.parameters()}.isdisjoint(other.parameters()):
        raise CheckError(
            "build_model returns the same module in each call, and a check needs two; build a new "
            "one in each call"
        )
    stages = build_stages(other, model.loss_fn, _microbatch(model, 0), rank, device)
    schedule = build_schedule(stages)
    for stage in stages.pipeline_stages:
        seed_by_microbatch(stage, stages.replica, NUM_REPLICAS)
    # Step 1: the plain model's loss and gradients.
    with draws:
        expected = _plain_loss(plain.to(device), model.loss_fn, batch, device)
        counts = draws.counts.copy()
        # Step 2: the pipeline's.
        mine = batch[stages.replica :: NUM_REPLICAS]
        loss = accumulate_gradients(stages, schedule, mine)
        sum_shared_gradients(stages)
    # Step 3: compare them, and tell all ranks what differs.
    theirs = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    ours = dict(stages.module.named_parameters())
    found = [_loss_difference(loss.item(), expected), *_compare(ours, theirs)]
    return _verdict(_gathered(found), _gathered(list(ours)), set(theirs), counts)


def _plain_loss(plain: nn.Module, loss_fn: Any, batch: list[Any], device: torch.device) -> float:
    whole, total = ModelWithLoss(plain, loss_fn), 0.0
    for m, microbatch in enumerate(batch):
        inputs, target = pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), microbatch)
        torch.manual_seed(2 * m)
        loss = whole(inputs, target) / len(batch)
        torch.manual_seed(2 * m + 1)
        loss.backward()
        total += loss.item()
    return total


def _compare(
    ours: Mapping[str, nn.Parameter], theirs: Mapping[str, torch.Tensor]
) -> list[Difference]:
    """The difference of each gradient on this rank.

    A missing gradient counts as zero. But zeros in place of none are a difference: weight decay
    moves a weight with zeros.
    """
    dtype = getattr(torch, DTYPE)
    largest = max((float(g.abs().max()) for g in theirs.values() if g.numel()), default=0.0)
    rounding, allowed = (
        FLOOR_EPSILONS * torch.finfo(dtype).eps * largest,
        TOLERANCES[DTYPE],
    )
    found: list[Difference] = []
    for name, parameter in ours.items():
        nothing = torch.zeros_like(parameter)
        mine = nothing if parameter.grad is None else parameter.grad
        plain = theirs.get(name, nothing)
        apart = float((mine - plain).abs().max()) if mine.numel() else 0.0
        scale = float(plain.abs().max()) if plain.numel() else 0.0
        is_rounding = apart == 0.0 or allowed * scale < apart <= rounding
        is_known = math.isfinite(apart) and scale > 0.0
        size = 0.0 if is_rounding else apart / scale if is_known else math.inf
        found.append(Difference(f"the gradient of {name}", size, allowed))
        if (parameter.grad is None) != (name not in theirs) and size <= allowed:
            kinds = "none in place of zeros" if parameter.grad is None else "zeros in place of none"
            found.append(Difference(f"the gradient of {name}, {kinds},", math.inf, allowed))
    return found


def _loss_difference(mine: float, plain: float) -> Difference:
    size = abs(mine - plain) / (abs(plain) or 1.0)
    # A loss may be computed in float32 under any dtype, so no loss is held to more than that.
    allowed = max(TOLERANCES[DTYPE], FLOOR_EPSILONS * torch.finfo(torch.float32).eps)
    return Difference("the loss", size if math.isfinite(size) else math.inf, allowed)


def _gathered(mine: list[Any]) -> list[tuple[int, Any]]:
    """All ranks' items, each with its rank."""
    of_ranks: list[list[Any]] = [mine] * dist.get_world_size()
    dist.all_gather_object(of_ranks, mine)
    return [(rank, item) for rank, items in enumerate(of_ranks) for item in items]


def _verdict(
    found: list[tuple[int, Difference]],
    names: list[tuple[int, str]],
    wanted: set[str],
    draws: Mapping[str, int],
) -> str:
    missing = sorted(wanted - {name for _, name in names})
    if missing:
        raise CheckError(f"no rank has parameter {missing[0]}, which the plain model trains")
    wrong = [(rank, one) for rank, one in found if one.size > one.allowed]
    if wrong:
        rank, worst = max(wrong, key=lambda item: item[1].size)
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckError(
            f"the export differs from the plain model: {worst.what} on rank {rank} by "
            f"{worst.size:.2g} ({worst.allowed:.2g} allowed){more}"
        )
    losses = max(one.size for _, one in found if one.what == "the loss")
    gradients = max((one for _, one in found if one.what != "the loss"), key=lambda one: one.size)
    told = ", ".join(f"{name} {count}" for name, count in sorted(draws.items()))
    return (
        f"equal to the plain model: loss {losses:.1e}, {len(wanted)} gradients "
        f"{gradients.size:.1e}, tolerance {gradients.allowed:.0e}"
        + (f"; random numbers were seeded alike in both ({told} times)" if told else "")
    )


def _built(model: Model) -> nn.Module:
    _seed_all(SEED)
    built = model.build_model()
    if lazy_parameters(built):
        inputs, _ = _example(model, 0)
        _seed_all(SEED)
        give_shapes(built, inputs)
    if not any(module.training for module in built.modules()):
        built.train()

    # Module.to would make complex tensors real.
    return built._apply(_cast)  # pyright: ignore[reportPrivateUsage]


def _cast(tensor: torch.Tensor) -> torch.Tensor:
    dtype = getattr(torch, DTYPE)
    if not CASTS:
        return tensor
    if tensor.is_complex():  # no complex dtype has less than 32 bits for each part
        return tensor.to(dtype.to_complex()) if dtype.itemsize >= 4 else tensor
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _microbatch(model: Model, m: int) -> tuple[Any, Any]:
    return pytree.tree_map_only(torch.Tensor, _cast, _example(model, m))


def _example(model: Model, m: int) -> tuple[Any, Any]:
    _seed_all(SEED + 1 + m)
    given, size = model.example_inputs(MICROBATCH_SIZE), MICROBATCH_SIZE
    inputs = (given,) if isinstance(given, torch.Tensor) else given
    inputs = dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)
    target = None if model.example_target is None else model.example_target(size)
    return inputs, target


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    with contextlib.suppress(ImportError):
        importlib.import_module("numpy").random.seed(seed)
