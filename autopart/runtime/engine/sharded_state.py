"""One rank's stages with sharded state: when weights are gathered and freed, and gradients scattered.

    forward     before a layer      gather its weights, and start to gather the next layer's
                behind it           free them
    backward    a gradient arrives  finish the layer behind: free its weights, start to scatter its gradients
                at a layer          gather this layer's weights, and start to gather those of the layer before
                the end             finish the layer that ran last, and wait for its gradients
    W           per layer           scatter its gradients: its I leaves them whole

At most one layer's gradients are on their way, beneath the next layer.

*Claim:* a backward that reaches a layer's results has run all later layers. *Proof.* Autograd runs the ready
operation that was recorded last. A layer's operations were recorded after those of earlier layers. Where an
operation of a later layer were not run yet, follow the operations that it waits for: each was recorded later still.
The first of them is ready, and was recorded after this layer, so autograd would have taken it. ∎

Weights of layers that share a parameter are separate units (`state_units`): a unit is the parameters that the same
layers of the whole model read. So all ranks that hold a tied parameter divide it alike.
"""

# pyright: reportPrivateUsage=false

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from autopart.errors import ModelError
from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.engine.group_part import DataPart
from autopart.runtime.engine.stage import stage_parameters
from autopart.runtime.transforms.layer_borders import mark_borders
from autopart.runtime.transforms.split_backward import DeferredWork
from autopart.runtime.update.gradient_sum import Made
from autopart.runtime.update.state_units import StateUnit


