"""Variables for the layers on each stage and for the values over each cut, in an integer program.

autopart/solvers/ilp/program.py has the symbols, and constraints (1) to (4) and (10).
"""

import itertools
from collections.abc import Iterable
from typing import Any

import pulp

from autopart.records.layer_graph import LayerGraph, edges, positions
from autopart.records.layouts import Partition
from autopart.records.problem import Demands
from autopart.units import Quantity


def sum_of(terms: Iterable[Quantity]) -> pulp.LpAffineExpression:
    """The sum over variables, expressions and numbers, in time proportional to their terms."""
    summed: Any = list(terms)
    return pulp.lpSum(summed)


class Placement:
    """A program's z[l, s], x[l, s] and c[v, s], with their constraints."""

    def __init__(self, program: Any, graph: LayerGraph, num_stages: int) -> None:
        """`program` is a PuLP problem, which gets the variables and constraints (1) to (3)."""
        self.program, self.graph, self.num_stages = program, graph, num_stages
        self.position = positions(graph)
        self.num_layers = len(graph.layers)
        cuts = range(num_stages - 1)
        self._placed: list[list[Any]] = [
            [program.add_variable(f"z_{l}_{s}", cat=pulp.LpBinary) for s in cuts]
            for l in range(self.num_layers)
        ]
        for row in self._placed:
            for earlier, later in itertools.pairwise(row):
                program += earlier <= later  # (1)
        for u, w in edges(graph):
            for s in cuts:
                program += self._placed[u][s] >= self._placed[w][s]  # (2)
        for s in range(num_stages):
            program += sum_of(self.on(l, s) for l in range(self.num_layers)) >= 1  # (3)
        self._crosses: list[list[Any]] = []

    def keep(self, demands: Demands) -> None:
        """Add the user's pins and groups."""
        program, position = self.program, self.position
        for stage in range(self.num_stages):
            for pin in demands.pins:
                program += self.on(position[pin.layer], stage) == int(pin.stage == stage)  # (10)
            for first, *others in demands.same_stage:
                for other in others:
                    here = self.on(position[first], stage)
                    program += self.on(position[other], stage) == here  # (10)
            for group in demands.different_stage:
                program += sum_of(self.on(position[l], stage) for l in group) <= 1  # (10)

    def cross_cuts(self) -> None:
        """Add the c[v, s]."""
        for number, value in enumerate(self.graph.values):
            row: list[Any] = [
                self.program.add_variable(f"c_{number}_{s}", 0, 1)
                for s in range(self.num_stages - 1)
            ]
            for s, variable in enumerate(row):
                made = self.by(self.position[value.producer], s)
                for name in value.consumers:
                    read = self.by(self.position[name], s)
                    self.program += variable >= made - read  # (4)
            self._crosses.append(row)

    def by(self, layer: int, stage: int) -> Quantity:
        """z[layer, stage]."""
        if stage < 0:
            return 0
        return self._placed[layer][stage] if stage < self.num_stages - 1 else 1

    def on(self, layer: int, stage: int) -> Quantity:
        """x[layer, stage]."""
        return self.by(layer, stage) - self.by(layer, stage - 1)

    def crosses(self, value: int, cut: int) -> Quantity:
        """c[value, cut], at the cut behind stage `cut`; 0 before the first stage and behind the last."""
        return self._crosses[value][cut] if 0 <= cut < self.num_stages - 1 else 0

    def partition(self) -> Partition:
        """The stages in a solved program."""
        stages: list[list[int]] = [[] for _ in range(self.num_stages)]
        for layer, row in enumerate(self._placed):
            # z is 0 on each stage before the layer's own.
            stages[sum(variable.value() < 0.5 for variable in row)].append(layer)
        return tuple(map(tuple, stages))
