"""One rank's sharded state: its units, the parts that its optimizer steps, and its stages.

Weights of layers that share a parameter are separate units (`state_units`): a unit is the parameters that the same
layers of the whole model read. So all ranks that hold a tied parameter divide it alike.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.group_part import DataPart
from autopart.runtime.engine.sharded_stage import StageState
from autopart.runtime.engine.stage import stage_parameters
from autopart.runtime.update.state_units import StateUnit


class ShardedState:
    """The units of one rank."""

    def __init__(
        self,
        stages: Mapping[int, StageProgram],
        programs: Sequence[StageProgram],
        part: DataPart,
        *,
        use_varies: bool = False,
    ) -> None:
        """Divide the parameters of the rank's `stages` among its processes; `programs` are all stages of the plan.

        With `use_varies`, a step may use a parameter on one process only. Policies and split backwards must be in
        the graphs already. Raises ModelError for parameters with hooks.
        """
        self.data = part
        self.per_step = part.reduce == "step"
        """Whether gradients stay whole until the step's end."""
        readers = _readers(programs)
        named = {n: p for program in stages.values() for n, p in stage_parameters(program).items()}
        _check_no_hooks(named)
        self.units = _units(named, readers, part, use_varies=use_varies)
        self._unit_of = {id(p): unit for unit in self.units for p in unit.parameters.values()}
        self.parameters: dict[str, nn.Parameter] = {
            name: part for unit in self.units for name, part in unit.parts.items()
        }
        """The part parameters of the rank, by the user's names."""
        self.stages = {
            index: StageState(
                program,
                self._units_by_layer(program),
                self.unit_of,
                per_step=self.per_step,
                use_varies=use_varies,
            )
            for index, program in stages.items()
        }
        self._unit_by_name = {name: unit for unit in self.units for name in unit.parameters}

    def unit(self, name: str) -> StateUnit:
        """The unit that has the parameter."""
        return self._unit_by_name[name]

    def unit_of(self, parameter: nn.Parameter) -> StateUnit:
        """The unit that has a parameter of a stage's graph."""
        return self._unit_of[id(parameter)]

    def end_step(self) -> None:
        """Scatter all gradients that are still whole. Collective over the rank's processes."""
        for unit in self.units:
            unit.close()
        self._settle(self.units)

    def end_stage(self, stage: int) -> None:
        """Scatter the gradients that only this stage makes, after its last backward. Collective."""
        others = {u for s, of in self.stages.items() if s != stage for u in of.units}
        own = [unit for unit in self.stages[stage].units if unit not in others]
        for unit in own:
            self.stages[stage].close(unit)
        self._settle(own)

    def written(self) -> None:
        """The optimizers have stepped their parts, or new state was loaded. Collective."""
        for unit in self.units:
            unit.written()

    def _settle(self, units: Sequence[StateUnit]) -> None:
        """Agree on the parameters that any process used. Collective where there are sums without such an agreement."""
        open_ones = [unit for unit in units if not unit.is_settled]
        if not open_ones:
            return
        is_used = [name in unit.used for unit in open_ones for name in unit.parameters]
        count = torch.tensor(is_used, dtype=torch.int32, device=open_ones[0].own.device)
        counts = iter(self.data.group.sum(count).tolist())
        for unit in open_ones:
            unit.settle([name for name in unit.parameters if next(counts)])

    def _units_by_layer(self, program: StageProgram) -> dict[str, tuple[StateUnit, ...]]:
        own = stage_parameters(program)
        names = {layer: sorted(program.parameters_of.get(layer, ())) for layer in program.layers}
        return {
            layer: tuple(dict.fromkeys(self._unit_of[id(own[name])] for name in names[layer]))
            for layer in program.layers
        }


def _readers(programs: Sequence[StageProgram]) -> dict[str, frozenset[str]]:
    """The layers of the whole model that read each parameter."""
    found: dict[str, set[str]] = {}
    for program in programs:
        for layer, names in program.parameters_of.items():
            for name in names:
                found.setdefault(name, set()).add(layer)
    return {name: frozenset(layers) for name, layers in found.items()}


def _units(
    named: Mapping[str, nn.Parameter],
    readers: Mapping[str, frozenset[str]],
    part: DataPart,
    *,
    use_varies: bool,
) -> list[StateUnit]:
    """Units of parameters with the same readers, dtype and use, in one order on all processes."""
    groups: dict[tuple[object, ...], dict[str, nn.Parameter]] = {}
    for name in sorted(named):
        parameter = named[name]
        key = (readers[name], parameter.dtype, parameter.requires_grad)
        groups.setdefault(key, {})[name] = parameter
    keeps = part.shard == "zero2"
    return [
        StateUnit(of, part.group, keeps_weights=keeps, use_varies=use_varies)
        for of in groups.values()
    ]


def _check_no_hooks(named: Mapping[str, nn.Parameter]) -> None:
    hooked = [n for n, p in named.items() if p._backward_hooks or p._post_accumulate_grad_hooks]
    if hooked:
        raise ModelError(
            f"parameter '{hooked[0]}' has a gradient hook, and with sharded state no process has its whole "
            "gradient; remove the hook, or solve with --shard none"
        )
