from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.runtime.execution.messages import Program, Receive, Send, write_messages
from autopart.schedule import (
    Action,
    Schedule,
)
from autopart.schedules import make_schedule
from autopart.schedules.gpipe import gpipe
from autopart.schedules.one_f_one_b import one_f_one_b
from tests.runtime.orders import backward_first, valid_orders


def told(program: Program) -> str:
    """`1F0` an action, `0F0>1` its results going to rank 1, `1F0<0` room for what rank 0 sends."""
    marks = {Send: ">", Receive: "<"}
    return " ".join(
        str(e) if isinstance(e, Action) else f"{e.action}{marks[type(e)]}{e.peer}" for e in program
    )


def test_a_receive_stands_where_the_send_stands_in_the_common_order():
    ranks = [[0], [1]]
    first, second = write_messages(gpipe(ranks, 2), ranks)
    assert told(first) == "0F0 0F0>1 0F1 0F1>1 0B0<1 0B0 0B1<1 0B1"
    assert told(second) == "1F0<0 1F1<0 1F0 1F1 1B0 1B0>0 1B1 1B1>0"


def test_where_room_is_only_told_it_is_told_before_anything_is_sent():
    ranks = [[0], [1]]
    orders = one_f_one_b(ranks, 3)
    first, second = write_messages(orders, ranks, receives_first=True)
    assert told(first) == "0F0 0F0>1 0F1 0B0<1 0F1>1 0B0 0F2 0B1<1 0F2>1 0B1 0B2<1 0B2"
    for early, common in zip((first, second), write_messages(orders, ranks), strict=True):
        for kind in (Action, Send, Receive):
            assert [e for e in early if isinstance(e, kind)] == [
                e for e in common if isinstance(e, kind)
            ]


def test_replicas_send_to_the_rank_that_is_dealt_the_microbatch():
    ranks = [[0], [1, 2]]
    programs = write_messages(gpipe(ranks, 3), ranks)
    sends = [(str(e.action), e.peer) for e in programs[0] if isinstance(e, Send)]
    assert sends == [("0F0", 1), ("0F1", 2), ("0F2", 1)]
    receives = {str(e.action): e.peer for e in programs[0] if isinstance(e, Receive)}
    assert receives == {"0B0": 1, "0B1": 2, "0B2": 1}


def test_stages_of_one_rank_say_nothing_to_each_other():
    ranks = [[0], [1], [1]]
    first, second = write_messages(backward_first(ranks, 1, halves=True), ranks)
    assert told(first) == "0F0 0F0>1 0I0<1 0I0 0W0"
    assert told(second) == "1F0<0 1F0 2F0 2I0 1I0 1I0>0 2W0 1W0"


def test_a_single_stage_says_nothing():
    assert told(write_messages(one_f_one_b([[0]], 2), [[0]])[0]) == "0F0 0B0 0F1 0B1"


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    ranks, start = [], 0
    for count in counts:
        ranks.append(list(range(start, start + count)))
        start += count
    return ranks, draw(st.integers(max(counts), 8))


@st.composite
def placements(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Stages anywhere: on ranks of their own, on shared ones, on several."""
    one_stage = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
    ranks = draw(st.lists(one_stage, min_size=1, max_size=6))
    return ranks, draw(st.integers(max(map(len, ranks)), 6))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, list[list[int]]]:
    ranks, num_microbatches = draw(st.one_of(layouts(), placements()))
    return draw(valid_orders(ranks, num_microbatches, halves=True)), ranks


def deadlock(programs: tuple[Program, ...]) -> list[str]:
    """Run with sends that block until the peer has made room; where each rank is stuck, if any."""
    at = [0] * len(programs)
    rooms: dict[tuple[int, int], deque[Action]] = {}
    arrived: set[Action] = set()
    moved = True
    while moved:
        moved = False
        for rank, program in enumerate(programs):
            while at[rank] < len(program):
                event = program[at[rank]]
                if isinstance(event, Receive):
                    rooms.setdefault((event.peer, rank), deque()).append(event.action)
                elif isinstance(event, Send):
                    room = rooms.get((rank, event.peer))
                    if not room:
                        break
                    arrived.add(room.popleft())
                elif any(
                    isinstance(e, Receive) and e.action == event and event not in arrived
                    for e in program[: at[rank]]
                ):
                    break
                at[rank] += 1
                moved = True
    return [f"{r}: {p[i]}" for r, (p, i) in enumerate(zip(programs, at, strict=True)) if i < len(p)]


@given(schedules(), st.booleans())
def test_any_valid_order_runs_even_where_sends_block(
    case: tuple[Schedule, list[list[int]]], receives_first: bool
):
    schedule, ranks = case
    programs = write_messages(schedule, ranks, receives_first=receives_first)
    assert deadlock(programs) == []
    for order, program in zip(schedule, programs, strict=True):
        assert order == tuple(e for e in program if isinstance(e, Action))


def reader(sent: Action) -> tuple[int, bool, int]:
    """The stage that reads the results of an action, whether in a forward, and for which microbatch."""
    is_forward = sent.op == "F"
    return sent.stage + (1 if is_forward else -1), is_forward, sent.microbatch


@given(schedules(), st.booleans())
def test_between_two_ranks_messages_are_received_in_the_order_in_which_they_are_sent(
    case: tuple[Schedule, list[list[int]]], receives_first: bool
):
    schedule, ranks = case
    programs = write_messages(schedule, ranks, receives_first=receives_first)
    for a in range(len(programs)):
        for b in range(len(programs)):
            sent = [reader(e.action) for e in programs[a] if isinstance(e, Send) and e.peer == b]
            received = [
                (e.action.stage, e.action.op == "F", e.action.microbatch)
                for e in programs[b]
                if isinstance(e, Receive) and e.peer == a
            ]
            assert sent == received


@pytest.mark.parametrize("receives_first", [False, True])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("num_stages", [2, 4])
def test_room_is_made_for_two_messages_at_most_ahead_of_their_actions(
    name: str, num_stages: int, receives_first: bool
):
    ranks = [[s] for s in range(num_stages)]
    orders = make_schedule(name, ranks, 32)
    for program in write_messages(orders, ranks, receives_first=receives_first):
        waiting: set[Action] = set()
        for event in program:
            if isinstance(event, Receive):
                waiting.add(event.action)
            elif isinstance(event, Action):
                waiting.discard(event)
            assert len(waiting) <= 2
