"""The BERT of transformers as a masked language model, unmodified, with a tiny configuration.

The last quarter of each text is padding. Every block's attention reads it from the mask.
"""

import torch
from transformers import BertConfig, BertForMaskedLM

MASK_TOKEN = 3
IGNORED = -100


def build_model():
    config = BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForMaskedLM(config)


def example_inputs(microbatch_size):
    ids = torch.randint(4, 512, (microbatch_size, 32))
    masked = torch.arange(32).remainder(4) == 0
    attention_mask = (torch.arange(32) < 24).long().repeat(microbatch_size, 1)
    return {
        "input_ids": ids.masked_fill(masked, MASK_TOKEN),
        "attention_mask": attention_mask,
        "labels": ids.masked_fill(~masked | (attention_mask == 0), IGNORED),
    }
