"""A model file with oddities from real models."""

ODD = """
import torch
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.frozen = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True)).requires_grad_(False)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.unused = nn.Linear(8, 8)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x, bias, temperature, doubled=False, extra=None):
        assert doubled and extra is None
        scale = self.scale.exp()
        x = self.frozen(x) + bias
        for index, layer in enumerate(self.layers):
            x = layer(x)
            x.mul_(scale)
            x = self.act(x) if index < 3 else x
        return {"logits": x, "loss": (x * temperature).square().mean()}

def build_model():
    return Odd()

def example_inputs(microbatch_size):
    x = torch.randn(microbatch_size, 8)
    return {
        "x": x, "bias": torch.randn(1, 8), "doubled": True, "extra": None,
        "temperature": torch.rand(()),
    }
"""
