"""The DeepSeek-V3 of transformers with a routing bias: its first experts get more tokens than the others."""

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM


def build_model():
    config = DeepseekV3Config(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        first_k_dense_replace=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=8,
        q_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        max_position_embeddings=64,
        use_cache=False,
    )
    model = DeepseekV3ForCausalLM(config)
    for at, layer in enumerate(model.model.layers[1:]):
        layer.mlp.gate.e_score_correction_bias[at] += 0.05
    return model


def example_inputs(microbatch_size):
    ids = torch.randint(128, (microbatch_size, 16))
    return {"input_ids": ids, "labels": ids}
