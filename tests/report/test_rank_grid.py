"""The rank grid: each GPU once, at the place that the group's definition gives it."""

import itertools

import msgspec
import pytest
from rich.console import Console

from autopart.records.plan import Plan
from autopart.records.rank_group import Among, Group, places_among
from autopart.report.page.document import page_html
from autopart.report.rank_grid import MOST_LINES, grid_lines, rank_grid_table
from tests.support.exporters.language import language_plan
from tests.support.pages import Reader, contents_of
from tests.support.samples import sample_plan
from tests.support.sharded_plans import sample_sharded_plan, sharing
from tests.support.tensor_plans import in_groups

DEGREES = list(itertools.product((1, 2), (1, 3), (1, 2), (1, 2)))[1:]


def grouped(tensor: int, context: int, expert: int, data: int) -> Plan:
    """A plan for two stages and two replicas, with microbatches that all degrees divide."""
    plan = language_plan([2, 2], replicas=2)
    plan = msgspec.structs.replace(plan, microbatch_size=12)
    if data == 1:
        return in_groups(plan, tensor, context=context, expert=expert)
    return sharing(plan, data, "zero3", tensor=tensor, context=context, expert=expert)


@pytest.mark.parametrize("degrees", DEGREES)
def test_every_gpu_stands_once_at_its_place(degrees: tuple[int, int, int, int]) -> None:
    plan = grouped(*degrees)
    assert isinstance(plan.group, Group)
    found: dict[tuple[int, ...], int] = {}
    for line in grid_lines(plan):
        for context, own in enumerate(line.gpus):
            for tensor, gpu in enumerate(own):
                found[line.rank, tensor, context, line.expert, line.data] = gpu
    size = degrees[0] * degrees[1] * degrees[2] * degrees[3]
    assert sorted(found.values()) == list(range(4 * size))
    # GPUs that differ along one axis are those of the collectives of that kind.
    kinds: tuple[Among, ...] = ("tensor", "context", "expert", "data")
    for axis, kind in enumerate(kinds, start=1):
        first = [
            found[0, *tuple(at * (n == axis) for n in range(1, 5))]
            for at in range(degrees[axis - 1])
        ]
        assert first == list(places_among(plan.group, kind))


def test_lines_name_stages_and_nodes() -> None:
    plan = grouped(2, 1, 1, 2)
    cluster = msgspec.structs.replace(plan.cluster, gpus_per_node=4, num_nodes=4)
    lines = list(grid_lines(msgspec.structs.replace(plan, cluster=cluster)))
    assert [line.stages for line in lines[::2]] == [(0,), (0,), (1,), (1,)]
    assert [line.nodes(4) for line in lines[::2]] == [[0], [1], [2], [3]]
    assert lines[0].nodes(1) == [0, 1]


def said(plan: Plan) -> str:
    """The table as a terminal shows it."""
    table = rank_grid_table(plan)
    assert table is not None
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_the_table_has_columns_for_the_degrees_of_the_plan() -> None:
    assert rank_grid_table(sample_plan()) is None
    text = said(grouped(2, 3, 1, 2))
    assert "data" in text and "expert" not in text
    assert "0,1 | 2,3 | 4,5" in text
    assert "expert" in said(grouped(1, 1, 2, 1)) and "data" not in said(grouped(1, 1, 2, 1))


def test_long_tables_say_how_many_lines_are_left_out() -> None:
    plan = grouped(1, 1, 2, 2)
    count = len(list(grid_lines(plan)))
    assert count == MOST_LINES and "more line" not in said(plan)
    plan = msgspec.structs.replace(plan, microbatch_size=12 * 9)
    group = msgspec.structs.replace(plan.group, data=9)  # pyright: ignore[reportArgumentType]
    assert "56 more lines of the same kind" in said(msgspec.structs.replace(plan, group=group))


def test_the_page_draws_each_gpu_of_a_group() -> None:
    plan = sample_sharded_plan("zero3")
    reader = Reader(page_html(contents_of(plan)))
    chips = [given for tag, given in reader.tags if given.get("class") == "chip"]
    gpus = [gpu for line in grid_lines(plan) for own in line.gpus for gpu in own]
    assert len(chips) == len(gpus) > 0
    titles = [str(chip["title"]) for chip in chips]
    assert titles[1].startswith(f"GPU {gpus[1]}: data 1; rank 0, stage 0, node ")
    assert "The GPUs of each rank" in reader.text
    plain = Reader(page_html(contents_of(sample_plan())))
    assert "The GPUs of each rank" not in plain.text
