"""Orders of plans as text, with the state actions of their rank groups."""

from typing import Any

import pytest

from autopart.records.cluster import Link
from autopart.records.plan import Plan
from autopart.report.order_lines import order_lines, orders_summary
from autopart.search.planner import solve
from tests.support.plan_kinds import ROW
from tests.support.problems import chain_graph, cluster, layer, profile


def solved(**options: Any) -> Plan:
    words: dict[str, Any] = {"num_microbatches": 4, "num_stages": 2, "schedule": "gpipe"}
    on = cluster(1, 4, intra_node=Link(bandwidth=2000.0))
    return solve(ROW, on, **(words | options))


def first_order(plan: Plan) -> str:
    return orders_summary(plan, "plan.json").ranks[0].order


@pytest.mark.parametrize(
    ("options", "order", "lines"),
    [
        ({"num_replicas": 1}, "0F0 0F1 0F2 0F3 0B0 0B1 0B2 0B3", 2),
        (
            {"shard": "zero3"},
            "0UNSHARD 0F0 0RESHARD 0UNSHARD 0F1 0RESHARD 0UNSHARD 0B0 0RESHARD 0REDUCE_GRAD "
            "0UNSHARD 0B1 0RESHARD 0REDUCE_GRAD",
            3,
        ),
        ({"shard": "zero2"}, "0UNSHARD 0F0 0F1 0B0 0REDUCE_GRAD 0B1 0REDUCE_GRAD", 4),
        ({"shard": "zero2", "sync": "fsdp2"}, "0UNSHARD 0F0 0F1 0B0 0B1 0REDUCE_GRAD 0RESHARD", 4),
    ],
)
def test_an_order_has_its_gathers_and_reductions(options: dict[str, Any], order: str, lines: int):
    plan = solved(**options)
    orders = orders_summary(plan, "plan.json")
    assert [one.rank for one in orders.ranks] == [0, 1]
    assert orders.ranks[0].order == order and orders.ranks[0].stages == (0,)
    said = list(order_lines(plan, orders))
    assert said[0] == f"rank 0, stage 0: {order}"
    assert len(said) == lines


def test_torch_gathers_again_where_a_rank_has_more_stages_than_it_keeps():
    own = {"param_bytes": 40, "grad_bytes": 40, "num_trainable": 10}
    given = profile(chain_graph(*(layer(f"l{at}", **own) for at in range(8))))
    words: dict[str, Any] = {
        "num_microbatches": 8, "num_stages": 8, "schedule": "looped-bfs", "stages_per_rank": 4,
        "shard": "zero2", "shard_degree": 2,
    }  # fmt: skip
    plain, torchs = (solve(given, cluster(1, 4), **words, sync=sync) for sync in ("end", "fsdp2"))
    assert first_order(plain).count("UNSHARD") == 4
    assert first_order(torchs).count("UNSHARD") == 5
