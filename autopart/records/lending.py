"""What BPipe takes, whose ranks lend stash to each other, where a plan cannot have it."""

from collections.abc import Sequence

from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.problem import LENDING, Problem
from autopart.text import counted


def lending_would_do(problem: Problem, layers: int, gpus: int) -> str:
    """What pairs of ranks take, and what to change, for an error where no layout has it."""
    demands, stages = problem.demands, problem.demands.num_stages
    wanted: list[str] = []
    if stages is not None and stages % 2:
        # Even numbers beside the asked one, as far as there are GPUs for them.
        most = max(2, min(layers, gpus) // 2 * 2)
        near = sorted({min(most, max(2, n)) for n in (stages - 1, stages + 1)})
        wanted.append(f"--stages {' or '.join(map(str, near))}")
    if demands.stages_per_rank not in (None, 1):
        wanted.append("--stages-per-rank 1")
    if min(layers, gpus) < 2:
        wanted.append(f"2 {'layers' if layers < 2 else 'GPUs'}")
    tried = ", ".join(wanted) or (
        f"fewer stages, or replicas that divide the {counted(problem.num_microbatches, 'microbatch')}"
    )
    return (
        "lends stash from rank r to rank k - 1 - r of k, so it takes an even number of ranks with "
        f"one stage each: try {tried}"
    )


def check_lending_sends(schedules: Sequence[str], cluster: Cluster) -> None:
    """Raise AutopartError where stash is to be lent, and the cluster's sends cannot run beside compute."""
    names = [name for name in schedules if name in LENDING]
    if names and not (cluster.sends_overlap and cluster.sends == "buffered"):
        how = "wait for their receiver" if cluster.sends_overlap else "do not overlap compute"
        raise AutopartError(
            f"{names[0]} lends stash beside compute, and this cluster's sends {how}: take another schedule, "
            "or a cluster with --sends buffered that overlaps them"
        )
