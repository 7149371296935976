"""Bytes on one rank: what lasts for a step, and the most that moves within it."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autopart.records.training import Training
from tests.support.witness.lending import away_at, moves_of
from tests.support.witness.orders import Orders, awaited_actions, round_of_actions
from tests.support.witness.stages import StageFigures

WIDTH = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
MOMENTS = {"adamw": 2, "sgd-momentum": 1, "adafactor": 1, "sgd": 0}


def summed_gradients(training: Training, gradients: int, trained: int) -> int:
    """Gradient bytes in the precision in which they are summed."""
    own = training.precision.removesuffix("-mixed")
    return gradients if training.gradient_dtype == own else trained * WIDTH[training.gradient_dtype]


def state_per_element(training: Training) -> int:
    """Bytes for the master copy and the optimizer's numbers, for one trained element."""
    mixed = training.precision.endswith("-mixed")
    stepped = WIDTH["float32" if mixed else training.precision]
    if training.optimizer in MOMENTS:
        return 4 * mixed + MOMENTS[training.optimizer] * stepped
    return 4 * mixed + int(training.optimizer)


def shard(count: int, training: Training, replicas: int) -> int:
    """Trained elements that one replica steps."""
    return -(-count // replicas) if training.zero1 else count


def always_has_gradients(training: Training) -> bool:
    """Whether gradients have room all the time: sums in another dtype, or a framework's sync."""
    own = training.precision.removesuffix("-mixed")
    return training.gradient_dtype != own or training.sync not in ("end", "overlap")


def lasting(
    figures: StageFigures, training: Training, replicas: int, own_microbatches: int, hosted: bool
) -> int:
    """Device bytes that a stage has on each of its ranks during the whole step."""
    elements = figures.widest if hosted else figures.trained
    return (
        figures.weights
        + always_has_gradients(training)
        * (summed_gradients(training, figures.gradients, figures.trained) + figures.unscattered)
        + shard(elements, training, replicas) * state_per_element(training)
        + own_microbatches * figures.inputs
    )


class Moving(NamedTuple):
    """A stage's bytes that move within a step, for one microbatch."""

    stash: int
    waiting: int
    activation: int
    gradient: int
    sent: int
    outputs: int
    transient: Mapping[str, int]
    """For each op."""
    made: int
    """Gradients that do not exist before the first backward."""
    first: int
    """Transient bytes in the first backward, with the gradients that it has made."""


def moving(figures: StageFigures, training: Training) -> Moving:
    """The bytes where layers keep their stash."""
    always = always_has_gradients(training)
    return Moving(
        stash=figures.stash,
        waiting=figures.waiting,
        activation=figures.received.bytes,
        gradient=figures.sent.gradient_bytes,
        sent=figures.received.gradient_bytes,
        outputs=figures.outputs,
        transient={
            "F": figures.workspace + figures.relayed,
            "B": figures.workspace + figures.relayed,
            "I": figures.input_grad_workspace + figures.relayed,
            "W": figures.weight_grad_workspace,
        },
        made=0 if always else figures.gradients + figures.unscattered,
        first=figures.relayed + (figures.workspace if always else figures.first_backward),
    )


def classic_peak(own: Moving, in_flight: int, microbatches: int) -> int:
    """The most that moves under GPipe and 1F1B: one activation, one gradient, and two messages on their way.

    A running forward has made a result besides, but no microbatch has two. Where all microbatches are in flight at once, the
    first backward has no gradients from before, and behind it one less is in flight. No activation comes then.
    """
    if in_flight < microbatches:
        return _with_gradients(own, in_flight)
    here = in_flight * own.stash + own.gradient
    return max(
        here + own.transient["F"] + min(in_flight, 3) * own.outputs,
        here + own.first + min(in_flight, 2) * own.outputs,
        _with_gradients(own, in_flight - 1) if in_flight > 1 else 0,
    )


def _with_gradients(own: Moving, in_flight: int) -> int:
    """The most where backwards run between forwards."""
    two, three = min(in_flight, 2), min(in_flight, 3)
    away = max(own.made + own.sent + two * own.outputs, three * own.outputs)
    if in_flight == 1:
        away = max(away, own.made + 2 * own.sent)
    return in_flight * own.stash + own.transient["B"] + own.activation + own.gradient + away


class Moment(NamedTuple):
    """The counts while one action runs on a rank: for each of its stages six numbers."""

    stage: int
    op: str
    counts: tuple[tuple[int, ...], ...]
    """Stash, waiting for W, activations, gradients, sent gradients, results."""
    made: tuple[bool, ...]
    """For each stage whether its parameter gradients are there, or made in this action."""


def moving_peak(
    moments: Sequence[Moment], own: Sequence[Moving], stages: Sequence[int], made: Sequence[int]
) -> int:
    """The most that moves on a rank, over all moments; `own` has an entry for each of its stages.

    `made` has the gradients of each, those of a tied parameter once.
    """
    return max(
        own[stages.index(moment.stage)].transient[moment.op]
        + sum(size * there for size, there in zip(made, moment.made, strict=True))
        + sum(
            stash * one.stash
            + waiting * one.waiting
            + activations * one.activation
            + gradients * one.gradient
            + sent * one.sent
            + results * one.outputs
            for one, (stash, waiting, activations, gradients, sent, results) in zip(
                own, moment.counts, strict=True
            )
        )
        for moment in moments
    )


def moments_on_ranks(
    orders: Orders, stage_ranks: Sequence[Sequence[int]]
) -> list[tuple[Moment, ...]]:
    """For each rank the different counts while its actions run, from the orders alone."""
    moves = moves_of(orders)
    orders = moves.orders
    needs = awaited_actions(orders, stage_ranks)
    rounds = round_of_actions(orders, needs)
    turns = list(dict.fromkeys(rank for ranks in stage_ranks for rank in ranks))
    # Step 1: each message gets room on its receiver before the place where its send stands.
    rooms: dict[tuple[int, int], list[tuple[int, str]]] = {}
    senders = set(needs.values())
    for (rank, place), (other, at) in needs.items():
        sent_in = rounds[other, at]
        later = turns.index(rank) < turns.index(other)
        own = [rounds[rank, one] for one in range(len(orders[rank]))]
        room = next(
            (one for one, when in enumerate(own) if (when > sent_in if later else when >= sent_in)),
            len(own),
        )
        stage, op, _ = orders[rank][place]
        rooms.setdefault((rank, room), []).append((stage, op))
    return [
        _moments(
            rank,
            order,
            stage_ranks,
            rooms,
            {p for r, p in senders if r == rank},
            needs,
            away_at(moves, rank),
        )
        for rank, order in enumerate(orders)
    ]


def _moments(
    rank: int,
    order: Sequence[tuple[int, str, int]],
    stage_ranks: Sequence[Sequence[int]],
    rooms: Mapping[tuple[int, int], Sequence[tuple[int, str]]],
    sends: set[int],
    needs: Mapping[tuple[int, int], tuple[int, int]],
    away: Sequence[int],
) -> tuple[Moment, ...]:
    """One rank's counts, action by action; `away` are its stashes on its partner meanwhile."""
    stages = [stage for stage, ranks in enumerate(stage_ranks) if rank in ranks]
    now = {stage: [0] * 6 for stage in stages}
    under_way: deque[tuple[int, str, int]] = deque()
    found: dict[Moment, None] = {}
    for place, (stage, op, microbatch) in enumerate(order):
        for arriving, kind in rooms.get((rank, place), ()):
            now[arriving][2 if kind == "F" else 3] += 1
        came = (rank, place) in needs
        own = now[stage]
        if op == "F":
            _start_forward(now, stage, came=came, makes_result=stage < len(stage_ranks) - 1)
        elif op != "W" and (stage, "F", microbatch) in under_way:
            # Its gradient is back, so the activation has long arrived.
            under_way.remove((stage, "F", microbatch))
            own[5] -= 1
        here = [(now[one][0] - away[place] * (one == stage), *now[one][1:]) for one in stages]
        # A backward is behind the later stages' ones for the same microbatch, so it stands for them too.
        begun = [s for s, kind, _ in order[: place + 1] if kind in "BI"]
        made = tuple(any(one >= s for s in begun) for one in stages)
        found[Moment(stage, op, tuple(here), made)] = None
        if op == "W":
            own[1] -= 1
        elif op != "F":
            own[0] -= 1
            own[1] += op == "I"
            own[3] -= came
            if not came and stage + 1 in now:
                now[stage + 1][4] -= 1
            own[4] += stage > 0
        if place in sends:
            under_way.append((stage, op, microbatch))
            if len(under_way) > 2:
                gone, kind, _ = under_way.popleft()
                now[gone][5 if kind == "F" else 4] -= 1
    return tuple(found)


def _start_forward(
    now: Mapping[int, list[int]], stage: int, *, came: bool, makes_result: bool
) -> None:
    """Count a forward from its start: what came is stash now, and its result has room."""
    now[stage][2] -= came
    now[stage][0] += 1
    # A result from this rank's earlier stage is part of the stash now.
    if not came and stage - 1 in now:
        now[stage - 1][5] -= 1
    now[stage][5] += makes_result
