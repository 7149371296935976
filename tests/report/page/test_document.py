import base64
import hashlib
import re

import msgspec
import numpy as np
import pytest

from autopart.records.cluster import UNLIMITED
from autopart.records.rank_group import Shard
from autopart.report.page.charts import plotly_source
from autopart.report.page.document import page_html
from autopart.report.page.html_text import Column, json_script, table_html
from autopart.report.page.packed import TICKS
from autopart.report.page.timeline_section import KINDS
from autopart.search.memory_sweep import SweepPoint
from autopart.search.plans_beside import PlansBeside
from autopart.simulator.idle import idle_times
from autopart.simulator.state_actions import exposed_times, state_slices
from autopart.simulator.timeline import rank_slices, simulate_plan
from tests.support.hostile_names import HOSTILE, OBEYED, renamed
from tests.support.measured_runs import as_predicted
from tests.support.pages import Reader, contents_of, words
from tests.support.samples import NAMES, sample_graph, sample_plan
from tests.support.sharded_plans import sample_sharded_plan

BAD = "</script><img src=x onerror=alert(1)>"


def hostile_page() -> str:
    """A page whose names are all hostile: model, layers, GPUs, reasons and files."""
    plan = sample_plan(num_replicas=2)
    names = dict(zip(NAMES, [BAD, *HOSTILE], strict=False))
    stages = tuple(
        msgspec.structs.replace(s, layers=tuple(names[n] for n in s.layers)) for s in plan.stages
    )
    plan = msgspec.structs.replace(
        plan,
        stages=stages,
        origin=msgspec.structs.replace(plan.origin, model=BAD),
        cluster=msgspec.structs.replace(plan.cluster, gpu=BAD),
    )
    run = msgspec.structs.replace(as_predicted(plan), device=BAD, notes=(BAD,))
    beside = PlansBeside(renamed(sample_graph(), names), {BAD: BAD, "uniform": plan}, (), BAD)
    return page_html(contents_of(plan, beside, run)._replace(file=BAD))


def test_names_are_text_everywhere() -> None:
    page = hostile_page()
    reader = Reader(page)
    tags = [tag for tag, _ in reader.tags]
    assert "img" not in tags and tags.count("script") == 4
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert BAD in reader.text
    assert not OBEYED.search(page.replace("\n", ""))
    # No JSON text ends its element either.
    assert all("<" not in text for name, text in reader.scripts.items() if name)


def test_json_in_a_page_says_the_same_and_ends_no_element() -> None:
    value = {"</script>": ["<!--", "&", "\u2028", 1.5, None]}
    script = json_script("data", value)
    assert script.count("<") == 2
    assert Reader(script).data == value


