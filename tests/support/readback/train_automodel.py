"""One rank that trains a small Llama with an exported AutoModel section.

test_torch_training.py and test_tensor_training.py run it, through forked.py. `main` needs a rank's environment. It
writes FOLDER/rank<r>.pt; rank 0 also writes FOLDER/whole.pt.

AutoModel's recipe asks CUDA for its device. This script follows the recipe on the CPU: its reader, its mesh, its
pipeline with its parallelizer (FSDP2, recomputation), and one schedule call per step.
"""

import importlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from tests.support.readback import trained
from tests.support.readback.gathered import GatheredWeights

VOCABULARY, LENGTH, STEPS, LEARNING_RATE = 32, 6, 2, 0.1


def preload() -> None:
    """Import AutoModel."""
    names = (
        "_transformers.infrastructure",
        "components.distributed.tp_replicas",
        "components.loss.masked_ce",
        "recipes._dist_utils",
    )
    for name in names:
        importlib.import_module(f"nemo_automodel.{name}")


def model_of(num_layers: int) -> LlamaForCausalLM:
    """A small Llama with the same weights on every rank."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            num_hidden_layers=num_layers,
            num_key_value_heads=2,
            tie_word_embeddings=False,
            attn_implementation="eager",
            **sizes,
        )
    )


def batch(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and targets for a whole step."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, VOCABULARY, (2, size, LENGTH), generator=generator)
    return ids[0], ids[1]


def loss_fn(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The loss summed over tokens, as in the recipe, which divides by their number later."""
    from nemo_automodel.components.loss.masked_ce import MaskedCrossEntropy

    return MaskedCrossEntropy()(getattr(logits, "logits", logits), target)


def count_forwards(parts: list[Any], counts: dict[str, int]) -> None:
    """Count forwards for each layer's first norm. A recomputed layer runs it again."""
    for part in parts:
        for index, layer in part.model.layers.items():
            inner = _bare(_bare(layer).input_layernorm)
            counts[index] = 0

            def count(*_: Any, at: str = index) -> None:
                counts[at] += 1

            inner.register_forward_hook(count)


def _bare(module: Any) -> Any:
    """The module without its recompute wrapper."""
    return getattr(module, "_checkpoint_wrapped_module", module)


def train_whole(num_layers: int, size: int, path: Path) -> None:
    """Train the unsplit model for the same steps."""
    model, losses = model_of(num_layers), []
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.zero_grad()
        ids, target = batch(step, size)
        loss = loss_fn(model(ids), target) / ids.numel()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    trained.save(path, losses, model.named_parameters())


def main(folder: Path) -> None:
    """Train as planned. Rank 0 trains the unsplit model too."""
    from nemo_automodel._transformers.infrastructure import instantiate_infrastructure
    from nemo_automodel.components.distributed.tp_replicas import synchronize_tp_replica_gradients
    from nemo_automodel.recipes._dist_utils import create_distributed_setup_from_config

    os.chdir(folder)  # AutoModel looks for the order file in the start folder
    recipe = yaml.safe_load((folder / "autopart_automodel.yaml").read_text())
    recipe["distributed"]["mp_policy"] = {"param_dtype": "float32", "reduce_dtype": "float32"}
    dist.init_process_group("gloo")
    setup = create_distributed_setup_from_config(recipe["distributed"])
    pipeline = setup.pipeline_config
    pipeline.pp_batch_size = recipe["step_scheduler"]["local_batch_size"]  # as the recipe does
    _, built, parallelize, _ = instantiate_infrastructure(
        distributed_config=setup.strategy_config,
        pipeline_config=pipeline,
        activation_checkpointing=setup.activation_checkpointing,
        device=torch.device("cpu"),
        mesh=setup.mesh_context,
    )
    num_layers = sum(
        "layers" in name for part in pipeline.module_fqns_per_model_part for name in part
    )
    built.build(model_of(num_layers), loss_fn=loss_fn, parallelize_fn=parallelize)
    forwards: dict[str, int] = {}
    count_forwards(built.parts, forwards)
    gathered = GatheredWeights(built.info.stages)
    named = [item for part in built.parts for item in part.named_parameters()]
    optimizer = torch.optim.SGD([p for _, p in named], lr=LEARNING_RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        forwards.update(dict.fromkeys(forwards, 0))
        ids, target = batch(step, pipeline.pp_batch_size)
        built.update_seq_len(LENGTH)
        found: list[torch.Tensor] | None = [] if built.info.has_last_stage else None
        built.step(ids, target=target if built.info.has_last_stage else None, losses=found)
        synchronize_tp_replica_gradients(built.parts, setup.mesh_context.device_mesh)
        for _, parameter in named:
            parameter.grad /= ids.numel()
        optimizer.step()
        if found is not None:
            losses.append(sum(loss.item() for loss in found) / ids.numel())
    gathered.save(folder)
    rank = dist.get_rank()
    trained.save(folder / f"rank{rank}.pt", losses, named, forwards)
    if rank == 0:
        train_whole(num_layers, pipeline.pp_batch_size, folder / "whole.pt")
