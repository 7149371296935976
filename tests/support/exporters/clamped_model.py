"""A model file with layers that a test can tell apart: layer i clamps to 100 + i."""

CLAMPED = """
import torch
from torch import nn

class Layer(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.0)
        self.top = 100.0 + index

    def forward(self, x):
        middle = torch.clamp(torch.tanh(self.up(x)), max=self.top)
        return self.drop(self.norm(x + self.down(middle)))

class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer(index) for index in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return {"loss": x.square().mean()}

def build_model():
    return Clamped()

def example_inputs(microbatch_size):
    return {"x": torch.randn(microbatch_size, 8)}
"""