def test_the_policy_allows_the_two_scripts_by_their_hashes_and_nothing_else() -> None:
    reader = Reader(page_html(contents_of(sample_plan())))
    policy = next(a["content"] for t, a in reader.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None and policy.startswith("default-src 'none'")
    for text in (reader.scripts[""], plotly_source()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == 2
    links = [a.get("src") or a.get("href") for _, a in reader.tags]
    assert all(link.startswith("#") for link in links if link)


def test_the_opening_says_step_gap_gpus_and_memory() -> None:
    plan = sample_plan(num_replicas=2)
    text = words(Reader(page_html(contents_of(plan))).text)
    assert "model.py in 2 stages x 2 replicas on 4 of 4 test-gpu" in text
    assert "for 8 samples" in text and "proven lower bound" in text
    assert "the fullest one needs" in text and "of 1.0 GiB" in text


def test_the_timeline_in_the_page_is_the_simulated_one() -> None:
    plan = sample_plan(num_replicas=2, num_microbatches=8)
    reader, timeline = Reader(page_html(contents_of(plan))), simulate_plan(plan)
    about, arrays = reader.data["timeline"], reader.arrays
    scale = about["seconds"] / TICKS
    first = 0
    for (rank, measured), stop in zip(about["lanes"], about["ends"], strict=True):
        assert not measured
        found, at = [], 0
        for item in range(first, stop):
            start = at + int(arrays["gap"][item])
            at = start + int(arrays["length"][item])
            found.append((KINDS[arrays["kind"][item]], start * scale, at * scale, item))
        expected = rank_slices(timeline, rank)
        work = [one for one in found if one[0] in "FBIW"]
        assert len(work) == len(expected)
        for (kind, start, end, item), one in zip(work, expected, strict=True):
            assert (kind, arrays["stage"][item], arrays["microbatch"][item]) == (
                one.action.op,
                one.action.stage,
                one.action.microbatch,
            )
            assert (start, end) == pytest.approx((one.start, one.end), abs=2 * scale)
        idle = idle_times(timeline)[rank]
        for cause, seconds in idle.items():
            there = sum(end - start for kind, start, end, _ in found if kind == f"idle {cause}")
            assert there == pytest.approx(seconds, abs=100 * scale)
        first = stop


def test_the_memory_of_a_page_peaks_as_the_simulator_says() -> None:
    plan = sample_plan(num_replicas=2, num_microbatches=8)
    contents = contents_of(plan)
    reader = Reader(page_html(contents))
    about, arrays = reader.data["memory"], reader.arrays
    first = 0
    for place, (rank, stop) in enumerate(zip(about["ranks"], about["ends"], strict=True)):
        moving = np.zeros(stop - first)
        for kind in ("stash", "workspace", "messages", "gradients"):
            moving += arrays[f"memory_{kind}"][first:stop]
        always = sum(values[place] for values in about["constant"].values())
        peak = contents.curves[rank].peak_bytes
        assert float(moving.max()) + always == peak <= plan.prediction.rank_peak_bytes[rank]
        first = stop
    assert set(about["limits"]) == {1 << 30}


@pytest.mark.parametrize("shard", ["zero2", "zero3"])
def test_a_page_draws_gathers_and_reductions_that_no_compute_hides(shard: Shard) -> None:
    plan = sample_sharded_plan(shard)
    contents, timeline = contents_of(plan), simulate_plan(plan)
    reader = Reader(page_html(contents))
    about, arrays = reader.data["timeline"], reader.arrays
    scale, first = about["seconds"] / TICKS, 0
    for (rank, _), stop in zip(about["lanes"], about["ends"], strict=True):
        kinds = np.array(KINDS)[arrays["kind"][first:stop]]
        lengths = arrays["length"][first:stop] * scale
        exposed = exposed_times(state_slices(plan, timeline, rank))
        for kind, op in (("gather", "UNSHARD"), ("reduction", "REDUCE_GRAD")):
            assert lengths[kinds == kind].sum() == pytest.approx(exposed.total(op), abs=100 * scale)  # type: ignore[arg-type]
            assert exposed.total(op) > 0  # type: ignore[arg-type]
        first = stop
    moving = sum(arrays[name] for name in arrays if re.match("memory_(?!at)", name))
    always = sum(values[0] for values in reader.data["memory"]["constant"].values())
    assert float(moving[: reader.data["memory"]["ends"][0]].max()) + always == pytest.approx(
        contents.curves[0].peak_bytes, rel=1e-6
    )
    assert ("memory_gathered" in arrays) is (shard == "zero3")
    assert "reduction of gradients that compute does not hide" in reader.text
    assert ("whole weights" in reader.text) is (shard == "zero3")


def test_a_run_has_lanes_and_a_section() -> None:
    plan = sample_plan()
    reader = Reader(page_html(contents_of(plan, run=as_predicted(plan))))
    assert reader.data["timeline"]["lanes"] == [[0, False], [0, True], [1, False], [1, True]]
    assert "Predicted beside measured" in reader.text
    assert set(reader.data["charts"]) == {"splits", "heat", "peak", "measured"}


def test_other_plans_have_charts_and_tables() -> None:
    plan = sample_plan()
    sweep = (SweepPoint(UNLIMITED >> 20, plan), SweepPoint(1 << 20, None))
    beside = PlansBeside(
        sample_graph(), {"uniform": plan, "parameters": "it does not fit"}, sweep, ""
    )
    reader = Reader(page_html(contents_of(plan, beside)))
    assert {"splits", "sweep"} <= set(reader.data["charts"])
    for said in ("equal layer counts", "it does not fit", "nothing fits", "lower bound"):
        assert said in reader.text


def test_every_figure_has_a_table_and_every_chart_a_label() -> None:
    plan = sample_plan()
    reader = Reader(page_html(contents_of(plan, run=as_predicted(plan))))
    sections = [a["id"] for tag, a in reader.tags if tag == "section"]
    tables = [a["id"] for tag, a in reader.tags if tag == "details"]
    assert [f"{name}-table" for name in sections if name != "notes"] == tables
    charts = [a for _, a in reader.tags if a.get("class") == "chart"]
    assert len(charts) == 5 and all(a["role"] == "img" and a["aria-label"] for a in charts)
    headings = [tag for tag, _ in reader.tags if re.fullmatch(r"h\d", tag)]
    assert headings == ["h1"] + ["h2"] * len(sections)


def test_a_table_names_its_rows_and_columns() -> None:
    table = table_html("Two < three", [Column("name", False), Column("count")], [("a<b", 3)])
    assert "<caption>Two &lt; three</caption>" in table
    assert '<th scope="row">a&lt;b</th><td class=n>3</td>' in table


def test_equal_contents_give_equal_pages() -> None:
    plan = sample_plan()
    assert page_html(contents_of(plan)) == page_html(contents_of(plan))
