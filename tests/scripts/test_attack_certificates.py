"""The attack on certificates, with a few problems and with a planner that lies."""

import json
from typing import Any

import pytest

from autopart.errors import NoPlanFound
from autopart.search.planner import solve
from tests.support.scripts import load_script
from tests.support.witness import claims
from tests.support.witness.cases import draw_case
from tests.support.witness.claims import Verdict, judge


@pytest.fixture
def script():
    return load_script("attack_certificates")


@pytest.mark.slow
def test_a_few_problems_of_one_kind_break_no_claim(script, capsys):
    assert script.attack("policies", 0, 4, None) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert row["problems"] == 4 == row.get("solved", 0) + row.get("infeasible", 0)


def test_a_broken_claim_is_printed_and_its_problem_is_written(
    script, capsys, tmp_path, monkeypatch
):
    lie = Verdict(("a lie",), None, None, refused=False)
    monkeypatch.setattr(script, "judge", lambda case, any_order: lie)
    assert script.attack("nodes", 7, 8, tmp_path) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["broken"] == "a lie"
    written = json.loads((tmp_path / "nodes-7.json").read_text())
    assert written["seed"] == 7 and written["problems"][0]["num_microbatches"] >= 1


@pytest.mark.parametrize(("enough", "broken"), [(200.0, 0), (2000.0, 1)])
def test_a_solve_that_is_out_of_time_has_ten_times_the_limit(monkeypatch, enough, broken):
    limits: list[float] = []

    def starved(*given: Any, time_limit: float, **words: Any):
        limits.append(time_limit)
        if time_limit < enough:
            raise NoPlanFound("out of time")
        return solve(*given, time_limit=time_limit, **words)

    monkeypatch.setattr(claims, "solve", starved)
    verdict = judge(draw_case("one node", 2))
    assert limits == [20.0, 200.0]
    assert len(verdict.broken) == broken and (verdict.plan is None) == broken
