"""One rank that trains torchtitan's small Llama with an exported plan.

test_torch_training.py and test_tensor_training.py run it, through forked.py. `main` needs a rank's environment. It
writes FOLDER/rank<r>.pt; rank 0 also writes FOLDER/whole.pt.

torchtitan's trainer is not constructed, because that needs a GPU, a tokenizer and data. Its own `pipelining_fn`
makes the stages with the constructor's arguments. Its own `train_step` runs them.
"""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._python_dispatch import TorchDispatchMode

from autopart.exporters.readback.rebuilt import exported_module
from tests.support.readback import trained
from tests.support.readback.gathered import GatheredWeights

LENGTH, STEPS, LEARNING_RATE = 8, 2, 0.1


def preload() -> None:
    """Import torchtitan for the CPU."""
    from torchtitan.tools import utils

    # Without a GPU torchtitan still chooses CUDA. Its other modules copy these names on import.
    utils.device_type, utils.device_module = "cpu", torch.cpu
    for name in ("models.llama3.config_registry", "models.qwen3.config_registry", "trainer"):
        importlib.import_module(f"torchtitan.{name}")


def planned_config(folder: Path) -> Any:
    """torchtitan's debug model with the plan's layers, in float32, under the exported `apply`."""
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.llama3.config_registry import llama3_debugmodel
    from torchtitan.models.qwen3.config_registry import qwen3_moe_debug

    autopart_titan = exported_module(folder / "autopart_titan.py")
    config = llama3_debugmodel()
    if "expert_parallel_degree" in (folder / "autopart_titan.py").read_text():
        config = qwen3_moe_debug()
        # torchtitan multiplies in bfloat16 by experts, whose rounding would hide differences.
        torch.Tensor.bfloat16 = torch.Tensor.float  # pyright: ignore[reportAttributeAccessIssue]
    count, layers = autopart_titan.NUM_LAYERS, config.model_spec.model.layers
    config.model_spec.model.layers = (layers * count)[:count]
    for layer in layers:  # FlexAttention has no backward on a CPU
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    config.training = replace(
        config.training,
        seq_len=LENGTH,
        max_norm=1e9,
        mixed_precision_param="float32",
        disable_cuda_graphs=True,
    )
    config = autopart_titan.apply(config)
    if config.parallelism.tensor_parallel_degree > 1 or replicas_of(config) > 1:
        # torch 2.13's FSDP does not know torchtitan's default, types on local tensors.
        config.parallelism.spmd_backend = "partial_dtensor"
    config.__post_init__()  # torchtitan's own consistency checks
    config.model_spec.model.update_from_config(config=config)
    return config


def whole_model(config: Any) -> Any:
    """The unsplit model, with the same weights on every rank."""
    torch.manual_seed(0)
    model = config.model_spec.model.build()
    with torch.no_grad():
        model.init_weights(buffer_device=None)
    return model


def replicas_of(config: Any) -> int:
    """The number of replicas of each stage."""
    parallelism = config.parallelism
    return parallelism.data_parallel_replicate_degree * parallelism.data_parallel_shard_degree


def batches(
    step: int, config: Any, replica: int = 0
) -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """The microbatches of one replica for one step, in the form of torchtitan's loader."""
    size = config.parallelism.pipeline_parallel_microbatch_size
    count = config.training.local_batch_size // size
    generator = torch.Generator().manual_seed(1000 * replica + step)
    drawn = torch.randint(0, 2000, (count, 2, size, LENGTH), generator=generator)
    positions = torch.arange(LENGTH).expand(size, LENGTH)
    return [({"input": ids, "positions": positions}, labels) for ids, labels in drawn]


def build_trainer(config: Any, losses: list[float]) -> Any:
    """A trainer on the CPU, with the fields that its constructor would set."""
    from torchtitan.distributed import ParallelDims
    from torchtitan.distributed import utils as dist_utils
    from torchtitan.trainer import Trainer

    trainer = Trainer.__new__(Trainer)
    trainer.config, trainer.device = config, torch.device("cpu")
    trainer.parallel_dims = ParallelDims.from_config(config.parallelism, dist.get_world_size())
    dist_utils.set_spmd_backend(config.parallelism.spmd_backend)
    trainer.model_config = config.model_spec.model
    trainer.loss_fn = config.loss.build(compile_config=config.compile)
    with torch.device("meta"):
        model = trainer.model_config.build()
    built = config.model_spec.pipelining_fn(
        model,
        parallel_dims=trainer.parallel_dims,
        training=config.training,
        parallelism=config.parallelism,
        compile_config=config.compile,
        ac_config=config.activation_checkpoint,
        dump_folder=config.dump_folder,
        device=trainer.device,
        model_config=trainer.model_config,
        parallelize_fn=config.model_spec.parallelize_fn,
        loss_fn=trainer.loss_fn,
    )
    trainer.pp_schedule, trainer.model_parts, *has = built
    trainer.pp_has_first_stage, trainer.pp_has_last_stage = has
    for fsdp in [own for part in trainer.model_parts for own in part.modules()]:
        if isinstance(fsdp, FSDPModule):
            # Gloo has no reduction that also multiplies; the factor is 1.
            fsdp.set_force_sum_reduction_for_comms(True)
    trainer.pp_schedule.step = _joined(trainer.pp_schedule.step)
    _take_weights(trainer.model_parts, whole_model(config))
    if trainer.pp_has_last_stage:
        trainer.loss_fn.set_lm_head(trainer.model_parts[-1].lm_head)
        trainer.model_parts[-1]._skip_lm_head = True
    trainer.gradient_accumulation_steps = trainer.num_pipeline_parallel_microbatches = 1
    trainer.num_pipeline_parallel_microbatches = len(batches(0, config))
    trainer.ntokens_seen, trainer.step = 0, 0
    trainer.train_context = dist_utils.get_spmd_context(parallel_dims=trainer.parallel_dims)
    nothing = SimpleNamespace(get_metrics=dict, step=lambda: None)
    trainer.lr_schedulers = nothing
    trainer.checkpointer = SimpleNamespace(maybe_wait_for_staging=lambda: None)
    trainer.metrics_processor = SimpleNamespace(
        should_log=lambda _: True,
        log=lambda _step, loss, *_, **__: losses.append(loss),
    )
    trainer.optimizers = torch.optim.SGD(
        [p for part in trainer.model_parts for p in part.parameters()], lr=LEARNING_RATE
    )
    return trainer


