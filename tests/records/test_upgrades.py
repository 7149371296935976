"""Plans of version 4, which had tensor degrees in place of rank groups."""

import json
from pathlib import Path
from typing import Any

import pytest

from autopart.errors import FileError
from autopart.records.files import encode
from autopart.records.plan import Plan, load_plan
from autopart.search.planner import solve
from tests.support.degree_plans import GIVEN, SLOW_SENDS, by_hand
from tests.support.problems import cluster


def in_version_4(plan: Plan) -> dict[str, Any]:
    """The plan's tree as version 4 wrote it."""
    tree: dict[str, Any] = json.loads(encode(plan)) | {"version": 4}
    for owner in (tree, *tree["stages"], *tree["sizes"]):
        if "group" in owner:
            group = owner.pop("group")
            split = group.get("sequence_parallel", False)
            owner["tensor"] = {"degree": group["tensor"], "sequence_parallel": split}
    if "group" in tree["demands"]:
        demand = tree["demands"].pop("group")
        tree["demands"]["tensor"] = {"degree": demand.pop("tensor"), **demand}
    return tree


def plans() -> dict[str, Plan]:
    node = cluster(1, 4, **SLOW_SENDS)
    return {
        "one GPU per rank": solve(GIVEN, node, num_microbatches=4),
        "a tensor degree": solve(
            GIVEN, node, num_microbatches=4, tensor=2, sequence_parallel="on", num_stages=2
        ),
        "every tensor degree": solve(GIVEN, node, num_microbatches=4, tensor="auto"),
        "degrees per stage": by_hand((2,), (1, 2)),
    }


def test_plans_of_version_4_load_as_they_are_written_now(tmp_path: Path):
    for name, plan in plans().items():
        old = in_version_4(plan)
        assert ("tensor" in json.dumps(old)) == (name != "one GPU per rank")
        (tmp_path / "plan.json").write_text(json.dumps(old))
        assert load_plan(tmp_path / "plan.json") == plan, name


@pytest.mark.parametrize(
    "tensor", [None, 3, [], {}, {"degree": 2}, {"degree": "2", "sequence_parallel": False}]
)
def test_a_tensor_degree_of_version_4_that_is_none_is_refused(tmp_path: Path, tensor: object):
    old = in_version_4(plans()["one GPU per rank"]) | {"tensor": tensor}
    (tmp_path / "plan.json").write_text(json.dumps(old))
    with pytest.raises(FileError, match=r"unknown field `tensor`|Expected `int`, got `str`"):
        load_plan(tmp_path / "plan.json")
