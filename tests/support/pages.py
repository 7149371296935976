"""Pages of reports for tests, and what a reader finds in them."""

import base64
import gzip
import html.parser
import json
import re
from typing import Any

import numpy as np

from autopart.cost.crossings import crossings_of
from autopart.fidelity.compare import judge
from autopart.records.plan import Plan, stage_ranks
from autopart.records.run_result import RunResult
from autopart.report.page.contents import Measured, PageContents
from autopart.search.plans_beside import PlansBeside
from autopart.simulator.idle import idle_pieces
from autopart.simulator.memory import memory_over_time
from autopart.simulator.timeline import simulate_plan


def contents_of(
    plan: Plan, beside: PlansBeside | None = None, run: RunResult | None = None
) -> PageContents:
    """What a page shows of a plan."""
    timeline = simulate_plan(plan)
    return PageContents(
        plan=plan,
        file="plan.json",
        timeline=timeline,
        idle=idle_pieces(timeline),
        curves=memory_over_time(timeline, stage_ranks(plan), plan.prediction.stages),
        crossings=crossings_of(plan),
        beside=beside,
        measured=None if run is None else Measured(run, judge(plan, run)),
    )


class Reader(html.parser.HTMLParser):
    """The elements of a page, and its texts outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: dict[str, str] = {}
        """The content of each script by its id; that of the program is empty."""
        self._inside = ""
        self._script = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside, self._script = tag, dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        elif not self._inside:
            self.text += data

    @property
    def data(self) -> Any:
        """The JSON document of the page."""
        return json.loads(self.scripts["data"])

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays of the page, by name."""
        block = gzip.decompress(base64.b64decode(self.scripts["arrays"]))
        return {
            name: np.frombuffer(block, np.dtype(kind).newbyteorder("<"), length, at)
            for name, (kind, at, length) in self.data["arrays"].items()
        }


def words(text: str) -> str:
    """`text` with single spaces."""
    return re.sub(r"\s+", " ", text)
