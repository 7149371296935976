"""One stage with sharded state: when weights are gathered and freed, and gradients scattered.

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

Code that no graph holds may let a backward pass over layers on one process, and not on another. All processes
must gather and scatter the same units in one order. So there each backward visits the layers that it passed over,
and each W scatters all units of the stage, in the order in which a whole backward ends them.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import Node, get_gradient_edge

from autopart.runtime.capture.stage_modules import StageProgram
from autopart.runtime.transforms.layer_borders import mark_borders
from autopart.runtime.transforms.split_backward import DeferredWork
from autopart.runtime.update.gradient_sum import Made
from autopart.runtime.update.state_units import StateUnit


class StageState:
    """The units of one stage, and the layer whose operations run."""

    def __init__(
        self,
        program: StageProgram,
        of_layers: Mapping[str, Sequence[StateUnit]],
        unit_of: Callable[[nn.Parameter], StateUnit],
        *,
        per_step: bool,
        use_varies: bool,
    ) -> None:
        """`of_layers` are the units that each layer reads. With `per_step`, gradients stay whole until the step's end.

        With `use_varies`, backwards of one microbatch may reach other layers on each process.
        """
        self._of_layers, self._unit_of, self._per_step = of_layers, unit_of, per_step
        self.units = tuple(dict.fromkeys(unit for units in of_layers.values() for unit in units))
        order = list(of_layers)
        self._backward = order[::-1] if use_varies else []
        """The layers that each backward visits, in this order. Empty where it reaches the same on each process."""
        self._visited = 0
        """How many of them the running backward has visited."""
        self._next = _nearest(order, of_layers)
        self._last = _nearest(order[::-1], of_layers)
        self._first_reader = {u: layer for layer in order[::-1] for u in of_layers[layer]}
        """Autograd adds a parameter's gradients up, and gives them where its first reader's backward runs."""
        self._watched: set[tuple[Node, int]] = set()
        """The places in autograd's graph where the running forward waits for gradients."""
        self._running: str | None = None
        self._defers = False
        self._unscattered: list[StateUnit] = []
        """Units that the running W still has to scatter, in the order of `_backward`."""
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
        """Free the layer's weights, and wait for gradients of what it made.

        A layer may return an earlier layer's result as it is. Its gradient arrives at the earlier one.
        """
        self._release(layer, self._next.get(layer))
        for tensor in made:
            if not tensor.requires_grad:
                continue
            edge = get_gradient_edge(tensor)
            place = (edge.node, edge.output_nr)
            if place not in self._watched:
                self._watched.add(place)
                tensor.register_hook(partial(self._arrived, layer))

    @contextmanager
    def forward(self) -> Generator[None]:
        """Surround a microbatch's forward on the stage."""
        self._watched = set()
        yield
        self._watched = set()
        self._release_all()

    @contextmanager
    def backward(self, *, defers: bool) -> Generator[None]:
        """Surround a microbatch's backward, or with `defers` its I."""
        self._running, self._defers, self._visited = None, defers, 0
        yield
        self._visit_until(len(self._backward))
        self._finish(None)
        if not self._per_step and not self._defers:
            self.end_weights()
        self._release_all()
        self._running = None

    def surround(self, works: list[DeferredWork]) -> None:
        """Let each work of a W find its units open; a unit is closed where the next work does not add to it.

        The list is changed in place: a work's tensors must be freed once it ran.
        """
        if self._backward and not self._per_step:
            trained = [unit for unit in self.units if unit.is_trained]
            self._unscattered = sorted(trained, key=self._end)
        works[:] = [work._replace(run=partial(self._run_work, work)) for work in works]

    def end_weights(self) -> None:
        """Scatter the gradients of a backward's or W's last units, and those that an I has left."""
        if self._per_step:
            return
        self._scatter_next(len(self._unscattered))
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
        units = {self._unit_of(parameter) for parameter in work.parameters}
        if self._unscattered:
            # The work is of a layer that reads all these units, so it begins behind the last one's first visit.
            begin = max(self._begin(unit) for unit in units)
            self._scatter_next(sum(self._end(unit) < begin for unit in self._unscattered))
        elif not self._per_step:
            self._start_close([u for u in self.units if u.is_open and u not in units])
        for unit in units:
            unit.open()
        work.run()

    def _arrived(self, layer: str, gradient: torch.Tensor) -> None:
        """A gradient of the layer's results is complete, so its backward begins."""
        if self._running == layer:
            return
        if self._backward:
            self._visit_until(self._backward.index(layer))
            self._visited = self._backward.index(layer) + 1
        self._visit(layer)

    def _visit_until(self, end: int) -> None:
        """Visit the layers that this process's backward passes over, and others may not."""
        while self._visited < end:
            layer = self._backward[self._visited]
            self._visited += 1
            self._visit(layer)

    def _visit(self, layer: str) -> None:
        """End the running layer's backward, and begin this one's."""
        self._finish(layer)
        self._running = layer
        self._gather(layer, self._last.get(layer))
        if self._per_step or not self._defers:
            for unit in self._of_layers[layer]:
                if self._first_reader[unit] == layer:
                    unit.open()

    def _finish(self, coming: str | None) -> None:
        """End the backward of the running layer, where `coming` is the next one."""
        layer = self._running
        if layer is None:
            return
        self._release(layer, coming)
        if self._per_step or self._defers:
            return
        stay = () if coming is None else self._of_layers[coming]
        own = self._of_layers[layer]
        self._start_close([unit for unit in own if unit.is_open and unit not in stay])

    def _scatter_next(self, count: int) -> None:
        """Start to scatter the next units of a W, with zeros where this process made no gradient."""
        for unit in self._unscattered[:count]:
            unit.open()
            self._start_close([unit])
        del self._unscattered[:count]

    def _begin(self, unit: StateUnit) -> int:
        """The place in a backward of the first layer that adds to the unit's gradients."""
        return next(at for at, layer in enumerate(self._backward) if unit in self._of_layers[layer])

    def _end(self, unit: StateUnit) -> int:
        """The place in a backward of the last layer that adds to the unit's gradients."""
        return self._backward.index(self._first_reader[unit])

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
