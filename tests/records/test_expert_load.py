from pathlib import Path

import msgspec
import pytest

from autopart.errors import AutopartError, ProfileError
from autopart.records.expert_load import LayerLoad, Uneven, check_load, load_in_words, uneven
from autopart.records.run_result import load_run_result
from tests.support.measured_runs import as_predicted
from tests.support.plan_kinds import plan_of_kind

ONE = LayerLoad(layer="a", expert=2, imbalance=1.25, largest=1.5)
TWO = LayerLoad(layer="b", expert=2, imbalance=1.75, largest=2.0)


def test_one_number_holds_for_all_layers_up_to_the_expert_degree():
    assert uneven(1.5, "a", 2, ()) == Uneven(1.5, 1.5)
    assert uneven(3.5, "a", 2, ()) == Uneven(2.0, 2.0)


def test_lists_have_a_mean_for_seconds_and_a_largest_for_bytes():
    assert uneven("measured", "a", 2, (TWO, ONE)) == Uneven(1.25, 1.5)
    assert uneven((ONE, TWO), "b", 2, ()) == Uneven(1.75, 2.0)


def test_a_layer_or_a_degree_without_a_figure_is_named():
    with pytest.raises(AutopartError, match="no measured imbalance for expert degree 2"):
        uneven("measured", "a", 2, ())
    with pytest.raises(AutopartError, match="layer 'c' for expert degree 4; it has degrees 2"):
        uneven((ONE, TWO), "c", 4, ())


@pytest.mark.parametrize("changed", [(1.6, 1.5), (1.0, 2.5), (2.5, 2.5)])
def test_no_rank_has_more_than_all_entries_and_no_mean_more_than_the_largest(
    changed: tuple[float, float],
):
    one = LayerLoad(layer="a", expert=2, imbalance=changed[0], largest=changed[1])
    with pytest.raises(ProfileError, match="both are from 1 to 2, the largest last"):
        check_load(one, "file")


def test_assumptions_are_said_in_words():
    assert load_in_words(msgspec.UNSET) == "balanced load"
    assert load_in_words(1.3) == "an imbalance of 1.3"
    assert load_in_words("measured") == "the profile's measured imbalance"
    assert load_in_words((ONE, TWO)) == "a run's measured imbalance, 1.25 to 1.75"


def test_a_run_s_result_with_an_impossible_imbalance_is_refused(tmp_path: Path):
    plan = plan_of_kind("two stages, two replicas, two nodes")[0]
    result = as_predicted(
        plan, expert_loads=(LayerLoad(layer="experts", expert=2, imbalance=2.5, largest=2.5),)
    )
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(result))
    with pytest.raises(ProfileError, match=r"run\.json: layer 'experts' has an imbalance of 2\.5"):
        load_run_result(tmp_path / "run.json")
