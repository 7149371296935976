"""What becomes of a stage's seconds on its ranks: their pace, shared updates, and state that comes from the host."""

import numpy as np

from autopart.cluster import slowest_speed
from autopart.cost.links import send_time
from autopart.cost.rank_bytes import largest_part
from autopart.cost.syncs import update_share
from autopart.layouts import Layout
from autopart.problem import Problem
from autopart.stage_load import StageLoad
from autopart.training import state_bytes


def on_replicas(load: StageLoad, problem: Problem, replicas: int, speed: float) -> StageLoad:
    """The load on so many GPUs of `speed`, relative to the profile's device: every time grows by
    1 / speed, and with ZeRO-1 the replicas share the update out among them. State on the host comes to the
    device for the update and goes back, one way after the other."""
    sharing = update_share(problem.training, replicas)
    host = problem.cluster.host_link
    if host is not None and np.any(load.optimizer_on_host):
        stepped = largest_part(load.num_trainable, sharing) * load.optimizer_on_host
        trip = 2 * send_time(host, stepped * state_bytes(problem.training), 0)
    elif speed == 1.0 and sharing == 1:
        return load
    else:
        trip = 0.0
    return load._replace(
        forward_time=load.forward_time / speed,
        backward_time=load.backward_time / speed,
        weight_grad_time=load.weight_grad_time / speed,
        split_time=load.split_time / speed,
        update_time=load.update_time / (speed * sharing) + trip,
    )


def on_ranks(load: StageLoad, problem: Problem, layout: Layout, stage: int) -> StageLoad:
    """The load as stage `stage` of a layout: its slowest rank sets the pace."""
    ranks = layout.stage_ranks[stage]
    speed = slowest_speed(problem.cluster, ranks)
    return on_replicas(load, problem, len(ranks), speed)
