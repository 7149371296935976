"""GPUs of several kinds for groups of ranks, against trying every GPU for every rank."""

import itertools
import random

import pytest

from autopart.bounds.gpu_matching import match_gpus, places_in_want
from autopart.bounds.rank_groups import Cap
from autopart.records.cluster import GpuGroup
from tests.support.problems import cluster
from tests.support.seeds import seeds


@pytest.mark.parametrize("seed", seeds(40, 300))
def test_gpus_are_found_where_some_suit_all_caps(seed: int):
    rng = random.Random(seed)
    nodes, per_node = rng.choice([(1, 4), (2, 2), (2, 3), (3, 2)])
    count = nodes * per_node
    kinds = [Cap(rng.choice([0.5, 1.0]), rng.choice([10, 20])) for _ in range(count)]
    groups = tuple(
        GpuGroup(count=1, name="any", memory_bytes=kind.memory_bytes, speed=kind.speed)
        for kind in kinds
    )
    machine = cluster(nodes, per_node, gpus=groups, memory_bytes=min(k.memory_bytes for k in kinds))
    ranks = list(range(rng.randint(1, min(4, count))))
    cap_of = {rank: Cap(rng.choice([0.5, 1.0]), rng.choice([10, 20])) for rank in ranks}
    split = rng.randint(1, len(ranks))
    asked = [own for own in (ranks[:split], ranks[split:]) if own]

    def suits(gpus: dict[int, int]) -> bool:
        together = all(len({gpus[rank] // per_node for rank in own}) == 1 for own in asked)
        return together and all(
            kinds[gpu].speed >= cap_of[rank].speed
            and kinds[gpu].memory_bytes >= cap_of[rank].memory_bytes
            for rank, gpu in gpus.items()
        )

    exists = any(
        suits(dict(zip(ranks, chosen, strict=True)))
        for chosen in itertools.permutations(range(count), len(ranks))
    )
    matched = match_gpus(machine, asked, cap_of)
    assert matched.certain
    assert (matched.gpus is not None) == exists
    if matched.gpus is not None:
        assert sorted(matched.gpus) == ranks and len(set(matched.gpus.values())) == len(ranks)
        assert suits(matched.gpus)
    # Places in want say that no matching exists, nodes or not.
    if places_in_want(machine, [cap_of[rank] for rank in ranks], [1] * len(ranks)):
        assert not exists
