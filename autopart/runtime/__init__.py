"""The rooms that import torch: the model as layers, the profiler, the executor."""
