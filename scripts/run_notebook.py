"""Run docs/notebook.ipynb from top to bottom, and write what its cells show into it.

.venv/bin/python scripts/run_notebook.py
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


def executed(folder: Path) -> NotebookNode:
    """The notebook after a run in `folder`; raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    for output in (one for cell in notebook.cells for one in cell.get("outputs", ())):
        if "text/html" in output.get("data", {}):
            output["data"].pop("text/plain")  # the whole record, which nobody reads
    # Times of the run are no part of what the notebook says.
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("language_info", None)
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(NOTEBOOK.parent), NOTEBOOK)
