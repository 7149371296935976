"""The system's Chromium for tests: skipped where it is missing, but never in CI."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import load_script

REASON = "no Chromium: as root, `bash scripts/browser` installs it"


def opened_browser() -> Iterator[Any]:
    """A headless browser, closed behind the tests."""
    script = load_script("picture_report")
    if script.browser_path() is None:
        if os.environ.get("CI") == "true":
            pytest.fail(REASON)
        pytest.skip(REASON)
    with script.browser() as opened:
        yield opened


class Visit:
    """One visit to a page in a file, with everything that the browser complains of or asks for."""

    def __init__(self, opened: Any, path: Path, *, width: int = 1280, theme: str = "light") -> None:
        self.complaints: list[str] = []
        """Messages of the console and errors of scripts."""
        self.requests: list[str] = []
        """Addresses that the page asked for, besides itself and its own contents."""
        self.page = opened.new_page(viewport={"width": width, "height": 800}, color_scheme=theme)
        self.page.set_default_timeout(120_000)  # a busy machine must not end a test
        self.page.on("console", self._told)
        self.page.on("pageerror", self._failed)
        self.address = path.resolve().as_uri()
        self.page.on("request", self._asked)
        self.page.goto(self.address)
        # A selector alone: the page's policy forbids programs in texts.
        self.page.wait_for_selector("html[data-charts=drawn]", state="attached", timeout=120_000)

    def _told(self, message: Any) -> None:
        self.complaints.append(message.text)

    def _failed(self, error: Any) -> None:
        self.complaints.append(str(error))

    def _asked(self, request: Any) -> None:
        if request.url != self.address and not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)
