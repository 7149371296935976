"""Run one peer's balancer on sequences of layer times, for scripts/compare_balancers.py.

    echo '{"sequences": [[1, 2, 3]], "stages": 2}' | python scripts/peer_balancers.py torchgpipe

Prints the largest stage sum for each sequence and the processor time, as JSON. It is a process by
itself, since these packages import torch and may run for long.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence

Balancer = Callable[[Sequence[float], int], list[int]]
"""Takes layer times and a number of stages; returns each stage's first layer, and the end."""


def torchgpipe() -> Balancer:
    """Block partitions for a sequence (`torchgpipe.balance.balance_by_time`)."""
    from torchgpipe.balance import blockpartition

    def solve(times: Sequence[float], stages: int) -> list[int]:
        lengths = [len(block) for block in blockpartition.solve(list(times), stages)]
        return [0, *itertools.accumulate(lengths)]

    return solve


def deepspeed() -> Balancer:
    """`PipelineModule`'s partitions: least difference between the largest and smallest stage."""
    from deepspeed.runtime.utils import partition_balanced

    return lambda times, stages: [int(bound) for bound in partition_balanced(list(times), stages)]


PEERS = {"torchgpipe": torchgpipe, "deepspeed": deepspeed}


def main() -> None:
    asked = json.load(sys.stdin)
    solve = PEERS[sys.argv[1]]()
    began = time.process_time()
    largest: list[float] = []
    for times in asked["sequences"]:
        bounds = solve(times, asked["stages"])
        largest.append(max(sum(times[a:b]) for a, b in itertools.pairwise(bounds)))
    print(json.dumps({"largest": largest, "seconds": time.process_time() - began}))


if __name__ == "__main__":
    main()
