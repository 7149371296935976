"""The Llama of transformers, unmodified, with a tiny configuration. It returns its own loss."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def build_model():
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def example_inputs(microbatch_size):
    ids = torch.randint(512, (microbatch_size, 32))
    return {"input_ids": ids, "labels": ids}
