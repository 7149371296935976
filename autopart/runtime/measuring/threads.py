"""The number of threads with which torch computes in this process."""

import torch


def use_threads(count: int) -> None:
    """Compute with `count` threads from now on, whatever the environment asks for."""
    torch.set_num_threads(count)
