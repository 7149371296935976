"""Pages in a real browser: drawn, without a complaint and without the network, by mouse, keyboard and width."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autopart.records.cluster import UNLIMITED
from autopart.report.page.document import page_html
from autopart.search.memory_sweep import SweepPoint
from autopart.search.plans_beside import PlansBeside
from tests.report.page.test_document import BAD, hostile_page
from tests.support.browser import Visit, opened_browser
from tests.support.measured_runs import as_predicted
from tests.support.pages import contents_of
from tests.support.samples import sample_graph, sample_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHARTS = {"splits", "sweep", "heat", "memory", "peak", "measured"}
CANVAS = "#timeline-canvas"


PIXELS = """() => {
  const from = document.querySelector('#timeline-canvas'), into = document.createElement('canvas');
  [into.width, into.height] = [from.width, 200];
  const pen = into.getContext('2d', { willReadFrequently: true });
  pen.drawImage(from, 0, 0);
  return [...pen.getImageData(0, 0, into.width, into.height).data];
}"""
"""The colours of the timeline's upper part, four numbers for each pixel."""


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    yield from opened_browser()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section."""
    plan = sample_plan(num_replicas=2, num_microbatches=16)
    sweep = (
        SweepPoint(UNLIMITED >> 20, plan),
        SweepPoint(1 << 28, plan),
        SweepPoint(1 << 20, None),
    )
    beside = PlansBeside(sample_graph(), {"uniform": plan, "parameters": "no"}, sweep, "")
    path = tmp_path_factory.mktemp("page") / "plan.html"
    path.write_text(page_html(contents_of(plan, beside, as_predicted(plan))), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def visit(opened: Any, file: Path) -> Visit:
    """One visit that the tests share: opening a page takes seconds. Each test leaves the whole step in view."""
    return Visit(opened, file)


def view(visit: Visit) -> tuple[float, float]:
    """The shown part of the step, once the canvas is drawn again."""
    visit.page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    canvas = visit.page.locator(CANVAS)
    return float(canvas.get_attribute("data-low")), float(canvas.get_attribute("data-high"))


def said(visit: Visit) -> str:
    return visit.page.locator("#timeline-said").inner_text()


def test_every_figure_is_drawn_without_complaint_and_without_the_network(visit: Visit) -> None:
    page = visit.page
    charts = {
        one.get_attribute("id").removeprefix("chart-") for one in page.locator(".chart").all()
    }
    assert charts == CHARTS
    for name in CHARTS:
        assert page.locator(f"#chart-{name} svg.main-svg").count() >= 1, name
    # Bars, cells and lines are there, and not only axes.
    for name, mark in (("splits", ".bars path"), ("peak", ".bars path"), ("measured", ".bars path"),
                       ("sweep", ".lines path"), ("memory", ".scatterlayer path"), ("heat", ".heatmaplayer image")):  # fmt: skip
        assert page.locator(f"#chart-{name} {mark}").count() >= 1, name
    # The canvas has many colours: work, idle time, text.
    pixels = page.evaluate(PIXELS)
    colours = {tuple(pixels[at : at + 3]) for at in range(0, len(pixels), 4)}
    assert len(colours) > 8
    assert page.locator(".stage .layer").count() == 10
    assert page.locator("svg.nodes .gpu").count() == 4
    assert visit.complaints == [] and visit.requests == []


def test_the_mouse_names_actions_and_zooms(visit: Visit) -> None:
    box = visit.page.locator(CANVAS).bounding_box()
    # The first action of the first rank begins the step.
    visit.page.mouse.move(box["x"] + 74, box["y"] + 40)
    assert said(visit).startswith("Rank 0: 0F0, forward, microbatch 0 on stage 0;")
    assert view(visit) == (0.0, 1.0)
    visit.page.get_by_role("button", name="Zoom in").click()
    low, high = view(visit)
    assert high - low == pytest.approx(0.5, abs=0.01)
    visit.page.keyboard.down("Control")
    visit.page.mouse.move(box["x"] + 400, box["y"] + 60)
    visit.page.mouse.wheel(0, -300)
    visit.page.keyboard.up("Control")
    narrower = view(visit)
    assert narrower[1] - narrower[0] < high - low
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 300, box["y"] + 60, steps=3)
    visit.page.mouse.up()
    moved = view(visit)
    assert moved[0] > narrower[0]
    assert moved[1] - moved[0] == pytest.approx(narrower[1] - narrower[0])
    visit.page.get_by_role("button", name="Whole step").click()
    assert view(visit) == (0.0, 1.0)
    assert visit.complaints == []


def test_charts_answer_the_mouse(visit: Visit) -> None:
    bar = visit.page.locator("#chart-splits .bars path").first
    bar.scroll_into_view_if_needed()
    told = ""
    for part in range(3, 33):
        # The page may still move while its last charts are drawn, so the bar is looked for again.
        box = bar.bounding_box()
        visit.page.mouse.move(box["x"] + box["width"] / part, box["y"] + box["height"] / 2, steps=3)
        visit.page.wait_for_selector("#chart-splits .hoverlayer .hovertext", timeout=20_000)
        told = visit.page.locator("#chart-splits .hoverlayer").text_content()
        if "this plan" in told:
            break
        visit.page.wait_for_timeout(500)
    assert told.startswith("this plan: ") and told.endswith("s")
    before = visit.page.locator("#chart-memory .scatterlayer").inner_html()
    visit.page.locator("#memory-rank").select_option(index=3)
    visit.page.wait_for_timeout(300)
    assert visit.page.locator("#chart-memory .scatterlayer").inner_html() != before
    assert visit.complaints == []


def test_the_keyboard_reaches_and_reads_everything(visit: Visit) -> None:
    page = visit.page
    page.evaluate("() => document.activeElement.blur()")
    page.locator("a.skip").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Timeline of a step"
    page.locator(CANVAS).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    assert said(visit).startswith("Rank 0: 0F0")
    page.keyboard.press("ArrowRight")
    assert "microbatch 2 on stage 0" in said(visit)
    page.keyboard.press("ArrowDown")
    assert said(visit).startswith("Rank 0, measured: 0F2")
    page.keyboard.press("ArrowDown")
    assert said(visit).startswith("Rank 1: 0F3")
    page.keyboard.press("End")
    assert "from" in said(visit)
    page.keyboard.press("+")
    low, high = view(visit)
    assert high - low == pytest.approx(0.5, abs=0.01)
    page.keyboard.press("0")
    assert view(visit) == (0.0, 1.0)
    # What can be focused has a name, and a table opens by the keyboard.
    for one in page.locator("button, select, canvas, summary, a, [tabindex='0']").all():
        label = one.get_attribute("aria-label") or one.inner_text()
        named = one.evaluate("(element) => Boolean(element.labels && element.labels.length)")
        assert label.strip() or named
    page.locator("#splits-table summary").focus()
    page.keyboard.press("Enter")
    assert page.locator("#splits-table table").is_visible()
    assert visit.complaints == []


def test_a_phones_width_needs_no_scrolling_sideways(opened: Any, file: Path) -> None:
    visit = Visit(opened, file, width=390, theme="dark")
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    visit.page.evaluate(
        "() => document.querySelectorAll('details').forEach((one) => { one.open = true; })"
    )
    assert visit.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert visit.page.locator(CANVAS).bounding_box()["width"] <= 390
    assert visit.complaints == []


CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => { const [r, g, b] = rgb.slice(0, 3).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest('svg, script, style, .skip') || !element.getClientRects().length) continue;
    let back = element, ground = [0, 0, 0, 0];
    while (back) { ground = numbers(getComputedStyle(back).backgroundColor); if (ground[3] !== 0) break; back = back.parentElement; }
    const a = light(numbers(getComputedStyle(element).color)), b = light(ground);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.className + ' ' + element.textContent.slice(0, 40)]);
  }
  return found.sort((one, other) => one[0] - other[0]);
}"""


