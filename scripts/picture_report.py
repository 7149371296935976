"""Pictures of a page that `autopart report` wrote: each section and the whole page, in two widths and both themes.

    .venv/bin/python scripts/picture_report.py plan.html -o pictures
    .venv/bin/python scripts/picture_report.py plan.html --time
    .venv/bin/python scripts/picture_report.py plan.html --docs docs/pictures/report.png

`--time` opens the page several times. It prints the seconds from the start of the navigation until the timeline and
all charts are drawn, and the processor seconds of the browser's main thread, which other programs do not lengthen.
"""

import argparse
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (1280, 390)
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
OPENINGS = 3
WAIT = 300_000
"""Milliseconds that a busy machine may take."""


def browser_path() -> str | None:
    """The system's Chromium; None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    path = browser_path()
    if path is None:
        raise SystemExit("error: no Chromium found; on Debian: apt-get install chromium")
    # Root has no sandbox, as in a container.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


def open_page(opened: Browser, path: Path, width: int, theme: Theme, height: int = 900) -> Page:
    """The page, once its figures are drawn."""
    page = opened.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
    page.set_default_timeout(WAIT)
    page.goto(path.resolve().as_uri())
    page.wait_for_selector("html[data-charts=drawn]", state="attached", timeout=WAIT)
    return page


def take_pictures(opened: Browser, path: Path, folder: Path) -> None:
    """A picture of each section and of the whole page, in each width and theme."""
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        for theme in THEMES:
            page = open_page(opened, path, width, theme)
            stem = f"{path.stem}-{width}-{theme}"
            page.screenshot(path=folder / f"{stem}.png", full_page=True)
            page.locator("header").screenshot(path=folder / f"{stem}-header.png")
            for section in page.locator("section").all():
                section.screenshot(path=folder / f"{stem}-{section.get_attribute('id')}.png")
            page.close()


def measure_openings(opened: Browser, path: Path) -> None:
    """Print the size of the page, and how long it takes to open."""
    print(f"size {path.stat().st_size / 1e6:.2f} MB")
    marks: dict[str, list[float]] = {"timeline": [], "charts": [], "processor": []}
    for _ in range(OPENINGS):
        page = opened.new_page(viewport={"width": 1280, "height": 900})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.set_default_timeout(WAIT)
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-charts=drawn]", state="attached", timeout=WAIT)
        for one in page.evaluate(
            "performance.getEntriesByType('mark').map((m) => [m.name, m.startTime])"
        ):
            marks[one[0]].append(one[1] / 1e3)
        found = session.send("Performance.getMetrics")["metrics"]
        marks["processor"].append(next(m["value"] for m in found if m["name"] == "TaskDuration"))
        page.close()
    for name, seconds in marks.items():
        print(
            f"{name}: median {statistics.median(seconds):.2f} s, least {min(seconds):.2f} s of {OPENINGS} openings"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Pictures of a page, or the time that it takes to open."
    )
    parser.add_argument("page", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("pictures"))
    parser.add_argument("--time", action="store_true")
    parser.add_argument(
        "--docs", type=Path, help="one picture of the page's top, for the documents"
    )
    asked = parser.parse_args()
    with browser() as opened:
        if asked.time:
            measure_openings(opened, asked.page)
        elif asked.docs is not None:
            page = open_page(opened, asked.page, 1100, "light", height=760)
            page.screenshot(path=asked.docs)
        else:
            take_pictures(opened, asked.page, asked.output)


if __name__ == "__main__":
    main()