def _joined(step: Callable[..., Any]) -> Callable[..., Any]:
    """A schedule step that takes microbatches and joins them to a batch.

    torch 2.13 takes a batch and splits it. torchtitan 0.3 passes microbatches, for a newer torch.
    """

    def call(
        arg_mbs: list[Any] | None, kwarg_mbs: list[Any], target_mbs: list[Any] | None, **others: Any
    ) -> None:
        inputs = [torch.cat(parts) for parts in zip(*arg_mbs, strict=True)] if arg_mbs else []
        named = {name: torch.cat([mb[name] for mb in kwarg_mbs]) for name in kwarg_mbs[0]}
        target = torch.cat(target_mbs) if target_mbs else None
        step(*inputs, target=target, **others, **named)

    return call


def _take_weights(parts: list[Any], whole: Any) -> None:
    """Copy each part's weights and buffers from the whole model, by name."""
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for part in parts:
        part.to_empty(device="cpu")
        with torch.no_grad():
            part.init_weights(buffer_device=None)
            for name, tensor in [*part.named_parameters(), *part.named_buffers()]:
                found = tensors[name.replace("_checkpoint_wrapped_module.", "")]
                if isinstance(tensor, DTensor):
                    tensor.to_local().copy_(_shard_of(found, tensor))
                else:
                    tensor.copy_(found)
        part.train()


def _shard_of(whole: torch.Tensor, own: DTensor) -> torch.Tensor:
    """The part of the whole tensor that this rank has."""
    size, start = compute_local_shape_and_global_offset(own.shape, own.device_mesh, own.placements)
    return whole[tuple(slice(at, at + n) for at, n in zip(start, size, strict=True))]


def train_whole(config: Any, path: Path) -> None:
    """Train the unsplit model for the same steps."""
    model = whole_model(config)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        drawn = [
            microbatch
            for replica in range(replicas_of(config))
            for microbatch in batches(step, config, replica)
        ]
        tokens = sum(labels.numel() for _, labels in drawn)
        losses.append(0.0)
        for given, labels in drawn:
            logits = model(given["input"], positions=given["positions"])
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="sum"
            )
            (loss / tokens).backward()
            losses[-1] += loss.item() / tokens
        optimizer.step()
    trained.save(path, losses, model.named_parameters())


class Products(TorchDispatchMode):
    """Counts products that kernels compute, not those that a checkpoint has kept."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def count_forwards(parts: list[Any]) -> dict[str, int]:
    """Count forwards for each layer's first norm. A recomputed layer runs it again."""
    counts: dict[str, int] = {}
    for part in parts:
        for index, layer in part.layers.items():
            counts[index] = 0

            def count(*_: Any, at: str = index) -> None:
                counts[at] += 1

            getattr(
                layer, "_checkpoint_wrapped_module", layer
            ).attention_norm.register_forward_hook(count)
    return counts


def main(folder: Path) -> None:
    """Train as planned. Rank 0 trains the unsplit model too."""
    dist.init_process_group("gloo")
    config, losses = planned_config(folder), []
    trainer = build_trainer(config, losses)
    forwards = count_forwards(trainer.model_parts)
    schedule = trainer.pp_schedule
    gathered = GatheredWeights(getattr(schedule, "_stages", None) or [schedule._stage])
    products = Products()
    replica = dist.get_rank() // config.parallelism.tensor_parallel_degree % replicas_of(config)
    for step in range(STEPS):
        forwards.update(dict.fromkeys(forwards, 0))  # torch's first step also learns the shapes
        products = Products()
        with products:
            trainer.train_step(iter(batches(step, config, replica)))
    named = [item for part in trainer.model_parts for item in part.named_parameters()]
    rank = dist.get_rank()
    if rank == 0:  # without the head
        forwards["products"] = products.count
    gathered.save(folder)
    own = losses if trainer.pp_has_last_stage else []
    trained.save(folder / f"rank{rank}.pt", own, named, forwards)
    if rank == 0:
        train_whole(config, folder / "whole.pt")
