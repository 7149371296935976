"""The Mixtral of transformers, unmodified, with a tiny configuration. It returns its own loss."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM


def build_model():
    config = MixtralConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        use_cache=False,
    )
    return MixtralForCausalLM(config)


def example_inputs(microbatch_size):
    ids = torch.randint(512, (microbatch_size, 32))
    return {"input_ids": ids, "labels": ids}
