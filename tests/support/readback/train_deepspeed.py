"""One rank that trains with an exported DeepSpeed module. test_training.py runs it, through forked.py.

`main` needs a rank's environment. It writes FOLDER/rank<r>.json.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

VOCABULARY, WIDTH, LENGTH, STEPS, LEARNING_RATE = 32, 16, 6, 3, 0.1


def preload() -> None:
    """Import DeepSpeed."""
    import deepspeed

    assert deepspeed.PipelineModule


class Counted(nn.Module):
    """A layer that counts its forwards."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.forwards = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        return self.layer(x)


class Products(TorchDispatchMode):
    """Counts forward products that kernels compute, not those that a checkpoint has kept."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


def layers_of(num_blocks: int) -> list[Counted]:
    """Embedding, blocks, norm and head, with the same weights on every rank."""
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        for _ in range(num_blocks)
    ]
    ends = [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)]
    return [Counted(layer) for layer in (nn.Embedding(VOCABULARY, WIDTH), *blocks, *ends)]


def batch(step: int, microbatch: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets."""
    generator = torch.Generator().manual_seed(100 * step + microbatch)
    ids = torch.randint(0, VOCABULARY, (2, size, LENGTH), generator=generator)
    return ids[0], ids[1]


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten())


def main(folder: Path) -> None:
    """Train a few steps, and write the losses, the forwards and the parameters."""
    sys.path.insert(0, str(folder))
    import autopart_deepspeed as planned
    import deepspeed

    # DeepSpeed would compile its shared-memory all-reduce first, which takes minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
    config = json.loads((folder / "autopart_deepspeed.json").read_text())
    layers = layers_of(planned.PARTS[-1] - 3)
    model = planned.PlannedPipeline(layers, loss_fn=loss_fn)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    count, size = config["gradient_accumulation_steps"], config["train_micro_batch_size_per_gpu"]
    losses, products = [], Products()
    for step in range(STEPS):
        batches = iter([batch(step, microbatch, size) for microbatch in range(count)])
        with products:
            losses.append(engine.train_batch(batches).item())
    start, stop = model._local_start, model._local_stop
    done = {
        "losses": losses,
        "forwards": {at: layers[at].forwards for at in range(start, stop)},
        "products": products.count,
        "parameters": {
            at: [p.detach().flatten().tolist() for p in layers[at].parameters()]
            for at in range(start, stop)
        },
    }
    (folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(done))
