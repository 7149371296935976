"""Measure executor overhead: a step against torch.distributed.pipelining written by hand.

    python scripts/bench_executor.py [--schedule 1f1b] [--microbatches 8] [--pairs 30]
        [--blocks 8] [--width 256] [--tokens 256]

Both sides train the same transformer blocks on two processes with gloo and one thread each. They
have the same cut, schedule and microbatches. One side uses `make_pipeline` and its `step` on the
whole batch. The other uses `PipelineStage` with torch's own schedule class. They run in turns
within one run, after a check that their gradients agree.

Prints the median over all pairs of steps of (ours / by hand). One ratio is for the time until the
last rank is done. The other is for both ranks' processor time, which other programs disturb less.
"""

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed, multiprocessing, nn
from torch.distributed import pipelining

import autopart

RANKS = 2
SCHEDULES = {"1f1b": pipelining.Schedule1F1B, "gpipe": pipelining.ScheduleGPipe}
MODEL_FILE = """
import sys
sys.path.insert(0, {folder!r})
from bench_executor import Block, loss_fn
from torch import nn
import torch

def build_model():
    return nn.Sequential(*(Block({width}) for _ in range({blocks})))

def example_inputs(size):
    return torch.randn(size, {tokens}, {width})

def example_target(size):
    return torch.randn(size, {tokens}, {width})
"""


class Block(nn.Module):
    """A transformer block with causal attention and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.back = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.mixed(self.first(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in heads)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.back(seen.transpose(1, 2).flatten(-2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output, target)


class Cost(NamedTuple):
    """The seconds of one step."""

    time: float
    """Seconds until the last rank is done."""
    processor: float
    """Processor seconds, summed over both ranks."""


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        plan_file = Path(folder) / "plan.json"
        autopart.save_plan(_plan(options, Path(folder)), plan_file)
        port = _free_port()
        multiprocessing.spawn(_rank, (options, plan_file, port), RANKS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="1f1b")
    for name, default in (("microbatches", 8), ("pairs", 30), ("blocks", 8), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=256)
    return parser.parse_args()


def _plan(options: argparse.Namespace, folder: Path) -> autopart.Plan:
    here = str(Path(__file__).parent)
    model = folder / "model.py"
    model.write_text(MODEL_FILE.format(folder=here, **vars(options)))
    profile = autopart.profile_model(str(model), repeats=1)
    cluster = autopart.cluster_of("cpu", gpus=RANKS)
    return autopart.solve(
        profile,
        cluster,
        global_batch=options.microbatches,
        schedule=options.schedule,
        num_stages=RANKS,
    )


def _rank(rank: int, options: argparse.Namespace, plan_file: Path, port: int) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=120),
    )
    plan = autopart.load_plan(plan_file)
    inputs, target = _batch(options, options.microbatches)
    ours = autopart.make_pipeline(plan, _model(options), _batch(options, 1), loss_fn=loss_fn)
    module = _by_hand(options, plan, rank)
    schedule = _schedule(options, module, rank)

    def step_ours() -> None:
        ours.step((inputs, target))

    def step_by_hand() -> None:
        if rank == 0:
            schedule.step(inputs[0])
        else:
            schedule.step(target=target, losses=[])

    _compare(ours.parameters, module, step_ours, step_by_hand)
    pairs = _in_turns(options.pairs, step_ours, step_by_hand, _measured)
    if rank == 0:
        _report(options, pairs)
    distributed.destroy_process_group()


def _model(options: argparse.Namespace) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(Block(options.width) for _ in range(options.blocks)))


def _batch(options: argparse.Namespace, size: int) -> tuple[tuple[torch.Tensor], torch.Tensor]:
    torch.manual_seed(1)
    shape = (size, options.tokens, options.width)
    return (torch.randn(shape),), torch.randn(shape)


def _by_hand(options: argparse.Namespace, plan: autopart.Plan, rank: int) -> nn.Sequential:
    """This rank's blocks under the plan's cut, without autopart's executor."""
    blocks = _model(options)
    mine = [name for name in plan.stages[rank].layers if name.isdigit()]
    return nn.Sequential(*(blocks[int(name)] for name in mine))


def _schedule(options: argparse.Namespace, module: nn.Sequential, rank: int):
    (example,), _ = _batch(options, 1)
    stage = pipelining.PipelineStage(
        module,
        rank,
        RANKS,
        torch.device("cpu"),
        input_args=(example.requires_grad_(rank > 0),),
        output_args=(example.clone().requires_grad_(),),
    )
    return SCHEDULES[options.schedule](stage, options.microbatches, loss_fn=loss_fn)


def _compare(parameters, module: nn.Sequential, step_ours, step_by_hand) -> None:
    step_ours()
    step_by_hand()
    for mine, theirs in zip(parameters.values(), module.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def _in_turns(count: int, step_ours, step_by_hand, measured) -> list[tuple[Cost, Cost]]:
    """The costs of both steps, `count` times."""
    pairs = []
    # The side that runs first alternates, so that a slow moment hits both sides alike.
    for pair in range(count):
        order = (step_ours, step_by_hand) if pair % 2 == 0 else (step_by_hand, step_ours)
        costs = {step: measured(step) for step in order}
        pairs.append((costs[step_ours], costs[step_by_hand]))
    return pairs


def _measured(step) -> Cost:
    distributed.barrier()
    begin, processor = time.perf_counter(), time.process_time()
    step()
    mine = torch.tensor([time.perf_counter() - begin, time.process_time() - processor])
    # Wall time ends with the slowest rank; processor time is the sum over ranks.
    times = mine[:1].clone()
    distributed.all_reduce(times, distributed.ReduceOp.MAX)
    distributed.all_reduce(mine)
    return Cost(times.item(), mine[1].item())


def _report(options: argparse.Namespace, pairs: list[tuple[Cost, Cost]]) -> None:
    times = [ours.time / theirs.time for ours, theirs in pairs]
    processor = [ours.processor / theirs.processor for ours, theirs in pairs]
    by_hand = statistics.median(theirs.time for _, theirs in pairs)
    sys.stdout.write(
        f"{options.schedule}, {options.microbatches} microbatches, {options.blocks} blocks of width "
        f"{options.width}, {options.tokens} tokens; {len(pairs)} pairs of steps\n"
        f"  by hand         {by_hand * 1e3:.0f} ms per step\n"
        f"  ours / by hand  {statistics.median(times):.3f} of the time, "
        f"{statistics.median(processor):.3f} of the processor time\n"
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    main()
