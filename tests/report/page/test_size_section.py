import msgspec

from autopart.report.page.document import page_html
from autopart.report.page.size_section import size_chart, size_figure
from tests.support.pages import Reader, contents_of, words
from tests.support.samples import sample_plan, sample_sizing

BAD = "</script><img src=x onerror=alert(1)>"


def test_each_plan_of_the_front_is_a_point() -> None:
    sizing = sample_sizing()
    (points,) = size_chart(sizing)["data"]
    assert points["text"] == [str(own.gpus) for own in sizing.front]
    assert points["y"] == [own.cost for own in sizing.front]
    assert points["x"] == [own.training_seconds / 86400 for own in sizing.front]


def test_the_limits_are_lines() -> None:
    layout = size_chart(sample_sizing())["layout"]
    assert [note["text"] for note in layout["annotations"]] == ["date", "budget"]


def test_the_page_has_the_front_and_the_proofs() -> None:
    sizing = sample_sizing()
    page = Reader(page_html(contents_of(sample_plan())._replace(sizing=sizing)))
    text = words(page.text)
    assert "How many GPUs" in text and "What is proven" in text
    assert "up to 1 GPU" in text or "1 GPU cannot" in text or "and no fewer" in text
    assert "size" in page.data["charts"]


def test_names_are_text() -> None:
    sizing = sample_sizing()
    front = tuple(msgspec.structs.replace(own, gpu=BAD) for own in sizing.front)
    kinds = tuple(msgspec.structs.replace(own, gpu=BAD) for own in sizing.kinds)
    figure = size_figure(msgspec.structs.replace(sizing, front=front, kinds=kinds, model=BAD))
    assert "<img" not in figure.drawing + figure.table
