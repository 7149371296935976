"""Whole models under the context pass over an expert rank's graph: gradients, and the collectives of a block."""

from collections import Counter

import pytest
from torch import nn

from autopart.errors import ModelError
from autopart.records.rank_group import Group
from autopart.runtime.models.attributes import lookup
from autopart.runtime.sharding.check import check_group
from autopart.runtime.sharding.context.rules.samples import fewer_samples, more_samples
from autopart.runtime.sharding.context.states import Rows
from autopart.runtime.sharding.counted import count_collectives
from autopart.runtime.sharding.group_graphs import graphs_of
from tests.support.runtime.context_models import Decoder, SortedExperts
from tests.support.runtime.sharded_models import known_model, small_model

MOE = "zoo:moe-tiny"
MIXTRAL, QWEN3 = "tests/support/models/hf_mixtral.py", "tests/support/models/hf_qwen3_moe.py"
GRIDS = {
    "c 2 x e 2": Group(context=2, expert=2),
    "c 2 around a ring x e 2": Group(context=2, expert=2, exchange="ring"),
    "c 4 x e 2": Group(context=4, expert=2),
    "c 2 x e 4": Group(context=2, expert=4),
    "t 2 x c 2 x e 2": Group(tensor=2, context=2, expert=2, sequence_parallel=True),
}
IN_CI = {(MOE, "c 2 around a ring x e 2"), (QWEN3, "t 2 x c 2 x e 2")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "grid"),
    [
        pytest.param(model, grid, marks=() if (model, grid) in IN_CI else pytest.mark.long)
        for model in (MOE, MIXTRAL, QWEN3)
        for grid in GRIDS
        # Masks of transformers cannot follow a ring.
        if model == MOE or "ring" not in grid
    ],
)
def test_the_ranks_together_have_the_models_loss_and_gradients(model: str, grid: str) -> None:
    case = known_model(model, 4)
    found = check_group(graphs_of(case.captured, GRIDS[grid]), case.leaves)
    assert found.loss_error < 1e-13 and found.gradient_error < 1e-11, found


def block_collectives(model: str, group: Group) -> Counter[tuple[str, str, object, int]]:
    """The collectives of the second block: kind, phase, ranks and bytes."""
    graphs = graphs_of(known_model(model, 4).captured, group)
    found = count_collectives(graphs, graphs.local(0))
    block = next(name for name in found if name.endswith(".1"))
    return Counter((one.kind, one.phase, one.among, one.bytes) for one in found[block])


@pytest.mark.slow
def test_entries_of_half_the_positions_go_to_the_experts() -> None:
    """The messages of attention have half of the samples, and those of experts half of the positions."""
    both = block_collectives(MIXTRAL, Group(context=2, expert=2))
    context, expert = (
        block_collectives(MIXTRAL, group) for group in (Group(context=2), Group(expert=2))
    )
    halved = Counter(
        {
            (kind, phase, among, size // 2): count
            for (kind, phase, among, size), count in (context + expert).items()
            if (among, phase) in (("context", "forward"), ("context", "input_grad"))
            or kind == "all_to_all"
        }
    )
    counts = {one: count for one, count in expert.items() if one[:2] == ("all_gather", "forward")}
    ((sent, _),) = counts.items()
    of_all, of_others = (
        [size for _, phase, among, size in both if phase == "step" and among == kind]
        for kind in ("context", "expert")
    )
    # Every weight is summed over context ranks, with the rank's own experts; the expert ranks sum the others.
    graphs = graphs_of(known_model(MIXTRAL, 4).captured, Group(context=2, expert=2))
    experts = "model.layers.1.mlp.experts."
    own = [
        lookup(graphs.module(0, {}), experts + name).nbytes
        for name in ("gate_up_proj", "down_proj")
    ]
    assert of_all == [of_others[0] + sum(own)]
    steps = Counter({one: count for one, count in both.items() if one[1] == "step"})
    assert both - steps == halved + Counter([sent])


@pytest.mark.slow
def test_a_degree_that_does_not_divide_is_named() -> None:
    case = known_model(MOE, 2)
    with pytest.raises(ModelError, match=r"^expert degree 4: a microbatch has 2 samples"):
        graphs_of(case.captured, Group(context=2, expert=4))
    with pytest.raises(ModelError, match=r"^context degree 5: .* is no multiple of 10"):
        graphs_of(case.captured, Group(context=5, expert=2))


@pytest.mark.slow
def test_random_numbers_of_layers_are_refused_with_both_degrees() -> None:
    pytest.importorskip("transformers")
    case = small_model(Decoder(nn.Sequential(SortedExperts(), nn.Dropout(0.5))))
    graphs_of(case.captured, Group(expert=2))
    with pytest.raises(ModelError, match=r"^context degree 2: .* draws random numbers") as error:
        graphs_of(case.captured, Group(context=2, expert=2))
    assert str(error.value).endswith("; use context degree 1")


@pytest.mark.parametrize(
    ("rows", "outer", "fewer"),
    [
        (Rows(1, 8), 1, Rows(1, 8)),
        (Rows(0, 8, outer=4), 1, Rows(0, 8, outer=2)),
        (Rows(0, 8, outer=12), 2, Rows(0, 8, outer=6)),
        (Rows(0, 8), 1, None),
        (Rows(0, 8), 8, None),
    ],
)
def test_samples_stand_outside_the_positions(rows: Rows, outer: int, fewer: Rows | None) -> None:
    """Along dimension 0, for two ranks; samples inside the positions are refused."""
    assert fewer_samples(rows, 0, outer, 2) == fewer
    if fewer is not None:
        assert more_samples(fewer, 0, outer, 2) == rows
