from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopart.schedules.actions import Action, Schedule
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.messages import Program, Receive, Send, write_messages
from autopart.schedules.named.gpipe import gpipe
from autopart.schedules.named.one_f_one_b import one_f_one_b
from tests.support.runtime.orders import backward_first, valid_orders


def as_text(program: Program) -> str:
    """The program as text: `1F0` an action, `0F0>1` a send to rank 1, `1F0<0` a receive from rank 0."""
    marks = {Send: ">", Receive: "<"}
    return " ".join(
        str(e) if isinstance(e, Action) else f"{e.action}{marks[type(e)]}{e.other_rank}"
        for e in program
    )


def test_a_receive_has_the_place_of_its_send_in_the_common_order():
    ranks = [[0], [1]]
    first, second = write_messages(gpipe(ranks, 2), ranks)
    assert as_text(first) == "0F0 0F0>1 0F1 0F1>1 0B0<1 0B0 0B1<1 0B1"
    assert as_text(second) == "1F0<0 1F1<0 1F0 1F1 1B0 1B0>0 1B1 1B1>0"


def test_receives_first_tells_of_room_before_anything_is_sent():
    ranks = [[0], [1]]
    orders = one_f_one_b(ranks, 3)
    first, second = write_messages(orders, ranks, receives_first=True)
    assert as_text(first) == "0F0 0F0>1 0F1 0B0<1 0F1>1 0B0 0F2 0B1<1 0F2>1 0B1 0B2<1 0B2"
    for early, common in zip((first, second), write_messages(orders, ranks), strict=True):
        for kind in (Action, Send, Receive):
            assert [e for e in early if isinstance(e, kind)] == [
                e for e in common if isinstance(e, kind)
            ]


def test_a_stage_sends_to_the_replica_that_runs_the_microbatch():
    ranks = [[0], [1, 2]]
    programs = write_messages(gpipe(ranks, 3), ranks)
    sends = [(str(e.action), e.other_rank) for e in programs[0] if isinstance(e, Send)]
    assert sends == [("0F0", 1), ("0F1", 2), ("0F2", 1)]
    receives = {str(e.action): e.other_rank for e in programs[0] if isinstance(e, Receive)}
    assert receives == {"0B0": 1, "0B1": 2, "0B2": 1}


def test_stages_on_one_rank_exchange_no_messages():
    ranks = [[0], [1], [1]]
    first, second = write_messages(backward_first(ranks, 1, split_backward=True), ranks)
    assert as_text(first) == "0F0 0F0>1 0I0<1 0I0 0W0"
    assert as_text(second) == "1F0<0 1F0 2F0 2I0 1I0 1I0>0 2W0 1W0"


def test_a_single_stage_sends_nothing():
    assert as_text(write_messages(one_f_one_b([[0]], 2), [[0]])[0]) == "0F0 0B0 0F1 0B1"


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
    """Stages on any ranks: on ranks of their own, on shared ranks, or on several."""
    one_stage = st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
    ranks = draw(st.lists(one_stage, min_size=1, max_size=6))
    return ranks, draw(st.integers(max(map(len, ranks)), 6))


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, list[list[int]]]:
    ranks, num_microbatches = draw(st.one_of(layouts(), placements()))
    return draw(valid_orders(ranks, num_microbatches, split_backward=True)), ranks


def deadlock(programs: tuple[Program, ...]) -> list[str]:
    """Run with sends that block until the other rank has made room. Returns where each rank is stuck."""
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
                    rooms.setdefault((event.other_rank, rank), deque()).append(event.action)
                elif isinstance(event, Send):
                    room = rooms.get((rank, event.other_rank))
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


@pytest.mark.slow
@given(schedules(), st.booleans())
def test_any_valid_order_runs_with_blocking_sends(
    case: tuple[Schedule, list[list[int]]], receives_first: bool
):
    schedule, ranks = case
    programs = write_messages(schedule, ranks, receives_first=receives_first)
    assert deadlock(programs) == []
    for order, program in zip(schedule, programs, strict=True):
        assert order == tuple(e for e in program if isinstance(e, Action))


