"""The DeepSeek-V3 of transformers, unmodified, with a tiny configuration. It returns its own loss."""

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM


def build_model():
    config = DeepseekV3Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=64,
        use_cache=False,
    )
    return DeepseekV3ForCausalLM(config)


def example_inputs(microbatch_size):
    ids = torch.randint(512, (microbatch_size, 32))
    return {"input_ids": ids, "labels": ids}
