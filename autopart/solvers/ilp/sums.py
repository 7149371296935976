"""The sums for `plain_totals` as affine expressions in an integer program (`StageSums`).

The formulas stand in autopart/cost/stage_totals.py, and the symbols and constraints in
autopart/solvers/ilp/program.py. Here are the variables behind the terms.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from autopart.cost.stage_totals import Traffic
from autopart.cost.transients import counts_gradients
from autopart.records.layer_graph import Value
from autopart.solvers.ilp.placement import Placement, sum_of
from autopart.units import Quantity


class ExpressionSums:
    """The sums over one stage's layers and values."""

    def __init__(self, placement: Placement, stage: int) -> None:
        self.placement, self.stage = placement, stage
        self.program, self.graph = placement.program, placement.graph

    def seconds(self, per_layer: npt.NDArray[np.float64]) -> Quantity:
        return self._sum(per_layer.tolist())

    def bytes(self, per_layer: npt.NDArray[np.int64]) -> Quantity:
        return self._sum(per_layer.tolist())

    def _sum(self, per_layer: Sequence[float]) -> Quantity:
        on = self.placement.on
        return sum_of(size * on(l, self.stage) for l, size in enumerate(per_layer) if size)

    def holds_tied(self, number: int) -> Quantity:
        return self._any(f"any_t_{number}_{self.stage}", self.graph.tied[number].layers)

    def reads_input(self, number: int) -> Quantity:
        return self._any(f"any_i_{number}_{self.stage}", self.graph.inputs[number].consumers)

    def _any(self, name: str, layers: Sequence[str]) -> Quantity:
        variable: Any = self.program.add_variable(name, 0, 1)
        for layer in layers:
            on = self.placement.on(self.placement.position[layer], self.stage)
            self.program += variable >= on  # (6)
        return variable

    def received(self) -> Traffic[Quantity]:
        return self._traffic(self.stage - 1)

    def sent(self) -> Traffic[Quantity]:
        return self._traffic(self.stage)

    def _traffic(self, cut: int) -> Traffic[Quantity]:
        """Traffic over the cut behind stage `cut`."""
        over = [
            (value, self.placement.crosses(number, cut))
            for number, value in enumerate(self.graph.values)
        ]
        back = [(value, crossing) for value, crossing in over if value.has_gradient]
        return Traffic(
            bytes=sum_of(value.bytes * crossing for value, crossing in over),
            tensors=sum_of(crossing for _, crossing in over),
            grad_bytes=sum_of(value.bytes * crossing for value, crossing in back),
            grad_tensors=sum_of(crossing for _, crossing in back),
        )

    def kept_values(self) -> Quantity:
        self._kept: list[Quantity] = []
        for number, value in enumerate(self.graph.values):
            self._kept.append(self._is_kept(number, value) if value.consumers else 0)
        pairs = zip(self.graph.values, self._kept, strict=True)
        return sum_of(value.bytes * kept for value, kept in pairs)

    def _is_kept(self, number: int, value: Value) -> Quantity:
        """kept[number, stage]: 1 where the stage makes a value and a layer on it needs the value in its backward."""
        made = self.placement.on(self.placement.position[value.producer], self.stage)
        if value.producer in value.kept_by or not value.kept_by:
            return made if value.kept_by else 0
        variable: Any = self.program.add_variable(f"kept_{number}_{self.stage}", 0, 1)
        for name in value.kept_by:
            needed = self.placement.on(self.placement.position[name], self.stage)
            self.program += variable >= made + needed - 1  # (5)
        return variable

    def outputs(self) -> Quantity:
        sent: list[Quantity] = []
        last = self.stage == self.placement.num_stages - 1
        for number, value in enumerate(self.graph.values if not last else ()):
            if value.consumers and value.producer not in value.kept_by:
                variable: Any = self.program.add_variable(f"only_{number}_{self.stage}", 0, 1)
                made = self.placement.on(self.placement.position[value.producer], self.stage)
                over = self.placement.crosses(number, self.stage)
                self.program += variable >= over + made - 1 - self._kept[number]  # (5)
                sent.append(value.bytes * variable)
        return sum_of(sent)

    def relayed_gradients(self) -> Quantity:
        found: list[Quantity] = []
        inner = 0 < self.stage < self.placement.num_stages - 1
        values = self.graph.values if counts_gradients(self.graph) and inner else ()
        for number, value in enumerate(values):
            if value.has_gradient:
                found.append(value.bytes * self._relays(number, value.consumers))
        return sum_of(found)

    def _relays(self, number: int, readers: Sequence[str]) -> Any:
        """relays[number, stage]: 1 where a value crosses both cuts and no layer on the stage reads it."""
        placement, stage = self.placement, self.stage
        variable: Any = self.program.add_variable(f"relays_{number}_{stage}", 0, 1)
        read = sum_of(placement.on(placement.position[name], stage) for name in readers)
        through = placement.crosses(number, stage - 1) + placement.crosses(number, stage) - 1
        self.program += variable >= through - read  # (25)
        return variable

    def nothing(self) -> Quantity:
        return 0
