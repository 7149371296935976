"""The T5 of transformers, unmodified, with a tiny configuration. It returns its own loss."""

import torch
from transformers import T5Config, T5ForConditionalGeneration


def build_model():
    config = T5Config(
        vocab_size=512,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        use_cache=False,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def example_inputs(microbatch_size):
    return {
        "input_ids": torch.randint(1, 512, (microbatch_size, 24)),
        "attention_mask": (torch.arange(24) < 18).long().repeat(microbatch_size, 1),
        "labels": torch.randint(1, 512, (microbatch_size, 16)),
    }