class FewSends:
    """Ranks with at most `most` sends on their way, step by step.

    A rank makes no room for messages between an action and its send before there is room for that send. It
    makes none for a gradient before its forward's result has arrived.
    """

    def __init__(self, programs: tuple[Program, ...], most: int) -> None:
        self.programs, self.most = programs, most
        self.at = [0] * len(programs)

    def stuck(self) -> list[str]:
        """Run as far as possible. Returns where each rank is stuck."""
        while any(self._advance(rank) for rank in range(len(self.programs))):
            pass
        ends = zip(self.programs, self.at, strict=True)
        return [f"{rank}: {p[i]}" for rank, (p, i) in enumerate(ends) if i < len(p)]

    def _advance(self, rank: int) -> bool:
        """Run one event of the rank, if it may run."""
        place, program = self.at[rank], self.programs[rank]
        if place == len(program):
            return False
        event = program[place]
        if isinstance(event, Action):
            may_run = self._is_there(rank, event)
        else:
            behind = next((e for e in program[place:] if not isinstance(e, Receive)), None)
            may_run = not isinstance(behind, Send) or self._on_their_way(rank) < self.most
            if isinstance(event, Receive) and event.action.op != "F":
                forward = Action(event.action.stage, "F", event.action.microbatch)
                may_run = may_run and self._has_arrived(rank, forward)
        self.at[rank] += may_run
        return may_run

    def _done(self, rank: int, kind: type, other: int) -> list[Action]:
        """The actions of the rank's sends to another rank, or of its receives from it, up to now."""
        events = self.programs[rank][: self.at[rank]]
        return [e.action for e in events if isinstance(e, kind) and e.other_rank == other]

    def _on_their_way(self, rank: int) -> int:
        """The rank's sends for which there is no room yet."""
        others = range(len(self.programs))
        made = ((self._done(rank, Send, o), self._done(o, Receive, rank)) for o in others)
        return sum(max(0, len(sent) - len(room)) for sent, room in made)

    def _has_arrived(self, rank: int, action: Action) -> bool:
        """Whether there is room for the results of a rank's action, which it has sent."""
        for other in range(len(self.programs)):
            sent = self._done(rank, Send, other)
            if action in sent:
                return sent.index(action) < len(self._done(other, Receive, rank))
        return True

    def _is_there(self, rank: int, action: Action) -> bool:
        """Whether the rank has the message that the action needs, if it needs one."""
        for other in range(len(self.programs)):
            room = self._done(rank, Receive, other)
            if action in room:
                return room.index(action) < len(self._done(other, Send, rank))
        return True


@pytest.mark.slow
@given(schedules(), st.sampled_from([1, 2]))
def test_any_valid_order_runs_where_receives_wait_until_what_they_replace_is_gone(
    case: tuple[Schedule, list[list[int]]], most: int
):
    schedule, ranks = case
    programs = write_messages(schedule, ranks, receives_first=True)
    assert FewSends(programs, most).stuck() == []


def test_ranks_that_wait_for_room_in_a_circle_are_stuck():
    """Both ranks send their second result before they make room for the other's first."""
    first, second = Action(0, "F", 0), Action(0, "F", 1)
    theirs, later = Action(1, "F", 0), Action(1, "F", 1)
    programs: tuple[Program, ...] = (
        (first, Send(first, 1), second, Send(second, 1), Receive(later, 1)),
        (theirs, Send(theirs, 0), later, Send(later, 0), Receive(second, 0)),
    )
    assert len(FewSends(programs, 1).stuck()) == 2
    assert FewSends(programs, 2).stuck() == []


def reader(sent: Action) -> tuple[int, bool, int]:
    """The stage that reads an action's results, whether in a forward, and the microbatch."""
    is_forward = sent.op == "F"
    return sent.stage + (1 if is_forward else -1), is_forward, sent.microbatch


@pytest.mark.slow
@given(schedules(), st.booleans())
def test_messages_between_two_ranks_are_received_in_the_order_of_their_sends(
    case: tuple[Schedule, list[list[int]]], receives_first: bool
):
    schedule, ranks = case
    programs = write_messages(schedule, ranks, receives_first=receives_first)
    for a in range(len(programs)):
        for b in range(len(programs)):
            sent = [
                reader(e.action) for e in programs[a] if isinstance(e, Send) and e.other_rank == b
            ]
            received = [
                (e.action.stage, e.action.op == "F", e.action.microbatch)
                for e in programs[b]
                if isinstance(e, Receive) and e.other_rank == a
            ]
            assert sent == received


@pytest.mark.parametrize("receives_first", [False, True])
@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize("num_stages", [2, 4])
def test_at_most_two_receives_come_before_the_actions_that_need_them(
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
