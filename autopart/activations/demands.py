"""Whether layers and cluster can do as the user demands for recomputation and offload."""

import msgspec

from autopart.activations.policies import (
    allowed_policies,
    has_policies,
    may_offload,
    optimizer_places,
    possible_policies,
)
from autopart.errors import AutopartError
from autopart.records.cluster import Cluster
from autopart.records.layer_graph import LayerGraph
from autopart.records.plan import POLICY_LISTS
from autopart.records.problem import Demands
from autopart.text import in_words


def checked_policies(graph: LayerGraph, cluster: Cluster, demands: Demands) -> Demands:
    """The demands, with only the schedules under which layers can have the demanded policies.

    Raises AutopartError where a layer or the cluster cannot do as demanded, or two demands contradict.
    """
    if may_offload(demands) and cluster.host_link is None:
        raise AutopartError(
            "the cluster has no link to the host, so nothing can be offloaded; give --host-bandwidth RATE or "
            "a host_link in the cluster file, or leave --offload out"
        )
    if demands.offload == "always" and demands.recompute in ("selective", "always"):
        raise AutopartError(
            f"--recompute {demands.recompute} and --offload always contradict: a layer has one policy; take "
            "one of them, and name the layers for the other"
        )
    if demands.offload_optimizer != "never" and cluster.host_link is None:
        raise AutopartError(
            "the cluster has no link to the host, so optimizer state cannot lie there; give "
            "--host-bandwidth RATE or a host_link in the cluster file, or leave --offload-optimizer out"
        )
    _check_names(graph, demands)
    allowed = [allowed_policies(layer, demands) for layer in graph.layers]
    offloads = False not in optimizer_places(demands) or any(own == ("offload",) for own in allowed)
    if not offloads and all("keep" in own for own in allowed):
        return demands
    able = tuple(name for name in demands.schedules if has_policies(name))
    if able:
        return msgspec.structs.replace(demands, schedules=able)
    what = "offloaded" if offloads else "recomputed"
    raise AutopartError(
        f"nothing is {what} under {in_words(demands.schedules)}, only where all pipelines run in one direction, "
        "without pairs and lent stash; take --schedule auto, or another one"
    )


def _check_names(graph: LayerGraph, demands: Demands) -> None:
    why_not = {
        "recompute": "be recomputed: by its profile it keeps nothing inside, or holds operations that "
        "must run once",
        "selective": "be recomputed in part: its profile has no such alternative",
        "offload": "be offloaded: by its profile it keeps nothing inside",
    }
    for layer in graph.layers:
        named = [
            policy for policy in POLICY_LISTS if layer.name in getattr(demands, f"{policy}_layers")
        ]
        if layer.name in demands.keep_layers:
            named.append("keep")
        for policy in named:
            if policy not in possible_policies(layer):
                raise AutopartError(
                    f"layer '{layer.name}' cannot {why_not[policy]}; leave it out of --{policy}-layer"
                )
        if len(named) > 1:
            raise AutopartError(
                f"layer '{layer.name}' is named for {' and for '.join(named)}: name it once"
            )
