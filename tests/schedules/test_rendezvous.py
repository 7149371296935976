"""Which rank asks for which message, and which orders deadlock where sends wait."""

import pytest

from autopart.errors import ScheduleError
from autopart.schedules.actions import Schedule, parse_order
from autopart.schedules.catalogue import make_schedule
from autopart.schedules.encoding import encode
from autopart.schedules.rendezvous import Move, asked_before, rendezvous_events

LINE = ((0,), (1,), (2,), (3,))


def numbers(schedule: Schedule, *words: str) -> list[int]:
    """The numbers of actions that are written as in a plan."""
    each = [f"{stage}{op}{m}" for order in schedule for stage, op, m in order]
    return [each.index(word) for word in words]


def test_a_rank_asks_right_before_the_action_that_takes_the_message():
    schedule = make_schedule("1f1b", ((0,), (1,)), 3)
    asked = asked_before(encode(schedule, 2))
    giver, taker = numbers(schedule, "0F1", "1F1")
    assert asked[taker] == (giver,)
    assert sorted(giver for own in asked.values() for giver in own) == sorted(
        numbers(schedule, "0F0", "0F1", "0F2", "1B0", "1B1", "1B2")
    )


def test_a_rank_asks_for_earlier_messages_of_the_link_too():
    # Rank 0 sends 0F0 and then 2F0 to rank 1, which runs 3F0's stage only after 1F0's.
    schedule = tuple(
        parse_order(order)
        for order in ("0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1", "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1")
    )
    asked = asked_before(encode(schedule, 4))
    late = tuple(
        parse_order(order)
        for order in ("0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1", "1F0 3F0 3B0 1F1 3F1 3B1 1B0 1B1")
    )
    first, second, third = numbers(late, "0F0", "0F1", "2F0")
    # 3F0 takes 2F0, which was sent behind 0F1. So rank 1 asks for both before 3F0.
    assert asked_before(encode(late, 4))[numbers(late, "3F0")[0]] == (second, third)
    assert asked_before(encode(late, 4))[numbers(late, "1F0")[0]] == (first,)
    assert numbers(late, "1F1")[0] not in asked_before(encode(late, 4))
    assert all(len(own) == 1 for own in asked.values())


@pytest.mark.parametrize("overlap", [True, False])
def test_every_event_follows_what_it_waits_for(overlap: bool):
    actions = encode(make_schedule("gpipe", LINE, 4), 4)
    events = rendezvous_events(actions, sends_overlap=overlap)
    place = {event: at for at, event in enumerate(events)}
    assert len(place) == len(events) == actions.num_actions + 24
    for event in events:
        if isinstance(event, Move):
            assert place[event.giver] < place[event] < place[event.taker]


def test_ranks_that_both_send_first_deadlock_and_are_named():
    actions = encode(make_schedule("1f1b", LINE, 4), 4)
    with pytest.raises(ScheduleError) as told:
        rendezvous_events(actions, sends_overlap=False)
    assert "rank 2 sends 2F1 to rank 3 and rank 3 sends 3B0 to rank 2" in str(told.value)
    assert "\n" not in str(told.value)
    # With overlap the same sends wait beside compute.
    assert rendezvous_events(actions, sends_overlap=True)


def test_orders_that_deadlock_with_buffers_name_their_ranks():
    actions = encode((parse_order("0F0 0B0 0F1 0B1"), parse_order("1F1 1B1 1F0 1B0")), 2)
    for overlap in (True, False):
        with pytest.raises(ScheduleError, match="the schedule deadlocks: rank 0 on 0B0, rank 1"):
            rendezvous_events(actions, sends_overlap=overlap)