INK = {"light": "rgb(27, 31, 39)", "dark": "rgb(231, 234, 240)"}
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_texts_stand_out_in_both_themes_and_charts_follow_them(visit: Visit, theme: str) -> None:
    visit.page.emulate_media(color_scheme=theme)
    ground = visit.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert ground == PAPER[theme]
    found = visit.page.evaluate(CONTRAST)
    assert len(found) > 50
    assert found[0][0] >= 4.5, found[:5]
    for name in CHARTS:
        text = visit.page.locator(f"#chart-{name} .xtick text").first
        for _ in range(100):
            if text.evaluate("(one) => getComputedStyle(one).fill") == INK[theme]:
                break
            visit.page.wait_for_timeout(100)
        assert text.evaluate("(one) => getComputedStyle(one).fill") == INK[theme], name
    assert f"rgb({', '.join(map(str, visit.page.evaluate(PIXELS)[:3]))})" == PAPER[theme]
    assert visit.complaints == []


def test_a_printed_page_has_every_section(visit: Visit) -> None:
    printed = visit.page.pdf(format="A4", print_background=True)
    assert (
        printed.startswith(b"%PDF")
        and printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 12
    )
    assert visit.complaints == []


def test_hostile_names_are_shown_and_never_obeyed(opened: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_text(hostile_page(), encoding="utf-8")
    visit = Visit(opened, path)
    assert visit.page.locator("img").count() == 0
    assert BAD in visit.page.locator("h1").inner_text()
    assert BAD in visit.page.locator(".layer").first.get_attribute("title")
    assert visit.complaints == [] and visit.requests == []
