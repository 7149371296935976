"""Saves and compares training results from pipeline ranks and from the unsplit model."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

WRAPPED = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


def save(
    path: Path,
    losses: list[float],
    named: Iterable[tuple[str, torch.nn.Parameter]],
    forwards: dict[str, int] | None = None,
) -> None:
    """Write all losses, the last gradients, the parameters, and the last step's forwards by layer.

    `elements` are the numbers of elements that this rank has of each parameter.
    """
    named = [(_plain(name), parameter) for name, parameter in named]
    done = {
        "losses": losses,
        "forwards": forwards or {},
        "gradients": {n: None if p.grad is None else _whole(p.grad) for n, p in named},
        "parameters": {n: _whole(p.detach()) for n, p in named},
        "elements": {n: _own(p).numel() for n, p in named},
    }
    torch.save(done, path)


def assert_same(folder: Path, forwards: dict[str, int]) -> None:
    """Assert that the ranks together equal `whole.pt`, and ran each layer `forwards` times.

    Ranks of one tensor group have the same layers, and each must be right.
    """
    whole = torch.load(folder / "whole.pt")
    ranks = [torch.load(path) for path in sorted(folder.glob("rank*.pt"))]
    ran = {layer: n for rank in ranks for layer, n in rank["forwards"].items()}
    if "products" not in forwards:
        ran.pop(
            "products", None
        )  # not every caller knows how many products a tensor group computes
    assert ran == forwards, ran
    told = [rank["losses"] for rank in ranks if rank["losses"]]
    assert told
    for losses in told:
        torch.testing.assert_close(losses, whole["losses"], rtol=1e-5, atol=0)
    for kind in ("gradients", "parameters"):
        assert {name for rank in ranks for name in rank[kind]} == set(whole[kind])
        for name, value in [item for rank in ranks for item in rank[kind].items()]:
            expected = whole[kind][name]
            assert value is not None, f"{name} has no gradient"
            error = (value - expected).abs().max() / expected.abs().max()
            assert error < 1e-4, f"{kind} of {name} differ by {error:.2g}"


def assert_sharded(folder: Path, degree: int) -> None:
    """Assert that each rank has one part in `degree` of each matrix."""
    whole = torch.load(folder / "whole.pt")["parameters"]
    for path in sorted(folder.glob("rank*.pt")):
        for name, count in torch.load(path)["elements"].items():
            if whole[name].ndim == 2:
                assert count * degree == whole[name].numel(), name


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _plain(name: str) -> str:
    for wrapping in WRAPPED:
        name = name.replace(wrapping, "")
    return name


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the whole tensor, without FSDP's sharding."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
