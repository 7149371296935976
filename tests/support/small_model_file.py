"""The text of a small model file, with two layers and a loss."""

MODEL = """\
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

def example_inputs(microbatch_size):
    return (torch.ones(microbatch_size, 8),)

def example_target(microbatch_size):
    return torch.zeros(microbatch_size, 4)

def loss_fn(output, target):
    return nn.functional.mse_loss(output, target)
"""
