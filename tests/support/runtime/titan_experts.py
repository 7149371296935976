"""A mixture of experts under torchtitan's all-to-all dispatcher, on processes with gloo, and its collectives.

The router and the experts' weights are those of transformers' Mixtral. Sorting, exchange and return of tokens are torchtitan's,
with torch's functional collectives.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._python_dispatch import TorchDispatchMode


class Sent(NamedTuple):
    """One collective of a process."""

    kind: str
    given: int
    """Bytes that the process gives."""
    found: int
    """Bytes that it gets."""


class TitansExperts(NamedTuple):
    """One process's samples behind the mixture, with their gradient, and the collectives of forward and backward."""

    output: torch.Tensor
    gradient: torch.Tensor
    forward: list[Sent]
    backward: list[Sent]
    counted: dict[str, int]
    """Torch's own count of all collectives."""


class _Sends(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Sent] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "_c10d_functional" and name.startswith(("all_", "reduce_")):
            self.found.append(Sent(name, args[0].nbytes, result.nbytes))
        return result


def mixture() -> Any:
    """The mixture of the second layer, with equal weights on every call."""
    from tests.support.models.hf_mixtral import build_model

    torch.manual_seed(0)
    return build_model().model.layers[1].mlp


def titans_experts(process: int, tokens: torch.Tensor, weights: torch.Tensor) -> TitansExperts:
    """The mixture on the process's part of whole tokens; the gradient is that of a weighted sum."""
    from torchtitan.distributed.utils import set_spmd_backend
    from torchtitan.models.common.token_dispatcher import AllToAllTokenDispatcher

    # The other backend wants meshes for all degrees of a trainer.
    set_spmd_backend("partial_dtensor")
    size, block = distributed.get_world_size(), mixture()
    experts = block.experts.num_experts
    own = range(process * experts // size, (process + 1) * experts // size)
    dispatcher = AllToAllTokenDispatcher(
        AllToAllTokenDispatcher.Config(num_experts=experts, top_k=block.top_k)
    )
    dispatcher.wire_meshes(ep_mesh=init_device_mesh("cpu", (size,), mesh_dim_names=("ep",)))
    given = tokens.chunk(size)[process].flatten(0, 1).requires_grad_()
    _, scores, chosen = block.gate(given)
    numbers = torch.bincount(chosen.flatten(), minlength=experts)
    with CommDebugMode() as counts, _Sends() as forward:
        rows, of_expert, metadata = dispatcher.dispatch(given, scores, chosen, numbers)
        done = [
            _expert(block.experts, expert, part)
            for expert, part in zip(own, rows.split(of_expert.tolist()), strict=True)
        ]
        output = dispatcher.combine(torch.cat(done), metadata, given)
    wanted = weights.chunk(size)[process].flatten(0, 1)
    with CommDebugMode() as more, _Sends() as backward:
        (gradient,) = torch.autograd.grad((output * wanted).sum(), (given,))
    counted = {
        f"{when} {packet.__name__}": count
        for when, comm in (("forward", counts), ("backward", more))
        for packet, count in comm.get_comm_counts().items()
    }
    return TitansExperts(output.detach(), gradient.detach(), forward.found, backward.found, counted)


def _expert(experts: Any, number: int, rows: torch.Tensor) -> torch.Tensor:
    gate, up = (rows @ experts.gate_up_proj[number].T).chunk(2, -1)
    # Torch's debug mode loses its place where modules are called one after the other.
    return (experts.act_fn.forward(gate) * up) @ experts.down_proj[number].T
