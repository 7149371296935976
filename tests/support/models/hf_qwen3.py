"""The Qwen3 of transformers, unmodified, with a tiny configuration. It returns its own loss."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def build_model():
    config = Qwen3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        use_cache=False,
    )
    return Qwen3ForCausalLM(config)


def example_inputs(microbatch_size):
    ids = torch.randint(512, (microbatch_size, 32))
    return {"input_ids": ids, "labels": ids}
