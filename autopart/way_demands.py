"""Whether what a user asks of recomputation and offload can be done."""

import msgspec

from autopart.cluster import Cluster
from autopart.errors import AutopartError
from autopart.graph import LayerGraph
from autopart.plan import TREATED
from autopart.problem import Demands
from autopart.ways import able_ways, allowed_ways, can_treat, may_offload, places_of_state


def checked_ways(graph: LayerGraph, cluster: Cluster, demands: Demands) -> Demands:
    """The demands, with only those schedules under which the layers go the demanded ways.

    Raises AutopartError where layers or the cluster cannot do what is asked, or two demands contradict.
    """
    if may_offload(demands) and cluster.host_link is None:
        raise AutopartError(
            "nothing is known of the link to the host, so nothing can be offloaded; give --host-bandwidth "
            "RATE or a host_link in the cluster file, or leave --offload out"
        )
    if demands.offload == "always" and demands.recompute in ("selective", "always"):
        raise AutopartError(
            f"--recompute {demands.recompute} and --offload always: a layer's stash goes one way; take one "
            "of them, and name the layers of the other"
        )
    if demands.offload_optimizer != "never" and cluster.host_link is None:
        raise AutopartError(
            "nothing is known of the link to the host, so optimizer state cannot lie there; give "
            "--host-bandwidth RATE or a host_link in the cluster file, or leave --offload-optimizer out"
        )
    _check_names(graph, demands)
    kept = all("keep" in allowed_ways(layer, demands) for layer in graph.layers)
    if kept and False in places_of_state(demands):
        return demands
    able = tuple(name for name in demands.schedules if can_treat(name))
    if not able:
        raise AutopartError(
            f"nothing is recomputed or offloaded under {', '.join(demands.schedules)}, only under schedules "
            "with one stage a rank and whole backwards; take --schedule gpipe,1f1b or --recompute auto"
        )
    return msgspec.structs.replace(demands, schedules=able)


def _check_names(graph: LayerGraph, demands: Demands) -> None:
    why_not = {
        "recompute": "be recomputed: by its profile it keeps nothing inside, or holds operations that "
        "must run once",
        "selective": "be recomputed in part: its profile has no such alternative",
        "offload": "be offloaded: by its profile it keeps nothing inside",
    }
    for layer in graph.layers:
        named = [way for way in TREATED if layer.name in getattr(demands, f"{way}_layers")]
        if layer.name in demands.keep_layers:
            named.append("keep")
        for way in named:
            if way not in able_ways(layer):
                raise AutopartError(
                    f"layer '{layer.name}' cannot {why_not[way]}; leave it out of --{way}-layer"
                )
        if len(named) > 1:
            raise AutopartError(
                f"layer '{layer.name}' is named for {' and for '.join(named)}: name it once"
            )
