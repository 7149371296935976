import pytest

from autopart.report.labels import chosen_label, layers_label, ranks_label, run_label, sibling_runs


@pytest.mark.parametrize(
    ("names", "runs"),
    [
        ("embed h.0 h.1 h.2 head", [1, 3, 1]),
        ("h.0 h.1 h.3 h.4", [2, 2]),
        ("h.9 h.10 h.11", [3]),
        ("a.0.b.0 a.0.b.1 a.1.b.0", [2, 1]),
        ("a.0.x a.1.x a.2.x", [3]),
        ("h.2 h.1 h.0", [1, 1, 1]),
        ("h.0 h.0 h.1", [1, 2]),
        ("conv1 bn1 conv2", [1, 1, 1]),
        ("", []),
    ],
)
def test_neighbours_fold_where_one_number_counts_up(names: str, runs: list[int]) -> None:
    found = sibling_runs(names.split())
    assert [len(run) for run in found] == runs
    assert [place for run in found for place in run] == list(range(len(names.split())))


def test_siblings_that_are_not_alike_stay_apart() -> None:
    def alike(one: int, other: int) -> bool:
        return (one, other) != (1, 2)

    assert [len(run) for run in sibling_runs(["h.0", "h.1", "h.2", "h.3"], alike)] == [2, 2]


def test_a_run_says_its_ends_and_its_length() -> None:
    names = ["h.0", "h.1", "h.2", "head"]
    assert run_label(names, range(3)) == "h.0 … h.2 (x3)"
    assert run_label(names, range(2)) == "h.0, h.1"
    assert run_label(names, range(3, 4)) == "head"


def test_a_stage_of_many_runs_says_only_its_ends() -> None:
    assert layers_label(["embed", "h.0", "h.1"]) == "embed, h.0, h.1"
    assert layers_label(list("abcdef")) == "a … f (6 layers)"


@pytest.mark.parametrize(
    ("ranks", "label"),
    [([0], "0"), ([0, 1], "0,1"), ([0, 1, 2, 3], "0-3"), ([0, 4], "0,4"), ([3, 2, 1], "1-3")],
)
def test_a_label_of_ranks_is_short(ranks: list[int], label: str) -> None:
    assert ranks_label(ranks) == label


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("h.0 h.3 h.6 h.7 h.8 head", "h.{0,3,6-8}, head"),
        ("h.4", "h.4"),
        ("h.1 h.2", "h.{1,2}"),
        ("a.0.b.0 a.1.b.1", "a.0.b.0, a.1.b.1"),
        ("h.0 h.0@1", "h.0, h.0@1"),
    ],
)
def test_chosen_layers_are_each_named(names: str, label: str) -> None:
    assert chosen_label(names.split()) == label
