"""Tiny models from transformers, unmodified."""

from functools import cache

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from autopart.runtime.capture.capture import Captured, capture_model
from autopart.runtime.models.model import TrainingModel
from tests.support.runtime.small_models import Batch


def hugging_face(name: str) -> tuple[TrainingModel, Batch]:
    """Return a tiny model from transformers, and a batch with labels and a padding mask."""
    torch.manual_seed(0)
    model = _HUGGING_FACE[name]()
    ids = torch.randint(2, 64, (2, 8), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(8) < torch.tensor([[8], [5]])).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    return TrainingModel(model, name=name).train(), (inputs, None)


@cache
def captured_hugging_face(name: str) -> tuple[TrainingModel, Batch, Captured]:
    """Return the same model with its capture, shared by all tests that only read it."""
    model, example = hugging_face(name)
    return model, example, capture_model(model, example)


def tiny_gpt2(dropout: float = 0.0) -> nn.Module:
    names = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64,
            n_positions=16,
            n_embd=16,
            n_layer=3,
            n_head=2,
            bos_token_id=0,
            eos_token_id=1,
            **dict.fromkeys(names, dropout),
        )
    )


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _bert() -> nn.Module:
    return BertForMaskedLM(
        BertConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=64,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def mixtral(*, use_cache: bool, experts: str = "eager") -> nn.Module:
    """Return a Mixtral. "eager" experts loop over the chosen experts, which depends on the data."""
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            use_cache=use_cache,
            experts_implementation=experts,
        )
    )


_HUGGING_FACE = {
    "gpt2": tiny_gpt2,
    "llama": _llama,
    "bert": _bert,
    "t5": _t5,
    "mixtral": lambda: mixtral(use_cache=True),
}
