"""A probe of the network, made by ranks in a pool that stand for several nodes."""

import pytest

from autopart.records.readings import NetworkReadings
from autopart.runtime.probing import network
from autopart.runtime.probing.network import measure_network
from tests.support.runtime.probing_ranks import as_ranks


def measured(rank: int, per_node: int, seconds: float) -> NetworkReadings:
    """Measure small messages for about so many seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "SIZES", (64 << 10, 1 << 20))
        return measure_network(as_ranks(rank, per_node), seconds)


def too_late(rank: int, per_node: int) -> str:
    """Return the error where no time is left for anything."""
    try:
        measure_network(as_ranks(rank, per_node), 0.0)
    except network.RunError as error:
        return str(error)
    return "nothing"
