"""Rails: the network adapter near each rank, and ranks that keep their sends on one rail.

A send between nodes takes longer where its two GPUs have different rails (`off_rail`). The nodes of
the ranks decide everything else. So ranks may change places on their node, until the sends over as
many cuts as possible keep to one rail.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from networkx.utils import UnionFind

from autopart.records.cluster import Cluster
from autopart.records.layouts import StageRanks


def rails_of(cluster: Cluster, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The rail near each rank on its node; all are 0 without a network record."""
    rails = 0 if cluster.network is None else cluster.network.rails
    return ranks % cluster.gpus_per_node * rails // cluster.gpus_per_node


def sending_pairs(
    here: Sequence[int] | npt.NDArray[np.int64], there: Sequence[int] | npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Senders and receivers of successive microbatches over a cut between two stages.

    Microbatch m goes from rank number m mod r in one stage to rank number m mod r' in the next. So
    the pairs repeat after lcm(r, r') microbatches.
    """
    senders, receivers = np.asarray(here), np.asarray(there)
    if len(here) == len(there):
        return senders, receivers
    turns = np.arange(math.lcm(len(here), len(there)))
    return senders[turns % len(here)], receivers[turns % len(there)]


def on_own_rails(cluster: Cluster, stage_ranks: StageRanks) -> StageRanks:
    """The stages with each rank on a GPU of its node that keeps sends on their rail.

    The first cuts come first where not all find room. Stages on the same ranks stay on the same
    ones. Where sends off their rail are no slower, or GPUs differ, the ranks stay as they are.
    """
    network = cluster.network
    if network is None or network.off_rail == 1.0 or cluster.gpus:
        return stage_ranks
    crossing = [_crossing(cluster, *pair) for pair in itertools.pairwise(stage_ranks)]
    before = sum(_off_rail(cluster, pairs) for pairs in crossing)
    if not before:
        return stage_ranks
    places = _Rails(cluster, {rank for ranks in stage_ranks for rank in ranks})
    # Step 1: all cuts together, else one after the other as long as there is room.
    found = places.joined([pair for pairs in crossing for pair in pairs])
    if found is None:
        kept: list[tuple[int, int]] = []
        found = {}
        for pairs in crossing:
            more = places.joined([*kept, *pairs])
            if more is not None:
                kept, found = [*kept, *pairs], more
    # Step 2: other ranks take the GPUs that are left, in their order.
    taken = places.filled(found)
    after = sum(_off_rail(cluster, [(taken[a], taken[b]) for a, b in own]) for own in crossing)
    if after >= before:
        return stage_ranks
    return tuple(tuple(taken[rank] for rank in ranks) for ranks in stage_ranks)


def _crossing(cluster: Cluster, here: Sequence[int], there: Sequence[int]) -> list[tuple[int, int]]:
    """Ranks on different nodes that send to each other over one cut."""
    size = cluster.gpus_per_node
    pairs = zip(*(ranks.tolist() for ranks in sending_pairs(here, there)), strict=True)
    return [(a, b) for a, b in pairs if a // size != b // size]


def _off_rail(cluster: Cluster, pairs: Sequence[tuple[int, int]]) -> bool:
    rails = rails_of(cluster, np.asarray(pairs, dtype=np.int64).reshape(-1, 2))
    return bool((rails[:, 0] != rails[:, 1]).any())


class _Rails:
    """The GPUs of each node by their rail, for some ranks."""

    def __init__(self, cluster: Cluster, ranks: Iterable[int]) -> None:
        self._size = cluster.gpus_per_node
        self._ranks = sorted(ranks)
        own = rails_of(cluster, np.arange(self._size)).tolist()
        self._gpus: dict[int, list[int]] = {}
        """The GPUs of a node near each rail."""
        for gpu, rail in enumerate(own):
            self._gpus.setdefault(rail, []).append(gpu)

    def joined(self, pairs: Iterable[tuple[int, int]]) -> dict[int, int] | None:
        """A rail for each rank in a pair, equal in each pair; None where none was found.

        Ranks that pairs connect share a rail. Large sets choose first, and take the first rail that
        has room on all their nodes.
        """
        together = UnionFind()
        for pair in pairs:
            together.union(*pair)
        used: Counter[tuple[int, int]] = Counter()
        found: dict[int, int] = {}
        sets: list[list[int]] = [sorted(own) for own in together.to_sets()]
        for ranks in sorted(sets, key=lambda own: (-len(own), own)):
            needs = Counter(rank // self._size for rank in ranks)
            for rail, gpus in self._gpus.items():
                if all(used[node, rail] + n <= len(gpus) for node, n in needs.items()):
                    break
            else:
                return None
            used.update({(node, rail): n for node, n in needs.items()})
            found |= dict.fromkeys(ranks, rail)
        return found

    def filled(self, rails: dict[int, int]) -> dict[int, int]:
        """A GPU on its own node for every rank; those in `rails` are near their rail."""
        free: dict[int, list[int]] = {}
        taken: dict[int, int] = {}
        for rank in sorted(self._ranks, key=lambda own: own not in rails):
            node = rank // self._size
            left = free.setdefault(node, list(range(self._size)))
            gpu = left[0]
            if rank in rails:
                gpu = next(one for one in self._gpus[rails[rank]] if one in left)
            left.remove(gpu)
            taken[rank] = node * self._size + gpu
        return taken
