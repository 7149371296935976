"""Measure the overhead of a tensor group: a step on two processes against the same layers written by hand.

    python scripts/bench_tensor.py [--microbatches 4] [--pairs 30] [--blocks 8] [--width 256] [--tokens 256]

Both sides train the transformer blocks of bench_executor.py with tensor degree 2, on two processes with gloo
and one thread each. One side uses `make_pipeline` with `init_tensor_ranks`: autopart's pass shards the
blocks. The other has column and row products with two functions around them, as in Megatron-LM's paper
(Shoeybi et al., 2019), and calls torch's collectives. They run in turns within one run, after a check
that their gradients agree.

Prints the median over all pairs of steps of (ours / by hand), as bench_executor.py does.
"""

import argparse
import os
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
from bench_executor import (
    MODEL_FILE,
    RANKS,
    Cost,
    _batch,
    _compare,
    _free_port,
    _in_turns,
    _model,
    _report,
    loss_fn,
)
from torch import distributed, multiprocessing, nn

import autopart


class Copy(torch.autograd.Function):
    """Identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return both(gradient)


class Reduce(torch.autograd.Function):
    """All-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx, x):
        return both(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


PROCESSES: list[distributed.ProcessGroupGloo] = []
"""The group of both processes. Torch's default group has one of them alone, as `init_tensor_ranks` makes it."""


def both(x: torch.Tensor, how: distributed.ReduceOp = distributed.ReduceOp.SUM) -> torch.Tensor:
    """The processes' sum, as a new tensor."""
    x, options = x.clone(memory_format=torch.contiguous_format), distributed.AllreduceOptions()
    options.reduceOp = distributed.ReduceOp(how)
    PROCESSES[0].allreduce([x], options).wait()
    return x


class HandBlock(nn.Module):
    """One process's part of a `Block`: half of its heads, and half of its MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.wide = nn.Linear(width, 3 * width // 2), nn.Linear(width, 2 * width)
        self.back = nn.Linear(width // 2, width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.mixed(Copy.apply(self.first(x))).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in heads)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        partial = nn.functional.linear(seen.transpose(1, 2).flatten(-2), self.back.weight)
        x = x + (Reduce.apply(partial) + self.back.bias)
        wide = nn.functional.gelu(self.wide(Copy.apply(self.second(x))))
        return x + (Reduce.apply(nn.functional.linear(wide, self.narrow.weight)) + self.narrow.bias)


def main() -> None:
    options = _options()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        plan_file = Path(folder) / "plan.json"
        autopart.save_plan(_plan(options, Path(folder)), plan_file)
        multiprocessing.spawn(_rank, (options, plan_file, _free_port()), RANKS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("microbatches", 4), ("pairs", 30), ("blocks", 8), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens", type=int, default=256)
    parser.set_defaults(schedule="tensor degree 2")
    return parser.parse_args()


def _plan(options: argparse.Namespace, folder: Path) -> autopart.Plan:
    model = folder / "model.py"
    model.write_text(MODEL_FILE.format(folder=str(Path(__file__).parent), **vars(options)))
    profile = autopart.profile_model(str(model), repeats=1, tensor=(1, RANKS))
    cluster = autopart.cluster_of("cpu", gpus=RANKS)
    return autopart.solve(
        profile, cluster, global_batch=options.microbatches, num_stages=1, tensor=str(RANKS)
    )


def _rank(rank: int, options: argparse.Namespace, plan_file: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    plan = autopart.load_plan(plan_file)
    group = autopart.init_tensor_ranks(plan, timeout=120)
    store = distributed.TCPStore("127.0.0.1", port, is_master=False)
    store = distributed.PrefixStore("by hand", store)
    PROCESSES.append(distributed.ProcessGroupGloo(store, rank, RANKS, timedelta(seconds=120)))
    inputs, target = _batch(options, options.microbatches)
    ours = autopart.make_pipeline(
        plan, _model(options), _batch(options, 1), loss_fn=loss_fn, tensor_group=group
    )
    module = nn.Sequential(*(HandBlock(options.width) for _ in range(options.blocks)))
    module.load_state_dict({name: own.clone() for name, own in ours.state_dict().items()})
    parts = list(zip(inputs[0].split(1), target.split(1), strict=True))

    def step_ours() -> None:
        ours.step((inputs, target))

    def step_by_hand() -> None:
        for x, wanted in parts:
            (loss_fn(module(x), wanted) / options.microbatches).backward()

    by_name = {name: ours.parameters[name] for name, _ in module.named_parameters()}
    _compare(by_name, module, step_ours, step_by_hand)
    pairs = _in_turns(options.pairs, step_ours, step_by_hand, _measured)
    if rank == 0:
        _report(options, pairs)
        sys.stdout.flush()


def _measured(step) -> Cost:
    PROCESSES[0].barrier().wait()
    begin, processor = time.perf_counter(), time.process_time()
    step()
    mine = torch.tensor([time.perf_counter() - begin, time.process_time() - processor])
    return Cost(both(mine[:1], distributed.ReduceOp.MAX).item(), both(mine)[1].item())


if __name__ == "__main__":
    main()
