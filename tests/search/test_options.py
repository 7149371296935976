import dataclasses
import inspect
from typing import get_type_hints

import pytest

from autopart.search.demands import make_problem
from autopart.search.options import SolveKeywords, SolveOptions
from autopart.search.planner import solve, solve_with_options
from tests.support.samples import sample_cluster, sample_profile


def test_the_keywords_of_solve_are_the_fields_of_solve_options() -> None:
    assert get_type_hints(SolveKeywords) == get_type_hints(SolveOptions)


def test_every_option_has_a_docstring_and_a_default() -> None:
    source = inspect.getsource(SolveOptions)
    for field in dataclasses.fields(SolveOptions):
        assert field.default is not dataclasses.MISSING, field.name
        _, _, below = source.partition(f"    {field.name}: ")
        assert below.partition("\n")[2].lstrip().startswith('"""'), field.name


def test_keywords_and_options_give_the_same_plan() -> None:
    asked = {"num_stages": 2, "global_batch": 16, "pins": {"h.2": 1}}
    by_keywords = solve(sample_profile(), sample_cluster(1, 4), **asked)
    by_options = solve_with_options(sample_profile(), sample_cluster(1, 4), SolveOptions(**asked))
    assert by_keywords.stages == by_options.stages
    assert by_keywords.demands == by_options.demands
    assert by_keywords.prediction == by_options.prediction


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        solve(sample_profile(), sample_cluster(1, 4), colour="red")  # type: ignore[call-arg]


def test_a_problem_has_its_microbatches_from_the_call_and_the_rest_from_the_options() -> None:
    options = SolveOptions(global_batch=64, schedule="1f1b", zero1=True)
    problem = make_problem(sample_profile(), sample_cluster(1, 4), 5, options)
    assert problem.num_microbatches == 5
    assert problem.demands.schedules == ("1f1b",)
    assert problem.training.zero1
