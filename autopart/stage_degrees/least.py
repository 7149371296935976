"""A lower bound over all plans whose stages have tensor degrees of their own, at a glance.

Symbols   f(t), b(t)  forward and backward seconds of a layer on one GPU of a group of t
          M, G        microbatches per step; GPUs

    all work on all GPUs     M x sum over layers of min_t t (f(t) + b(t)) / G
    one microbatch's path    sum over layers of min_t (f(t) + b(t))

Each layer runs M times on some group, and keeps its t GPUs busy. Each holds under any schedule and any
order of actions, on any GPUs, with split backwards too: these only take longer.
"""

import numpy as np

from autopart.cost.stage_totals import layer_sizes
from autopart.records.cluster import fastest_speed, num_gpus
from autopart.stage_degrees.problem import DegreesProblem


def least_step_of_degrees(problem: DegreesProblem) -> float:
    """Seconds that no plan can beat, whatever its degrees, cuts, replicas and order of actions."""
    whole = problem.of_gpus
    sizes = [layer_sizes(own.graph) for own in problem.of_groups]
    both = np.array([own.forward_time + own.backward_time for own in sizes])
    both = both / fastest_speed(whole.cluster)
    degrees = np.array(problem.degrees)[:, None]
    work = whole.num_microbatches * float((degrees * both).min(axis=0).sum())
    return max(work / num_gpus(whole.cluster), float(both.min(axis=0).sum()))
