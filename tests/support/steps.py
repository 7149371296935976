"""Random steps: every named schedule, and random orders. Costs are whole, so sums are exact."""

import random
from typing import Any, NamedTuple

import msgspec

from autopart.errors import ScheduleError
from autopart.records.prediction import MemoryUse, MovingBytes, StagePrediction, Sync
from autopart.schedules.actions import (
    Action,
    Op,
    PairedForward,
    Schedule,
    StageRanks,
    rank_of,
)
from autopart.schedules.catalogue import KINDS, make_schedule
from autopart.simulator.timeline import Timeline, simulate
from tests.support.pictures import place_stages
from tests.support.problems import memory_use
from tests.support.waits import predecessors

NOTHING = memory_use()


def stage(
    forward: float = 1.0,
    backward: float = 2.0,
    memory: MemoryUse = NOTHING,
    moving: MovingBytes | None = None,
    **fields: float,
) -> StagePrediction:
    """A stage. Without `moving`, W needs the whole stash, and all actions need `memory`'s workspace."""
    base: dict[str, Any] = {
        "weight_grad_time": backward / 2,
        "send_time": 0.0,
        "send_back_time": 0.0,
        "update_time": 0.0,
        "stash_bytes": 0,
    }
    return StagePrediction(
        forward_time=forward,
        backward_time=backward,
        busy_time=forward + backward,
        in_flight=1,
        memory=memory,
        moving=moving or _as_in_memory(memory, int(fields.get("stash_bytes", 0))),
        peak_bytes=0,
        **(base | fields),
    )


def _as_in_memory(memory: MemoryUse, stash: int) -> MovingBytes:
    work = memory.workspace
    return MovingBytes(
        waiting=stash, workspace=work, input_grad_workspace=work, weight_grad_workspace=work
    )


class Step(NamedTuple):
    """The arguments for `simulate`, and the schedule's name."""

    name: str
    schedule: Schedule
    ranks: StageRanks
    stages: list[StagePrediction]
    syncs: tuple[Sync, ...]
    overhead: float
    overlap: bool

    def simulate(self) -> Timeline:
        return simulate(
            self.schedule,
            self.ranks,
            self.stages,
            self.syncs,
            action_overhead=self.overhead,
            sends_overlap=self.overlap,
        )


def random_stage(rng: random.Random) -> StagePrediction:
    backward, stash = rng.randint(0, 6), rng.randint(0, 9)
    moving = {kind: rng.randint(0, 9) for kind in MovingBytes.__struct_fields__}
    # If more bytes wait for W than the stash has, I has made them: they are part of its workspace.
    moving["input_grad_workspace"] += max(0, moving["waiting"] - stash)
    # At the end of the first backward its gradients are there.
    moving["first_backward"] += moving["made"]
    forward = rng.randint(0, 4)
    return stage(
        forward,
        backward,
        pair_saving=rng.randint(0, min(forward, backward)),
        weight_grad_time=rng.randint(0, backward),
        send_time=rng.choice([0, 0, 1, 3]),
        send_back_time=rng.choice([0, 0, 1, 3]),
        update_time=rng.randint(0, 2),
        stash_bytes=stash,
        memory=MemoryUse(
            **{kind: rng.randint(0, 9) for kind in MemoryUse.__struct_fields__},
        ),
        moving=MovingBytes(**moving),
    )


def random_step(rng: random.Random) -> Step:
    """A step under a named schedule, or in a random order."""
    name = rng.choice([*KINDS, "random", "random"])
    made = _random_order(rng) if name == "random" else _of_kind(rng, name)
    schedule, ranks = made
    syncs = tuple(
        Sync(what=f"stage {s}", ranks=tuple(own), time=rng.randint(0, 4))
        for s, own in enumerate(ranks)
        if len(own) > 1
    )
    stages = [random_stage(rng) for _ in ranks]
    if name in KINDS and KINDS[name].lends:
        stages = [msgspec.structs.replace(s, lend_time=rng.choice([0, 1, 3, 8])) for s in stages]
    overlap = rng.random() < 0.7
    return Step(name, schedule, ranks, stages, syncs, rng.randint(0, 1), overlap)


def _of_kind(rng: random.Random, name: str) -> tuple[Schedule, StageRanks]:
    kind = KINDS[name]
    while True:
        each = kind.stages_per_rank or rng.randint(1, 3)
        ranks = place_stages(kind, rng.randint(1, 5), each)
        if kind.uneven and rng.random() < 0.5:
            counts = [rng.randint(1, 3) for _ in ranks]
            ranks = [
                tuple(range(sum(counts[:s]), sum(counts[: s + 1]))) for s in range(len(counts))
            ]
        try:
            schedule = make_schedule(name, ranks, rng.randint(1, 10))
        except ScheduleError:
            continue
        return schedule, ranks


def _random_order(rng: random.Random) -> tuple[Schedule, StageRanks]:
    """A random order on a random placement, with backwards whole or split."""
    num_stages, num_ranks = rng.randint(1, 6), rng.randint(1, 4)
    ranks = [
        tuple(rng.sample(range(num_ranks), rng.randint(1, num_ranks))) for _ in range(num_stages)
    ]
    begins: dict[tuple[int, int], tuple[Op, ...]] = {}
    # Any action whose needs are done may run next.
    todo: set[Action] = set()
    for s in range(num_stages):
        for m in range(4):
            begins[s, m] = rng.choice([("B",), ("I", "W")])
            todo |= {Action(s, op, m) for op in ("F", *begins[s, m])}
    orders: list[list[Action]] = [[] for _ in range(num_ranks)]
    done: set[Action] = set()
    while todo:
        able = [a for a in sorted(todo) if done.issuperset(needs(a, num_stages, begins))]
        action = rng.choice(able)
        run = [action]
        if action.op == "F":
            # Sometimes a backward on the same rank that could start too runs beside it.
            beside = [
                a
                for a in able
                if a.op == "B" and a[2] != action[2] and home(ranks, a) == home(ranks, action)
            ]
            if beside and rng.random() < 0.7:
                run = [PairedForward(*action), rng.choice(beside)]
        orders[home(ranks, action)] += run
        done.update(run)
        todo.difference_update(run)
    return tuple(map(tuple, orders)), ranks


def home(ranks: StageRanks, action: Action) -> int:
    """The rank that runs an action."""
    return rank_of(ranks[action.stage], action.microbatch)


def needs(
    action: Action, num_stages: int, begins: dict[tuple[int, int], tuple[Op, ...]]
) -> list[Action]:
    """The actions that `action` needs; `begins` says how each backward begins."""
    behind = begins.get((action.stage + 1, action.microbatch), ("B",))
    return predecessors(action, num_stages, behind[:1])
