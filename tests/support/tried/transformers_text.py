"""Text models from transformers, tiny and with random weights."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn

from tests.support.tried import torchvision_operators  # noqa: F401  # before transformers loads torchvision
from tests.support.tried.trial import Tried

VOCABULARY, LENGTH = 64, 12

DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GPT: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "vocab_size": VOCABULARY}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}


def hugging_face(family: str, head: str, **config: Any) -> nn.Module:
    """The model class `family` + `head`, from its config class with these fields."""
    made = getattr(transformers, f"{family}Config")(**config)
    return getattr(transformers, f"{family}{head}")(made)


def ids(count: int) -> torch.Tensor:
    """Token ids without special tokens."""
    return torch.randint(3, VOCABULARY, (count, LENGTH))


def with_labels(count: int) -> dict[str, torch.Tensor]:
    """Ids as inputs and as labels."""
    tokens = ids(count)
    return {"input_ids": tokens, "labels": tokens.clone()}


def with_classes(count: int) -> dict[str, torch.Tensor]:
    """Ids and one class for each text."""
    return {"input_ids": ids(count), "labels": torch.randint(0, 2, (count,))}


def with_token_classes(count: int) -> dict[str, torch.Tensor]:
    """Ids and one class for each token."""
    return {"input_ids": ids(count), "labels": torch.randint(0, 2, (count, LENGTH))}


def with_positions(count: int) -> dict[str, torch.Tensor]:
    """Ids, and the first and last token of each answer."""
    return {
        "input_ids": ids(count),
        "start_positions": torch.randint(0, LENGTH, (count,)),
        "end_positions": torch.randint(0, LENGTH, (count,)),
    }


def _decoder(family: str, head: str = "ForCausalLM", refused: str = "", **config: Any) -> Tried:
    made = partial(hugging_face, family, head, **(DECODER | config))
    return Tried(build=made, inputs=with_labels, refused=refused)


def _encoder(
    family: str, head: str = "ForMaskedLM", inputs: Any = with_labels, **config: Any
) -> Tried:
    return Tried(build=partial(hugging_face, family, head, **(ENCODER | config)), inputs=inputs)


def _seq2seq(family: str, head: str = "ForConditionalGeneration", **config: Any) -> Tried:
    return Tried(
        build=partial(hugging_face, family, head, **(SEQ2SEQ | config)), inputs=with_labels
    )


def _other(family: str, head: str, inputs: Any = with_labels, **config: Any) -> Tried:
    return Tried(build=partial(hugging_face, family, head, **config), inputs=inputs)


MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MLA: dict[str, Any] = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "num_key_value_heads": 4,
}

MODELS: dict[str, Tried] = {
    # Decoders.
    "llama": _decoder("Llama"),
    "llama_tied": _decoder("Llama", tie_word_embeddings=True),
    "mistral": _decoder("Mistral", sliding_window=4),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3", head_dim=4),
    "gemma": _decoder("Gemma", head_dim=4),
    "gemma2": _decoder("Gemma2", head_dim=4, sliding_window=4),
    "gemma3": Tried(
        build=lambda: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**DECODER, head_dim=4, sliding_window=4)
        ),
        inputs=with_labels,
    ),
    "phi": _decoder("Phi"),
    "phi3": _decoder("Phi3"),
    "stablelm": _decoder("StableLm"),
    "starcoder2": _decoder("Starcoder2"),
    "olmo": _decoder("Olmo"),
    "olmo2": _decoder("Olmo2"),
    "cohere": _decoder("Cohere"),
    "granite": _decoder("Granite"),
    "glm": _decoder("Glm", head_dim=4),
    "falcon": _decoder("Falcon", alibi=False, bias=False),
    "persimmon": _decoder("Persimmon"),
    "nemotron": _decoder("Nemotron"),
    "helium": _decoder("Helium", head_dim=4),
    "smollm3": _decoder("SmolLM3"),
    "gpt_neox": _decoder("GPTNeoX"),
    "diffllama": _decoder("DiffLlama"),
    "modernbert_decoder": _decoder("ModernBertDecoder"),
    "gpt2": _other("GPT2", "LMHeadModel", n_embd=16, n_layer=4, n_head=4, n_positions=32, **GPT),
    "gpt2_checkpointed": Tried(
        build=lambda: _checkpointed(
            hugging_face("GPT2", "LMHeadModel", n_embd=16, n_layer=4, n_head=4, n_positions=32, **GPT)
        ),
        inputs=with_labels,
    ),
    "gptj": _other("GPTJ", "ForCausalLM", n_embd=16, n_layer=4, n_head=4, n_positions=32, rotary_dim=4, **GPT),
    "gpt_neo": _other(
        "GPTNeo", "ForCausalLM", hidden_size=16, num_layers=4, num_heads=4,
        attention_types=[[["global", "local"], 2]], max_position_embeddings=32, **GPT,
    ),
    "gpt_bigcode": _other("GPTBigCode", "ForCausalLM", n_embd=16, n_layer=4, n_head=4, n_positions=32, **GPT),
    "codegen": _other("CodeGen", "ForCausalLM", n_embd=16, n_layer=4, n_head=4, n_positions=32, rotary_dim=4, **GPT),
    "opt": _other(
        "OPT", "ForCausalLM", vocab_size=VOCABULARY, hidden_size=16, ffn_dim=32, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=32, word_embed_proj_dim=16, pad_token_id=0,
    ),
    "bloom": _other("Bloom", "ForCausalLM", hidden_size=16, n_layer=4, n_head=4, **GPT),
    "mpt": _other("Mpt", "ForCausalLM", vocab_size=VOCABULARY, d_model=16, n_heads=4, n_layers=4, max_seq_len=32),
    "xglm": _other(
        "XGLM", "ForCausalLM", vocab_size=VOCABULARY, d_model=16, ffn_dim=32, num_layers=4, attention_heads=4,
        max_position_embeddings=32, pad_token_id=0,
    ),
    "biogpt": _decoder("BioGpt"),
    # Mixtures of experts.
    "mixtral": _decoder("Mixtral", num_local_experts=4),
    "qwen2_moe": _decoder("Qwen2Moe", shared_expert_intermediate_size=16, **MOE),
    "qwen3_moe": _decoder("Qwen3Moe", head_dim=4, **MOE),
    "olmoe": _decoder("Olmoe", num_experts=4, num_experts_per_tok=2),
    "granitemoe": _decoder("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    "phimoe": _decoder("Phimoe", num_local_experts=4),
    "gpt_oss": _decoder("GptOss", num_local_experts=4, head_dim=4, sliding_window=4),
    "jetmoe": _decoder("JetMoe", num_local_experts=4, kv_channels=4, num_key_value_heads=2),
    "deepseek_v2": _decoder(
        "DeepseekV2", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1,
        first_k_dense_replace=1, n_shared_experts=1, head_dim=4, **MLA,
    ),
    "deepseek_v3": _decoder(
        "DeepseekV3", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1,
        first_k_dense_replace=1, n_shared_experts=1, **MLA,
    ),
    # State-space and hybrid models.
    "mamba": _other("Mamba", "ForCausalLM", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=4, state_size=4),
    "mamba2": _other(
        "Mamba2", "ForCausalLM", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=4, state_size=4,
        num_heads=4, head_dim=8, n_groups=1, chunk_size=4,
    ),
    "falcon_mamba": _other(
        "FalconMamba", "ForCausalLM", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=4, state_size=4
    ),
    "recurrent_gemma": _decoder("RecurrentGemma", lru_width=16, attention_window_size=8, num_key_value_heads=1),
    "jamba": _decoder("Jamba", num_experts=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, mamba_d_state=4, use_mamba_kernels=False),
    "rwkv": _other("Rwkv", "ForCausalLM", vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=4,
        attention_hidden_size=16, intermediate_size=32, context_length=32),
    # Encoders.
    "bert": _encoder("Bert"),
    "bert_classes": _encoder("Bert", "ForSequenceClassification", with_classes),
    "roberta": _encoder("Roberta", "ForMaskedLM"),
    "albert": _encoder("Albert", embedding_size=8),
    "distilbert": _other("DistilBert", "ForMaskedLM", vocab_size=VOCABULARY, dim=16, n_layers=4, n_heads=4, hidden_dim=32,
        max_position_embeddings=32),
    "electra": _encoder("Electra", embedding_size=16),
    "deberta": _encoder("Deberta", pos_att_type=["c2p", "p2c"], relative_attention=True, max_relative_positions=8),
    "deberta_v2": _encoder("DebertaV2", pos_att_type=["c2p", "p2c"], relative_attention=True),
    "modernbert": _encoder("ModernBert"),
    "mobilebert": _encoder("MobileBert", embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    "squeezebert": _encoder("SqueezeBert", embedding_size=16, q_groups=1, k_groups=1, v_groups=1, intermediate_groups=1,
        output_groups=1, post_attention_groups=1),
    "mpnet": _encoder("MPNet"),
    "camembert_answers": _encoder("Camembert", "ForQuestionAnswering", with_positions),
    "xlm_roberta_tokens": _encoder("XLMRoberta", "ForTokenClassification", with_token_classes),
    "longformer": _encoder("Longformer", attention_window=4),
    "big_bird": _encoder("BigBird", attention_type="original_full"),
    "funnel": _other("Funnel", "ForMaskedLM", vocab_size=VOCABULARY, block_sizes=[1, 1, 1], d_model=16, n_head=4,
        d_head=4, d_inner=32),
    "nystromformer": _encoder("Nystromformer", segment_means_seq_len=12, num_landmarks=4),
    "rembert": _encoder("RemBert", input_embedding_size=8, output_embedding_size=8),
    "roformer": _encoder("RoFormer", embedding_size=16),
    "esm": _encoder("Esm", mask_token_id=3, position_embedding_type="rotary"),
    "fnet": _encoder("FNet"),
    "xlnet": _other("XLNet", "LMHeadModel", vocab_size=VOCABULARY, d_model=16, n_layer=4, n_head=4, d_inner=32),
    "xlm": _other("XLM", "WithLMHeadModel", vocab_size=VOCABULARY, emb_dim=16, n_layers=4, n_heads=4, n_words=VOCABULARY,
        max_position_embeddings=32),
    "reformer": _other("Reformer", "ModelWithLMHead", vocab_size=VOCABULARY, hidden_size=16, feed_forward_size=32,
        num_attention_heads=2, attention_head_size=8, is_decoder=True, axial_pos_shape=(4, 4), axial_pos_embds_dim=(8, 8),
        attn_layers=["local", "lsh", "local", "lsh"], num_hashes=2, num_buckets=2, lsh_attn_chunk_length=4,
        local_attn_chunk_length=4, max_position_embeddings=16, inputs=lambda n: _of_length(n, 16)),
    # Encoders and decoders.
    "t5": _other("T5", "ForConditionalGeneration", **T5),
    "mt5": _other("MT5", "ForConditionalGeneration", **T5),
    "bart": _seq2seq("Bart"),
    "mbart": _seq2seq("MBart"),
    "pegasus": _seq2seq("Pegasus"),
    "marian": _seq2seq("Marian", "MTModel"),
    "blenderbot": _seq2seq("Blenderbot"),
    "m2m_100": _seq2seq("M2M100"),
    "nllb_moe": _seq2seq("NllbMoe", num_experts=2, encoder_sparse_step=1, decoder_sparse_step=1),
    "led": _seq2seq("LED", attention_window=4, max_encoder_position_embeddings=32, max_decoder_position_embeddings=32),
    "longt5": _other("LongT5", "ForConditionalGeneration", local_radius=3, **T5),
    "switch_transformers": _other("SwitchTransformers", "ForConditionalGeneration", num_experts=2, **T5),
    "prophetnet": _other("ProphetNet", "ForConditionalGeneration", vocab_size=VOCABULARY, hidden_size=16,
        num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4, num_decoder_attention_heads=4,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, pad_token_id=0),
}  # fmt: skip


def _of_length(count: int, length: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(3, VOCABULARY, (count, length))
    return {"input_ids": tokens, "labels": tokens.clone()}


def _checkpointed(model: nn.Module) -> nn.Module:
    model.gradient_checkpointing_enable()
    return model


MODELS["reformer"] = replace(MODELS["reformer"], refused="differs from the plain model")
