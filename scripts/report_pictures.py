"""
Make the pictures of the report for the documents, of a run of the example.

They need a Chromium and playwright, and MultiQC for its picture.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from headless import chromium
from measured import installed
from playwright.sync_api import Browser, Page

from virnuc_async.cli.main import main as command

ROOT = Path(__file__).parents[1]
EXAMPLE = "docs/examples/metagenome.fa.gz"
MOST_BYTES = 200_000  # of a picture


def open_page(browser: Browser, path: Path, width: int, scheme: str = "light", height: int = 900) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(path.resolve().as_uri())
    page.wait_for_timeout(300)
    return page


def save(page: Page, path: Path, element: str | None = None) -> None:
    """Save what is in the window, or an *element* of the page."""
    content = page.locator(element).first.screenshot() if element else page.screenshot()
    assert len(content) < MOST_BYTES, f"{path.name} has {len(content):,} bytes"
    path.write_bytes(content)


def report_pictures(browser: Browser, report: Path, output: Path) -> None:
    for scheme in ("light", "dark"):
        for width in (1400, 400):
            page = open_page(browser, report, width, scheme)
            save(page, output / f"report-{scheme}-{width}.png")
            page.close()
    page = open_page(browser, report, 1200)
    save(page, output / "report-distributions.png", "section[aria-labelledby=distributions]")
    page.get_by_role("button", name="length").click()
    page.select_option("#filter-verdict", "virus")
    page.locator("#sequences").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('sequences').scrollIntoView()")
    save(page, output / "report-sequences.png")
    page.evaluate("document.getElementById('tracks').scrollIntoView()")
    save(page, output / "report-tracks.png")
    page.emulate_media(media="print")
    page.evaluate("window.scrollTo(0, 0)")
    save(page, output / "report-print.png")
    page.close()


def multiqc_picture(browser: Browser, out: Path, scratch: Path, output: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "multiqc",
            str(out),
            "--outdir",
            str(scratch),
            "--no-version-check",
            "--quiet",
        ],
        check=True,
    )
    page = open_page(browser, scratch / "multiqc_report.html", 1200, height=1100)
    page.wait_for_timeout(2000)
    save(page, output / "multiqc.png")
    page.close()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pictures")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        out = Path(scratch, "out")
        command(["predict", EXAMPLE, str(out), "--devices", "cpu", "--quiet"])
        with chromium() as browser:
            report_pictures(browser, out / "report.html", options.output)
            if installed("multiqc"):
                multiqc_picture(browser, out, Path(scratch, "multiqc"), options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
