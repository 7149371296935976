"""Charts for plotly: traces and axes in Python, colours as names that the page's style sheet fills in."""

import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from autopart.errors import AutopartError

ADVICE = "the page needs plotly, which is not installed; install it: pip install 'autopart[report]'"

Chart = dict[str, Any]
"""A figure as JSON has it: `data` and `layout`."""


def check_plotly() -> None:
    """Raise AutopartError where plotly is missing."""
    try:
        importlib.import_module("plotly")
    except ImportError:
        raise AutopartError(ADVICE) from None


def plotly_source() -> str:
    """The program of plotly.js that the Python package has. It draws without any network."""
    return (
        importlib.resources.files("plotly")
        .joinpath("package_data", "plotly.min.js")
        .read_text("utf-8")
    )


def made_chart(traces: list[Any], layout: Mapping[str, Any]) -> Chart:
    """A figure that plotly has checked."""
    from plotly import graph_objects, io

    text: str | None = io.to_json(
        graph_objects.Figure(data=traces, layout=dict(layout)), engine="json"
    )
    found: Chart = json.loads(text or "{}")
    # The page has its own colours and fonts; plotly's template would only make it larger.
    found["layout"].pop("template", None)
    return found


def bar(name: str, colour: str, hover: str, **values: Any) -> Any:
    """Bars of one kind; `colour` is a variable of the style sheet."""
    from plotly import graph_objects

    return graph_objects.Bar(
        name=name,
        marker={"color": f"var(--{colour})", "line": {"color": "var(--paper)", "width": 1}},
        hovertemplate=f"{hover}<extra></extra>",
        insidetextfont={"color": "var(--on-work)"},
        outsidetextfont={"color": "var(--ink)"},
        **values,
    )


def line(name: str, colour: str, hover: str, **values: Any) -> Any:
    """A line or points; `colour` is a variable of the style sheet."""
    from plotly import graph_objects

    return graph_objects.Scatter(
        name=name,
        line={"color": f"var(--{colour})", "width": 2, "shape": "hv"},
        marker={"color": f"var(--{colour})", "size": 8},
        hovertemplate=f"{hover}<extra></extra>",
        **values,
    )


def limit_line(axis: str, value: float, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A dashed line at a value of the axis `x` or `y`, and its text."""
    other = "y" if axis == "x" else "x"
    shape = {
        "type": "line", f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1,
        f"{other}ref": "paper", "line": {"color": "var(--ink)", "width": 1.5, "dash": "dash"},
    }  # fmt: skip
    note = {
        axis: value, other: 1, f"{other}ref": "paper", "text": text, "showarrow": False,
        "xanchor": "right", "yanchor": "bottom",
    }  # fmt: skip
    return shape, note
