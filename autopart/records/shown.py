"""How a notebook shows a record: `_repr_html_`, which asks the room that draws.

The room is looked up by its name when a notebook asks. So records import nothing of it, and it costs
nothing where no notebook is.
"""

import importlib


def html_of(value: object) -> str:
    """The HTML of a plan, a profile or a timeline (`autopart/report/notebook.py`)."""
    return importlib.import_module("autopart.report.notebook").shown_in_notebook(value)
