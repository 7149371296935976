"""Builds one rank's GPT models with Megatron-Core from an export. test_training.py runs it, through forked.py.

`main` needs a rank's environment. It writes FOLDER/rank<r>.json. For each stage on the
rank it has the modules outside the layers, and each layer's number of forwards for one microbatch.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import random
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore

WIDTH, LENGTH, VOCABULARY = 16, 4, 32


def preload() -> None:
    """Nothing to do: this file imports Megatron-Core."""


def without_cuda() -> None:
    """Replace CUDA's random states, which Megatron asks for. There is no dropout here."""
    torch.cuda.current_device = lambda: torch.device("cpu")
    random.initialize_rng_tracker()
    random._CUDA_RNG_STATE_TRACKER.states_["model-parallel-rng"] = torch.get_rng_state()
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda *_, **__: None


def build(config: TransformerConfig, virtual: int | None) -> GPTModel:
    """A stage as a model provider builds it."""
    where = {"ignore_virtual": virtual is None, "vp_stage": virtual}
    return GPTModel(
        config,
        get_gpt_layer_local_spec(),
        vocab_size=VOCABULARY,
        max_sequence_length=LENGTH,
        pre_process=parallel_state.is_pipeline_first_stage(**where),
        post_process=parallel_state.is_pipeline_last_stage(**where),
        share_embeddings_and_output_weights=False,
        vp_stage=virtual,
    )


def count_forwards(model: GPTModel) -> dict[int, int]:
    """The number of forwards for each layer, counted from 0, in one microbatch."""
    counts = {layer.layer_number - 1: 0 for layer in model.decoder.layers}

    def counted(forward: Any, number: int) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            counts[number] += 1
            return forward(*arguments, **named)

        return run

    for layer in model.decoder.layers:
        layer.forward = counted(layer.forward, layer.layer_number - 1)
    run_once(model)
    return counts


def run_once(model: GPTModel, between: Callable[[], object] = lambda: None) -> None:
    """Run one microbatch forward and backward, and call `between` in between."""
    ids = torch.zeros(2, LENGTH, dtype=torch.long)
    if not model.pre_process:
        model.set_input_tensor(torch.randn(LENGTH, 2, WIDTH, requires_grad=True))
    mask = torch.ones(1, 1, LENGTH, LENGTH).tril() < 0.5
    model.train()
    out = model(ids, torch.arange(LENGTH).expand(2, LENGTH), mask, labels=ids)
    between()
    out.mean().backward()


def watch_parts(model: GPTModel) -> dict[int, tuple[dict[str, int], dict[str, bool]]]:
    """For each layer, how often each part runs in a microbatch, and whether its result stays until backward."""
    found: dict[int, tuple[dict[str, int], dict[str, bool]]] = {}
    results: list[tuple[dict[str, bool], str, StorageWeakRef]] = []

    def watched(forward: Any, name: str, runs: dict[str, int], kept: dict[str, bool]) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            made = forward(*arguments, **named)
            runs[name] = runs.get(name, 0) + 1
            storage = (made[0] if isinstance(made, tuple) else made).untyped_storage()
            results.append((kept, name, StorageWeakRef(storage)))
            return made

        return run

    for layer in model.decoder.layers:
        runs, kept = found[layer.layer_number - 1] = ({}, {})
        attention, mlp = layer.self_attention, layer.mlp
        for name, module in (
            ("input_layernorm", layer.input_layernorm),
            ("linear_qkv", attention.linear_qkv),
            ("core_attention", attention.core_attention),
            ("linear_proj", attention.linear_proj),
            ("pre_mlp_layernorm", layer.pre_mlp_layernorm),
            ("linear_fc1", mlp.linear_fc1),
            ("linear_fc2", mlp.linear_fc2),
        ):
            module.forward = watched(module.forward, name, runs, kept)
        mlp.activation_func = watched(mlp.activation_func, "activation", runs, kept)
    run_once(model, lambda: [kept.update({name: not s.expired()}) for kept, name, s in results])
    return found


def main(folder: Path) -> None:
    """Build and run every stage on this rank, and write the results."""
    rank = int(os.environ["RANK"])
    fields = yaml.safe_load((folder / "autopart_megatron.yaml").read_text())
    ranks = fields["pipeline_model_parallel_size"]
    virtual = fields["virtual_pipeline_model_parallel_size"]
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=ranks,
        virtual_pipeline_model_parallel_size=virtual,
        create_gloo_process_groups=False,
    )
    without_cuda()
    shared = {"hidden_size": WIDTH, "num_attention_heads": 2, "use_cpu_initialization": True}
    # With biases 0.16.1 recomputes an MLP without end: the bias becomes a result of its own checkpoint.
    shared["add_bias_linear"] = "recompute_modules" not in fields
    rates = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "pipeline_dtype": torch.float32}
    stages = []
    for own in range(virtual or 1):
        config = TransformerConfig(**fields, **shared, **rates)
        if (folder / "autopart_recompute.py").exists():
            sys.path.insert(0, str(folder))
            import autopart_recompute

            config = autopart_recompute.configure(config, rank, own)
        model = build(config, own if virtual else None)
        outside = {
            name.split(".")[-2] for name, _ in model.named_parameters() if ".layers." not in name
        }
        forwards = dict(count_forwards(model))  # the next run counts on
        parts = watch_parts(model)
        stages.append({"outside": sorted(outside), "forwards": forwards, "parts": parts})
    (folder / f"rank{rank}.json").write_text(json.dumps(stages))
