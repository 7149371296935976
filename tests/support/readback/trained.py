"""Saves and compares training results from pipeline ranks and from the unsplit model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

WRAPPED = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def save(
    path: Path,
    losses: list[float],
    named: Iterable[tuple[str, torch.nn.Parameter]],
    forwards: dict[str, int] | None = None,
) -> None:
    """Write all losses, the last gradients, the parameters, and the last step's forwards by layer."""
    named = [(_plain(name), parameter) for name, parameter in named]
    done = {
        "losses": losses,
        "forwards": forwards or {},
        "gradients": {n: None if p.grad is None else _whole(p.grad) for n, p in named},
        "parameters": {n: _whole(p.detach()) for n, p in named},
    }
    torch.save(done, path)


def assert_same(folder: Path, forwards: dict[str, int]) -> None:
    """Assert that both ranks together equal `whole.pt`, and ran each layer `forwards` times."""
    whole, *ranks = (torch.load(folder / f"{name}.pt") for name in ("whole", "rank0", "rank1"))
    assert {layer: n for rank in ranks for layer, n in rank["forwards"].items()} == forwards
    (losses,) = [rank["losses"] for rank in ranks if rank["losses"]]
    torch.testing.assert_close(losses, whole["losses"], rtol=1e-5, atol=0)
    for kind in ("gradients", "parameters"):
        together: dict[str, Any] = {n: value for rank in ranks for n, value in rank[kind].items()}
        assert set(together) == set(whole[kind])
        for name, value in together.items():
            expected = whole[kind][name]
            assert value is not None, f"{name} has no gradient"
            error = (value - expected).abs().max() / expected.abs().max()
            assert error < 1e-4, f"{kind} of {name} differ by {error:.2g}"


def _plain(name: str) -> str:
    for wrapping in WRAPPED:
        name = name.replace(wrapping, "")
    return name


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the whole tensor, without FSDP's sharding."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
