"""A model file: Mixtral 8x22B and DeepSeek-V3 of transformers, unmodified, with their published sizes and few blocks.

scripts/measure_large_models.py repeats a block of each kind. Sources: config.json of mistralai/Mixtral-8x22B-v0.1 and of
deepseek-ai/DeepSeek-V3. DeepSeek-V3's first three blocks are dense, and its multi-token prediction is left out.
"""

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

LENGTH = 4096


def build_mixtral_8x22b() -> MixtralForCausalLM:
    """Three of 56 blocks."""
    config = MixtralConfig(
        vocab_size=32000,
        hidden_size=6144,
        intermediate_size=16384,
        num_hidden_layers=3,
        num_attention_heads=48,
        num_key_value_heads=8,
        head_dim=128,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=65536,
        rope_theta=1000000.0,
        use_cache=False,
    )
    return MixtralForCausalLM(config)


def build_deepseek_v3() -> DeepseekV3ForCausalLM:
    """Three dense blocks, and three of 58 with experts."""
    config = DeepseekV3Config(
        vocab_size=129280,
        hidden_size=7168,
        intermediate_size=18432,
        moe_intermediate_size=2048,
        num_hidden_layers=6,
        first_k_dense_replace=3,
        num_attention_heads=128,
        num_key_value_heads=128,
        n_routed_experts=256,
        n_shared_experts=1,
        num_experts_per_tok=8,
        n_group=8,
        topk_group=4,
        routed_scaling_factor=2.5,
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        max_position_embeddings=163840,
        use_cache=False,
    )
    return DeepseekV3ForCausalLM(config)


def example_inputs(microbatch_size: int) -> dict[str, torch.Tensor]:
    """Token ids that are their own labels, in sequences of 4,096 tokens."""
    ids = torch.randint(32000, (microbatch_size, LENGTH))
    return {"input_ids": ids, "labels": ids}
