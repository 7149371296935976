"""Where nothing fits, the error names groups that would do: exactly those with which a plan is found."""

import re
from typing import Any

import pytest

from autopart.errors import InfeasibleError
from autopart.records.plan import Plan
from autopart.records.profile import Profile
from autopart.search.planner import solve
from tests.support.problems import chain_graph, cluster, layer, profile

KINDS = ("zero2", "zero3")


def row(count: int = 16) -> Profile:
    """Layers with 100 bytes of weights, 100 of gradients and 200 of Adam's state each."""
    names = (f"l{at}" for at in range(count))
    sizes = {"param_bytes": 100, "grad_bytes": 100, "num_trainable": 25, "stash_bytes": 8}
    return profile(chain_graph(*(layer(name, **sizes) for name in names)))


def solved(memory: int, given: Profile | None = None, gpus: int = 4, **options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 8, "num_stages": 2, "schedule": "1f1b"}
    on = cluster(1, gpus, memory_bytes=memory)
    return solve(given or row(), on, **(words | options))


def named(memory: int, **options: Any) -> str:
    """The options for groups that the error names, as they are typed."""
    with pytest.raises(InfeasibleError) as told:
        solved(memory, **options)
    found = re.search(r"; ([^;]*--shard[^;]*) would do$", str(told.value))
    assert "--shard" not in str(told.value) or found
    return found[1] if found else ""


def fits(memory: int, kind: str, **options: Any) -> bool:
    try:
        solved(memory, shard=kind, **options)
    except InfeasibleError:
        return False
    return True


MEMORIES = range(2100, 3600, 200)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_first_kind_that_would_do_is_named(memory: int) -> None:
    if fits(memory, "none"):
        return
    able = [kind for kind in KINDS if fits(memory, kind)]
    assert named(memory) == (f"--shard {able[0]}" if able else "")


def test_the_memories_above_give_each_answer() -> None:
    small = [memory for memory in MEMORIES if not fits(memory, "none")]
    assert {named(memory) for memory in small} == {"", "--shard zero2", "--shard zero3"}
    assert len(small) < len(MEMORIES)


def test_sharded_state_stands_in_place_of_zero1() -> None:
    assert named(2300, num_replicas=1, zero1=True) == "--shard zero3 in place of --zero1"


def test_a_target_without_sharded_state_gets_no_such_advice() -> None:
    assert named(3100) == named(3100, target="torchtitan") == "--shard zero2"
    assert named(2300) == "--shard zero3"
    assert named(3100, target="megatron") == named(2300, target="automodel") == ""


def test_who_chose_a_kind_gets_no_other_one() -> None:
    assert named(2300, shard="zero2") == ""


def test_stages_have_room_on_rank_groups_where_groups_are_asked_for() -> None:
    words: dict[str, Any] = {"shard": "zero3", "shard_degree": 2}
    with pytest.raises(InfeasibleError, match=r"^3 stages cannot .* has 2 rank groups; ask for at"):
        solved(10**6, num_stages=3, **words)
    with pytest.raises(InfeasibleError, match=r"2 stages for each must have room on 2 rank groups"):
        solved(10**6, num_replicas=2, **words)
    with pytest.raises(InfeasibleError, match=r"^5 stages cannot be made: the cluster has 4 GPUs"):
        solved(10**6, num_stages=5)
