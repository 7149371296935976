"""What two pipelines over the same ranks take, for an error where no layout has it."""

from autopart.records.problem import Problem
from autopart.text import counted


def both_ways_would_do(problem: Problem, layers: int, gpus: int) -> str:
    """What two pipelines over the same ranks take, and what to change."""
    demands = problem.demands
    counts = (
        (demands.num_stages, "--stages {}"),
        (demands.num_replicas, "--replicas {}"),
        (problem.num_microbatches, "{} microbatches"),
    )
    wanted = [what.format(_even_near(n)) for n, what in counts if n is not None and n % 2]
    if not wanted and problem.num_microbatches % (demands.num_replicas or 1):
        wanted.append(
            f"microbatches that are a multiple of {counted(demands.num_replicas or 1, 'replica')}"
        )
    if demands.stages_per_rank not in (None, 2):
        wanted.append("--stages-per-rank 2")
    if min(layers, gpus) < 2:
        wanted.append(f"2 {'layers' if layers < 2 else 'GPUs'}")
    tried = (
        ", ".join(wanted)
        or f"fewer stages, or replicas: k stages x r replicas take k r / 2 of {counted(gpus, 'GPU')}"
    )
    return (
        "runs two pipelines over the same ranks in opposite directions, so it takes even numbers of "
        f"stages, replicas and microbatches: try {tried}"
    )


def _even_near(count: int) -> str:
    return " or ".join(str(n) for n in (count - 1, count + 1) if n)