class ShardedState:
    """The units of one rank."""

    def __init__(
        self,
        stages: Mapping[int, StageProgram],
        programs: Sequence[StageProgram],
        part: DataPart,
    ) -> None:
        """Divide the parameters of the rank's `stages` among its processes; `programs` are all stages of the plan.

        Policies and split backwards must be in the graphs already. Raises ModelError for parameters with hooks.
        """
        self.data = part
        self.per_step = part.reduce == "step"
        """Whether gradients stay whole until the step's end."""
        readers = _readers(programs)
        named = {n: p for program in stages.values() for n, p in stage_parameters(program).items()}
        _check_no_hooks(named)
        self.units = _units(named, readers, part)
        self._unit_of = {id(p): unit for unit in self.units for p in unit.parameters.values()}
        self.parameters: dict[str, nn.Parameter] = {
            name: part for unit in self.units for name, part in unit.parts.items()
        }
        """The part parameters of the rank, by the user's names."""
        self.stages = {
            index: StageState(self, program, self._units_by_layer(program))
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

    def end_stage(self, stage: int) -> None:
        """Scatter the gradients that only this stage makes, after its last backward. Collective."""
        others = {u for s, of in self.stages.items() if s != stage for u in of.units}
        for unit in self.stages[stage].units:
            if unit not in others:
                self.stages[stage].close(unit)

    def written(self) -> None:
        """The optimizers have stepped their parts, or new state was loaded. Collective."""
        for unit in self.units:
            unit.written()

    def _units_by_layer(self, program: StageProgram) -> dict[str, tuple[StateUnit, ...]]:
        own = stage_parameters(program)
        names = {layer: sorted(program.parameters_of.get(layer, ())) for layer in program.layers}
        return {
            layer: tuple(dict.fromkeys(self._unit_of[id(own[name])] for name in names[layer]))
            for layer in program.layers
        }


class StageState:
    """The units of one stage, and the layer whose operations run."""

    def __init__(
        self,
        rank: ShardedState,
        program: StageProgram,
        of_layers: Mapping[str, Sequence[StateUnit]],
    ) -> None:
        self._rank, self._of_layers = rank, of_layers
        self.units = tuple(dict.fromkeys(unit for units in of_layers.values() for unit in units))
        order = list(of_layers)
        self._next = _nearest(order, of_layers)
        self._last = _nearest(order[::-1], of_layers)
        self._first_reader = {u: layer for layer in order[::-1] for u in of_layers[layer]}
        """Autograd adds a parameter's gradients up, and gives them where its first reader's backward runs."""
        self._running: str | None = None
        self._defers = False
        self._closing: Sequence[StateUnit] = ()
        """Units whose gradients are on their way."""
        self.made: Made | None = None
        """Told about each part parameter that got a gradient."""
        mark_borders(program, of_layers.keys(), self)

    def before(self, layer: str) -> None:
        """Gather the layer's weights, and start to gather those of the next one."""
        self._running = layer
        self._gather(layer, self._next.get(layer))

    def behind(self, layer: str, made: Sequence[torch.Tensor]) -> None:
        """Free the layer's weights, and wait for gradients of what it made."""
        self._release(layer, self._next.get(layer))
        for tensor in made:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._arrived, layer))

    @contextmanager
    def forward(self) -> Generator[None]:
        """Surround a microbatch's forward on the stage."""
        yield
        self._release_all()

    @contextmanager
    def backward(self, *, defers: bool) -> Generator[None]:
        """Surround a microbatch's backward, or with `defers` its I."""
        self._running, self._defers = None, defers
        yield
        self._finish(None)
        if not self._rank.per_step and not self._defers:
            self.end_weights()
        self._release_all()
        self._running = None

    def surround(self, works: list[DeferredWork]) -> None:
        """Let each work of a W find its units open; a unit is closed where the next work does not add to it.

        The list is changed in place: a work's tensors must be freed once it ran.
        """
        works[:] = [work._replace(run=partial(self._run_work, work)) for work in works]

    def end_weights(self) -> None:
        """Scatter the gradients of a backward's or W's last units, and those that an I has left."""
        if self._rank.per_step:
            return
        for unit in self.units:
            if unit.has_gradients:
                unit.open()
                self._start_close([unit])
        for unit in self._closing:
            self.close(unit)
        self._closing = ()

    def close(self, unit: StateUnit) -> None:
        """Scatter a unit's gradients, and tell who waits for them."""
        for part in unit.close():
            if self.made is not None:
                self.made(part)

    def _start_close(self, units: Sequence[StateUnit]) -> None:
        """Start to scatter the gradients of some units, once those before have arrived."""
        if not units:
            return
        for unit in self._closing:
            self.close(unit)
        self._closing = units
        for unit in units:
            unit.start_close()

    def _run_work(self, work: DeferredWork) -> None:
        units = {self._rank.unit_of(parameter) for parameter in work.parameters}
        if not self._rank.per_step:
            self._start_close([u for u in self.units if u.is_open and u not in units])
        for unit in units:
            unit.open()
        work.run()

    def _arrived(self, layer: str, gradient: torch.Tensor) -> None:
        """A gradient of the layer's results is complete, so its backward begins."""
        if self._running == layer:
            return
        self._finish(layer)
        self._running = layer
        self._gather(layer, self._last.get(layer))
        if self._rank.per_step or not self._defers:
            for unit in self._of_layers[layer]:
                if self._first_reader[unit] == layer:
                    unit.open()

    def _finish(self, coming: str | None) -> None:
        """End the backward of the running layer, where `coming` is the next one."""
        layer = self._running
        if layer is None:
            return
        self._release(layer, coming)
        if self._rank.per_step or self._defers:
            return
        stay = () if coming is None else self._of_layers[coming]
        own = self._of_layers[layer]
        self._start_close([unit for unit in own if unit.is_open and unit not in stay])

    def _gather(self, layer: str, then: str | None) -> None:
        for unit in self._of_layers[layer]:
            unit.gather()
        for unit in self._of_layers[then] if then is not None else ():
            unit.start_gather()

    def _release(self, layer: str, coming: str | None) -> None:
        stay = () if coming is None else self._of_layers[coming]
        for unit in self._of_layers[layer]:
            if unit not in stay:
                unit.release()

    def _release_all(self) -> None:
        for unit in self.units:
            unit.release()


def _nearest(order: Sequence[str], of_layers: Mapping[str, Sequence[StateUnit]]) -> dict[str, str]:
    """For each layer the nearest one behind it in `order` that has units."""
    found, nearest = dict[str, str](), None
    for layer in reversed(order):
        if nearest is not None:
            found[layer] = nearest
        nearest = layer if of_layers[layer] else nearest
    return found


def _readers(programs: Sequence[StageProgram]) -> dict[str, frozenset[str]]:
    """The layers of the whole model that read each parameter."""
    found: dict[str, set[str]] = {}
    for program in programs:
        for layer, names in program.parameters_of.items():
            for name in names:
                found.setdefault(name, set()).add(layer)
    return {name: frozenset(layers) for name, layers in found.items()}


def _units(
    named: Mapping[str, nn.Parameter], readers: Mapping[str, frozenset[str]], part: DataPart
) -> list[StateUnit]:
    """Units of parameters with the same readers, dtype and use, in one order on all processes."""
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
