"""Megatron's layouts, against layouts that are written out by hand."""

import re

import pytest

from autopart.errors import UsageError
from autopart.importers.megatron import Counts, units_of_counts, units_of_layout
from autopart.importers.units import Units


def letters(units: Units) -> str:
    """`Ett|t|tL`: the stages in Megatron's letters; norm and head are one L."""
    one = {"embedding": "E", "norm": "", "head": "L", "mtp": "m"}
    return "|".join("".join(one.get(unit, "t") for unit in stage) for stage in units)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("Ett|tL", "Ett|tL"),
        ("Et*3|(tt|)*3,m|L", "Ettt|tt|tt|tt|m|L"),
        ("E, t|(t|tt|)*2 L", "Et|t|tt|t|tt|L"),
        ("E|t*2|t*10L", "E|tt|ttttttttttL"),
        ("E(tt)*2|L", "Etttt|L"),
        ("E|(t|)*0tL", "E|tL"),
    ],
)
def test_a_layout_string_is_written_out(layout: str, expected: str) -> None:
    assert letters(units_of_layout(layout)) == expected


def test_decoder_layers_are_numbered_through_all_stages() -> None:
    assert units_of_layout("Ett|t|tL") == (
        ("embedding", "layers.0", "layers.1"),
        ("layers.2",),
        ("layers.3", "norm", "head"),
    )


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("", "0 x E (embedding)"),
        ("tt|tL", "0 x E (embedding)"),
        ("Et|t", "0 x L (loss)"),
        ("EE|tL", "2 x E (embedding)"),
        ("t|EtL", "E on the first stage"),
        ("Et|L|t", "L on the last"),
        ("Et|x|L", "'x' at place 3"),
        ("Et*|L", "'*' at place 2"),
        ("E((t)*2|)*2L", "is no layer"),
        ("Et*999999|L", "when written out"),
        ("E(t*9999)*9999|L", "is no layer|when written out"),
    ],
)
def test_what_megatron_refuses_is_refused(layout: str, said: str) -> None:
    with pytest.raises(UsageError, match="|".join(map(re.escape, said.split("|")))):
        units_of_layout(layout)


@pytest.mark.parametrize(
    ("layers", "counts", "expected"),
    [
        (8, Counts(ranks=4), "Ett|tt|tt|ttL"),
        (8, Counts(ranks=2, stages_per_rank=2), "Ett|tt|tt|ttL"),
        (7, Counts(ranks=4, first=1), "Et|tt|tt|ttL"),
        (6, Counts(ranks=4, first=1, last=1), "Et|tt|tt|tL"),
        (3, Counts(ranks=2, first=2, last=1), "Ett|tL"),
        # Rank 0 has the stages 0 and 2, rank 1 the others: Megatron's own comment on virtual stages.
        (6, Counts(ranks=2, stages_per_rank=2, first=2), "Et|tt|t|ttL"),
        (6, Counts(ranks=4, embedding_counts=True, loss_counts=True), "Et|tt|tt|tL"),
        (7, Counts(ranks=4, loss_counts=True), "Ett|tt|tt|tL"),
    ],
)
def test_layers_are_counted_as_megatron_does(layers: int, counts: Counts, expected: str) -> None:
    assert letters(units_of_counts(layers, counts)) == expected


@pytest.mark.parametrize(
    ("layers", "counts", "said"),
    [
        (7, Counts(ranks=4), "7 layers cannot be shared by 4 ranks"),
        (8, Counts(ranks=4, first=9), "shared by 3 ranks"),
        (8, Counts(ranks=1, first=3), "5 layers cannot be shared by 0 ranks"),
        (8, Counts(ranks=4, stages_per_rank=4), "2 layers, which 4 stages per rank cannot share"),
        (8, Counts(ranks=4, first=2, loss_counts=True), "either layers of the first"),
    ],
)
def test_counts_that_megatron_refuses_are_refused(layers: int, counts: Counts, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        units_of_counts(layers, counts)
