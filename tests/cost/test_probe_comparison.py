"""Measured messages beside predicted ones, and the notes on those that are far off."""

import msgspec
import pytest

from autopart.cost.links import link_across, send_time
from autopart.cost.probe_comparison import compare_network, error_of, notes_on_comparisons
from autopart.records.network import Network
from autopart.records.readings import MessageComparison, NetworkReadings
from tests.support.drawn_readings import MiB, readings_of
from tests.support.problems import cluster

NETWORK = Network(rails=1, rail_bandwidth=1e9, ring_bandwidth=1e10, trees=False)


def compared(measured: NetworkReadings) -> tuple[MessageComparison, ...]:
    return compare_network(cluster(2, 4, network=NETWORK), measured)


def test_times_from_the_formulas_are_their_own_predictions() -> None:
    found = compared(readings_of(NETWORK, 2, 4, 0.0, 0))
    collectives = [one for one in found if not one.what.startswith("send") and one.shares]
    assert {one.what for one in collectives} >= {
        "all-reduce, 4 x 2 ranks on 2 nodes",
        "all-gather, 8 ranks on 2 nodes",
        "all-to-all, 4 ranks on 1 node",
    }
    assert max(abs(error_of(one)) for one in collectives) < 1e-9
    assert notes_on_comparisons(collectives) == ()


def test_a_lone_group_on_shared_rails_is_marked_and_not_warned_about() -> None:
    found = compared(readings_of(NETWORK, 2, 4, 0.0, 0))
    lone = [one for one in found if one.what == "all-reduce, 2 ranks on 2 nodes"]
    assert not any(one.shares for one in lone)
    assert error_of(lone[-1]) == pytest.approx(-0.75, abs=0.01)
    assert not [note for note in notes_on_comparisons(found) if "all-reduce, 2 ranks" in note]


def test_a_send_is_priced_by_its_path() -> None:
    found = compared(readings_of(NETWORK, 2, 4, 0.0, 0))
    machine = cluster(2, 4, network=NETWORK)
    one = next(one for one in found if one.what == "send, same rail, 4 at once")
    assert one.predicted == send_time(link_across(machine), MiB, 1)


def test_the_worst_size_of_each_message_is_warned_about() -> None:
    good = MessageComparison(what="send", num_bytes=MiB, measured=1.2, predicted=1.0)
    slow = msgspec.structs.replace(good, num_bytes=4 * MiB, measured=2.0)
    fast = msgspec.structs.replace(good, what="all-reduce", measured=0.7)
    assert notes_on_comparisons([good]) == ()
    assert notes_on_comparisons([good, slow, fast]) == (
        "send: 4.0 MiB take 2.00 s, 100.0 % more than the predicted 1.00 s",
        "all-reduce: 1.0 MiB take 700 ms, 30.0 % less than the predicted 1.00 s",
    )
