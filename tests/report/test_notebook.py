import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import nbformat
import pytest

import autopart
from autopart.report.notebook import COLUMNS, WIDTH
from autopart.simulator.timeline import simulate_plan
from tests.support.hostile_names import OBEYED, with_hostile_names
from tests.support.samples import sample_plan, sample_profile
from tests.support.scripts import load_script

BAD = "</table><img src=x onerror=alert(1)>"


def shown(value: object) -> ElementTree.Element:
    """The HTML of a value, which is XML too."""
    return ElementTree.fromstring(value._repr_html_().replace("<br>", "<br/>"))  # type: ignore[attr-defined]


def test_a_plan_shows_its_stages_and_every_action_of_its_step() -> None:
    plan = sample_plan(num_replicas=2)
    page = shown(plan)
    text = "".join(page.itertext())
    assert "model.py in 2 stages x 2 replicas on 4 of 4 test-gpu" in text
    assert len(page.findall(".//tbody/tr")) == 2
    names = [title.text.partition(":")[0] for title in page.iter("title")]
    for order in simulate_plan(plan).actions.schedule:
        assert {str(action) for action in order} <= set(names)


def test_a_timeline_draws_actions_where_they_are() -> None:
    timeline = autopart.simulate(sample_plan())
    page = shown(timeline)
    scale = COLUMNS / timeline.makespan
    found = {}
    for rectangle in page.iter("rect"):
        title = rectangle.find("title")
        if title is not None:
            found[title.text.partition(":")[0]] = float(rectangle.get("x")) - (WIDTH - COLUMNS)
    for rank in range(2):
        for one in timeline.slices[rank]:
            assert found[str(one.action)] == pytest.approx(one.start * scale, abs=0.06)
    assert f"a step of {timeline.makespan * 1e3:.0f} ms" in "".join(page.itertext())


def test_a_profile_shows_its_layers_and_counts_those_that_are_left_out() -> None:
    page = shown(sample_profile())
    assert len(page.findall(".//tbody/tr")) == 10
    graph = sample_profile().graph
    many = tuple(msgspec.structs.replace(graph.layers[1], name=f"h.{place}") for place in range(40))
    page = shown(sample_profile(graph=msgspec.structs.replace(graph, layers=many)))
    assert "… and 24 more" in "".join(page.itertext())


def test_names_are_text() -> None:
    for first in (0, 9):
        profile = with_hostile_names(sample_profile(), first)
        source = msgspec.structs.replace(profile.source, model=BAD)
        html = msgspec.structs.replace(profile, source=source)._repr_html_()
        assert "<img" not in html and not OBEYED.search(html)
        assert BAD in "".join(shown(msgspec.structs.replace(profile, source=source)).itertext())


def test_a_long_step_is_drawn_with_at_most_two_parts_for_each_column() -> None:
    plan = sample_plan(num_replicas=1, num_microbatches=1000)
    html = simulate_plan(plan)._repr_html_()
    assert html.count("<rect") <= 2 * (2 * COLUMNS + 1)
    assert len(html) < 400_000


@pytest.mark.slow
def test_showing_a_plan_imports_neither_plotly_nor_torch() -> None:
    program = (
        "import sys\nfrom tests.support.samples import sample_plan\n"
        "assert 'autopart.report.notebook' not in sys.modules\n"
        "assert '<svg' in sample_plan()._repr_html_()\n"
        "sys.exit(bool({'plotly', 'torch', 'IPython'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_of_the_documents_runs_and_shows_what_it_holds(tmp_path: Path) -> None:
    script = load_script("run_notebook")
    stored = nbformat.read(script.NOTEBOOK, as_version=4)
    run = script.executed(tmp_path)
    assert [_outputs(cell) for cell in run.cells] == [_outputs(cell) for cell in stored.cells]
    pages = [html for cell in run.cells for html in _outputs(cell) if html.startswith("<div>")]
    assert len(pages) == 3 and sum("<svg" in html for html in pages) == 2


def _outputs(cell: nbformat.NotebookNode) -> list[str]:
    """What a cell shows: HTML, or else text."""
    found = []
    for output in cell.get("outputs", ()):
        data = output.get("data", {"text/plain": output.get("text", "")})
        found.append(data.get("text/html", data.get("text/plain")))
    return found
