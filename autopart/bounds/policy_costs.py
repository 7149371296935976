"""What each policy costs a layer alone, in seconds and bytes that no neighbour makes less."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from autopart.activations.policies import POLICIES, allowed_policies, kept_inside
from autopart.cost.links import send_time
from autopart.records.problem import Problem

Numbers = npt.NDArray[np.float64]


class PolicyCosts(NamedTuple):
    """One policy for all layers, arrays with shape (layers,); infinite seconds where a layer cannot have it."""

    extra: Numbers
    """Seconds added to the backward; also those of both copies to the host where these do not overlap with compute."""
    kept: Numbers
    """Stash bytes that stay inside the layer."""
    copied: Numbers
    """Seconds of both copies, where they overlap with compute."""


def policy_costs(problem: Problem, speed: float) -> list[PolicyCosts]:
    """Each policy for all layers."""
    layers, link = problem.graph.layers, problem.cluster.host_link
    found: list[PolicyCosts] = []
    for name in POLICIES:
        able = [name in allowed_policies(la, problem.demands) for la in layers]
        if not any(able):
            continue
        again = [{"recompute": la.recompute, "selective": la.selective}.get(name) for la in layers]
        extra = np.array([own.extra_time / speed if own else 0.0 for own in again])
        trips = np.zeros(len(layers))
        if name == "offload" and link is not None:
            trips = np.array([2 * send_time(link, la.stash_bytes, 1) for la in layers])
        beside = link is not None and link.overlaps
        found.append(
            PolicyCosts(
                extra=np.where(able, extra + (0.0 if beside else trips), 1e30),
                kept=np.array([float(kept_inside(la, name)) for la in layers]),
                copied=trips if beside else np.zeros(len(layers)),
            )
        )
    return found
