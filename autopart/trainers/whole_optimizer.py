"""All ranks' optimizer state in one rank's `state_dict()`, so that files are those of the plain trainer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import distributed, nn

from autopart.runtime.checking.check import collect

_At = tuple[int, str]
"""A parameter's number in the optimizer, and a key of its state."""


class WholeOptimizer:
    """Adds other ranks' state to an optimizer's `state_dict()`, once after each `collect`.

    Parameters have the same numbers on all ranks, because all have the whole model's list of them.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._others: dict[int, dict[str, Any]] = {}
        optimizer.register_state_dict_post_hook(self._add_others)

    def collect(self) -> None:
        """Bring the state of all ranks to rank 0. Collective."""
        mine = dict(_entries(self._optimizer.state_dict()["state"]))
        tensors = {
            f"{at}.{key}": value
            for (at, key), value in mine.items()
            if isinstance(value, torch.Tensor)
        }
        numbers = {at: v for at, v in mine.items() if not isinstance(v, torch.Tensor)}
        every: list[dict[_At, Any]] = [{}] * distributed.get_world_size()
        distributed.all_gather_object(every, numbers)
        others: dict[int, dict[str, Any]] = {}
        for _, name, tensor in collect(tensors):
            at, _, key = name.partition(".")
            others.setdefault(int(at), {})[key] = tensor
        if not distributed.get_rank():
            for of_rank in every:
                for (at, key), value in of_rank.items():
                    others.setdefault(at, {})[key] = value
            self._others = others

    def _add_others(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Torch calls this with the new state dict, which it may change."""
        others, self._others = self._others, {}
        own = {at: of for at, of in state["state"].items() if not _is_empty(of)}
        whole = {**others, **own}
        state["state"] = {at: whole[at] for at in sorted(whole)}


def numbered(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str | None]]:
    """The name of each parameter in each of the optimizer's groups; None for those of no model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]


def renew(
    optimizer: torch.optim.Optimizer, model: nn.Module, names: list[list[str | None]]
) -> None:
    """Give the optimizer the model's present parameters in place of earlier ones with these names."""
    for group, of_group in zip(optimizer.param_groups, names, strict=True):
        group["params"] = [
            p if name is None else model.get_parameter(name)
            for p, name in zip(group["params"], of_group, strict=True)
        ]


def _entries(state: Mapping[int, Mapping[str, Any]]) -> Iterator[tuple[_At, Any]]:
    for at, of_parameter in state.items():
        if not _is_empty(of_parameter):
            yield from (((at, key), value) for key, value in of_parameter.items())


def _is_empty(of_parameter: Mapping[str, Any]) -> bool:
    """Whether the state is that of a parameter of another rank, loaded onto the meta device."""
    return any(isinstance(v, torch.Tensor) and v.is_meta for v in of_parameter.values())
