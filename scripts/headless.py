"""Pages in a headless Chromium of the machine, through playwright: Debian's package is enough."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# A page is complete when its script has drawn the table, and the browser has painted a frame after that.
_PAINTED = "() => new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser, without a network and without a window."""
    assert CHROMIUM, "there is no Chromium; on Debian: apt-get install chromium"
    # As root it has no sandbox.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def open_page(path: Path, times: int = 5) -> dict[str, Any]:
    """Return how long it takes to open a page and to filter its table, in milliseconds: the median."""
    opened, filtered = [], []
    with chromium() as browser:
        for _ in range(times):
            page = browser.new_page()
            page.goto(path.as_uri())
            opened.append(page.evaluate(_PAINTED))
            begun = page.evaluate("performance.now()")
            page.fill("#filter-id", "1")
            filtered.append(page.evaluate(_PAINTED) - begun)
            page.close()
    return {"opened, ms": round(median(opened)), "filtered, ms": round(median(filtered))}
