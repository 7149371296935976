"""The state units of one rank: which parameters are gathered and summed together."""

# pyright: reportPrivateUsage=false

from collections.abc import Mapping, Sequence

from torch import nn

from autopart.errors import ModelError
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.group_part import DataPart
from autopart.runtime.engine.stage import stage_parameters
from autopart.runtime.update.state_units import StateUnit


def parameter_bytes(programs: Sequence[StageProgram]) -> dict[str, int]:
    """The bytes of each layer's parameters in the whole model; layers without any are left out."""
    found: dict[str, int] = {}
    for program in programs:
        own = stage_parameters(program)
        for layer in program.layers:
            size = sum(own[name].nbytes for name in program.parameters_of.get(layer, ()))
            if size:
                found[layer] = size
    return found


def _readers(programs: Sequence[StageProgram]) -> dict[str, frozenset[str]]:
    """The layers of the whole model that read each parameter."""
    found: dict[str, set[str]] = {}
    for program in programs:
        for layer, names in program.parameters_of.items():
            for name in names:
                found.setdefault(name, set()).add(layer)
    return {name: frozenset(layers) for name, layers in found.items()}


def rank_units(
    named: Mapping[str, nn.Parameter], programs: Sequence[StageProgram], part: DataPart
) -> list[StateUnit]:
    """Units of parameters with the same readers, dtype and use, in one order on all processes.

    Raises ModelError for parameters with hooks.
    """
    _check_no_hooks(named)
    readers = _readers(programs)
    groups: dict[tuple[object, ...], dict[str, nn.Parameter]] = {}
    for name in sorted(named):
        parameter = named[name]
        key = (readers[name], parameter.dtype, parameter.requires_grad)
        groups.setdefault(key, {})[name] = parameter
    keeps = part.shard == "zero2"
    return [StateUnit(of, part.group, keeps_weights=keeps) for of in groups.values()]


def _check_no_hooks(named: Mapping[str, nn.Parameter]) -> None:
    hooked = [n for n, p in named.items() if p._backward_hooks or p._post_accumulate_grad_hooks]
    if hooked:
        raise ModelError(
            f"parameter '{hooked[0]}' has a gradient hook, and with sharded state no process has its whole "
            "gradient; remove the hook, or solve with --shard none"
        )
