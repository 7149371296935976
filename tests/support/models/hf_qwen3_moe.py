"""The Qwen3-MoE of transformers, unmodified, with a tiny configuration and its balance loss. It returns its own loss."""

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def build_model():
    config = Qwen3MoeConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=True,
        max_position_embeddings=64,
        use_cache=False,
    )
    return Qwen3MoeForCausalLM(config)


def example_inputs(microbatch_size):
    ids = torch.randint(512, (microbatch_size, 32))
    return {"input_ids": ids, "labels": ids}
