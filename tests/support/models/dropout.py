"""A small GPT with dropout wherever GPT-2 has it: embeddings, attention, both residual branches."""

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, WIDTH, HEADS, LENGTH, P = 128, 32, 4, 16, 0.2


class Block(nn.Module):
    """Dropout on heads (sharded), on columns (sharded), and on the branches' sums."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        size, length, _ = x.shape
        heads = self.query_key_value(self.norm1(x)).view(size, length, 3, HEADS, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=P, is_causal=True)
        y = self.out(y.transpose(1, 2).reshape(size, length, WIDTH))
        x = x + F.dropout(y, P)
        y = F.dropout(F.gelu(self.up(self.norm2(x))), P)
        return x + F.dropout(self.down(y), P)


class Model(nn.Module):
    """Tied head, as in GPT-2."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = F.dropout(x, P)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def build_model():
    return Model()


def example_inputs(microbatch_size):
    return torch.randint(VOCABULARY, (microbatch_size, LENGTH))


def example_target(microbatch_size):
    return torch.randint(VOCABULARY, (microbatch_size, LENGTH))


def loss_fn(output, target):
    return F.cross_entropy(output.flatten(0, 1), target.flatten())
