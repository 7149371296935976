"""The shortest step of a tiny pipeline over all orders, with a clock of its own.

It shares nothing with the simulator, the solvers and the bounds. Sends overlap compute, memory has no
limit, and each stage has one rank. Each microbatch may take its backward whole or split, and ranks may
take microbatches in any order.

An order is built action by action, by the time when each starts. An action starts as soon as its rank
is free and its input is there. So each order in which no action can start earlier is built once or more.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class TinyStage(NamedTuple):
    """Seconds of one stage for one microbatch."""

    forward: float
    gradient: float
    weights: float
    send: float = 0.0
    """Activations to the next stage."""
    send_back: float = 0.0
    """Gradients to the stage ahead."""


class _State(NamedTuple):
    """Everything that the rest of an order depends on."""

    done: frozenset[tuple[str, int, int]]
    free: tuple[float, ...]
    """When each rank is free."""
    links: tuple[tuple[tuple[int, int], float], ...]
    """When each link is free."""
    inputs: tuple[tuple[tuple[str, int, int], float], ...]
    """When the input of each action that has one is there."""


def shortest_step(stages: Sequence[TinyStage], ranks: Sequence[int], microbatches: int) -> float:
    """Seconds of the shortest step, with stage s on rank `ranks[s]`."""
    best = float("inf")
    first = tuple((("F", 0, m), 0.0) for m in range(microbatches))
    seen: set[tuple[_State, float]] = set()
    todo = [(_State(frozenset(), (0.0,) * (1 + max(ranks)), (), first), 0.0)]
    while todo:
        state, now = todo.pop()
        if len([op for op, _, _ in state.done if op in "BW"]) == len(stages) * microbatches:
            best = min(best, max(state.free))
            continue
        for following, start in _following(state, now, stages, ranks):
            ends = _least_end(following, stages, ranks, microbatches)
            if ends < best and (following, start) not in seen:
                seen.add((following, start))
                todo.append((following, start))
    return best


def _least_end(
    state: _State, stages: Sequence[TinyStage], ranks: Sequence[int], microbatches: int
) -> float:
    """When the last rank ends, if no rank waits any more."""
    left = list(state.free)
    for s, stage in enumerate(stages):
        ops = [op for op, at, _ in state.done if at == s]
        left[ranks[s]] += (microbatches - ops.count("F")) * stage.forward
        backwards = ops.count("B")
        left[ranks[s]] += (microbatches - backwards - ops.count("I")) * stage.gradient
        left[ranks[s]] += (microbatches - backwards - ops.count("W")) * stage.weights
    return max(left)


def _following(
    state: _State, now: float, stages: Sequence[TinyStage], ranks: Sequence[int]
) -> Iterator[tuple[_State, float]]:
    """The states behind one more action that starts at `now` or later, with its start."""
    inputs = dict(state.inputs)
    begun = {m for op, s, m in state.done if op == "F" and s == 0}
    for (op, s, m), there in state.inputs:
        # Microbatches are alike until they begin, so they begin in their order.
        if op == "F" and s == 0 and m > len(begun):
            continue
        start = max(there, state.free[ranks[s]])
        if start < now:
            continue
        for kind in ("B", "I") if op == "I" else (op,):
            yield _after(state, inputs, (kind, s, m), start, stages, ranks), start


def _after(
    state: _State,
    inputs: dict[tuple[str, int, int], float],
    action: tuple[str, int, int],
    start: float,
    stages: Sequence[TinyStage],
    ranks: Sequence[int],
) -> _State:
    op, s, m = action
    stage, last = stages[s], len(stages) - 1
    seconds = {
        "F": stage.forward,
        "I": stage.gradient,
        "W": stage.weights,
        "B": stage.gradient + stage.weights,
    }[op]
    end = start + seconds
    left, links = dict(inputs), dict(state.links)
    del left["I" if op == "B" else op, s, m]
    if op == "I":
        left["W", s, m] = end
    if op != "W":
        # Step 1: the stage that reads the result; the last stage reads its own.
        there = s + 1 if op == "F" else s - 1
        turn = op == "F" and s == last
        # Step 2: the send waits for its link, first in, first out.
        if turn:
            left["I", s, m] = end
        elif there >= 0:
            arrival = end
            if ranks[s] != ranks[there]:
                link = (ranks[s], ranks[there])
                arrival = max(end, links.get(link, 0.0))
                arrival += stage.send if op == "F" else stage.send_back
                links[link] = arrival
            left["F" if op == "F" else "I", there, m] = arrival
    free = list(state.free)
    free[ranks[s]] = end
    return _State(
        state.done | {action},
        tuple(free),
        tuple(sorted(links.items())),
        tuple(sorted(left.items())),
    )
