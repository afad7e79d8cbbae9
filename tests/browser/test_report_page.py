"""The report as a browser shows it: quiet, alone, usable, and not to be misled by names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from running import OPEN, SHUT, predict, some_reads
from support import fasta

pytestmark = [pytest.mark.browser, pytest.mark.timeout(120)]
sync_api = pytest.importorskip("playwright.sync_api")
headless = pytest.importorskip("headless")
if not headless.CHROMIUM:
    pytest.skip("there is no Chromium here", allow_module_level=True)

HOSTILE = [
    "<img/src=x/onerror=document.title='owned'>",
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    "javascript:document.title='owned'",
    '"onfocus="document.title=\'owned\'"autofocus="',
    "\u202eevil\u2028line",
    "x" * 5000,
]


class Opened(NamedTuple):
    """A page, and what it has said and asked for."""

    page: Any
    messages: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two files, with hostile ids, many short records and one that is not DNA."""
    directory = tmp_path_factory.mktemp("browser")
    reads = some_reads(60, 450)
    records = [(name, OPEN * 60) for name in HOSTILE] + list(reads.items()) + [("long", OPEN * 4000)]
    (directory / "a.fa").write_bytes(b">\xff\xfeid\n" + OPEN.encode() * 40 + b"\n" + fasta(records).encode())
    (directory / "b.fa").write_text(fasta([("no_orf", SHUT * 5), ("from_b", OPEN * 50)]))
    (directory / "<b>c.fa").write_text(">x\n!\n")
    names = [directory / name for name in ("a.fa", "b.fa", "<b>c.fa")]
    assert predict(*names, directory / "out").code == 2
    return directory / "out"


@pytest.fixture(scope="module")
def chromium(out: Path) -> Iterator[Any]:
    """Start the browser when *out* is there: within the event loop of playwright no other one can run."""
    with headless.chromium() as started:
        yield started


@pytest.fixture
def opened(chromium: Any, out: Path) -> Iterator[Opened]:
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    messages, requests = list[str](), list[str]()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((out / "report.html").as_uri())
    yield Opened(page, messages, requests)
    page.close()


def column(page: Any, number: int) -> list[str]:
    """Return the texts of a column of the table that is shown."""
    return [cell.inner_text() for cell in page.query_selector_all(f"#contig-rows td:nth-child({number})")]


def test_it_says_and_asks_for_nothing(opened: Opened, out: Path) -> None:
    assert opened.messages == []
    assert opened.requests == [(out / "report.html").as_uri()]


def test_names_are_inert(opened: Opened) -> None:
    page = opened.page
    page.fill("#filter-length", "1")
    for _ in range(4):
        assert "owned" not in page.title()
        assert not page.query_selector_all("#contig-rows td *")
        if page.is_disabled("#next"):
            break
        page.click("#next")
    for name in HOSTILE[:5]:
        page.fill("#filter-id", name)
        assert column(page, 1) == [name]
    page.fill("#filter-id", "evil")
    assert column(page, 1) == [r"\u202eevil\u2028line"]
    page.fill("#filter-id", "xxxx")
    assert column(page, 1) == ["x" * 100 + "…"]
    page.fill("#filter-id", r"\xff")
    assert column(page, 1) == [r"\xff\xfeid"]
    assert "<b>c.fa" in page.inner_text("#main")
    assert opened.messages == []


def test_a_script_that_is_not_its_own_does_not_run(opened: Opened) -> None:
    opened.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'owned'";
            document.body.append(script);
            document.body.insertAdjacentHTML("beforeend", "<img src='data:,x' onerror='document.title=1'>");
        }"""
    )
    assert "predicted to be viral" in opened.page.title()
    assert any("Content Security Policy" in text for text in opened.messages)


def test_rows_are_sorted(opened: Opened) -> None:
    page = opened.page
    header = page.locator("#contig-table thead th").nth(2)
    header.get_by_role("button").click()
    lengths = [int(text.replace(",", "")) for text in column(page, 3)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == len(OPEN) * 4000
    assert header.get_attribute("aria-sort") == "descending"
    header.get_by_role("button").press("Enter")
    lengths = [int(text.replace(",", "")) for text in column(page, 3)]
    assert lengths == sorted(lengths)
    assert header.get_attribute("aria-sort") == "ascending"
    page.locator("#contig-table thead th").nth(0).get_by_role("button").click()
    assert column(page, 1) == sorted(column(page, 1))
    assert header.get_attribute("aria-sort") is None


def test_rows_are_filtered_and_paged(opened: Opened) -> None:
    page = opened.page
    rows = 60 + len(HOSTILE) + 4
    assert (
        page.inner_text("#contig-status") == f"Rows 1 to 25 of {rows} that match, of {rows} in this report."
    )
    page.click("#next")
    assert page.inner_text("#contig-status").startswith(f"Rows 26 to 50 of {rows} ")
    page.select_option("#filter-verdict", "no_orf")
    assert set(column(page, 2)) == {"no_orf"}
    page.click("text=Reset")
    page.fill("#filter-length", "11000")
    assert column(page, 1) == ["long"]
    page.click("text=Reset")
    page.select_option("#filter-file", label=next(text for text in column_options(page) if "b.fa" in text))
    assert sorted(column(page, 1)) == ["from_b", "no_orf"]
    page.fill("#filter-id", "nothing is called so")
    assert page.inner_text("#contig-status").startswith("No rows of 0 that match")
    assert page.is_disabled("#next")
    page.click("text=Reset")
    assert page.inner_text("#contig-status").startswith("Rows 1 to 25")


def column_options(page: Any) -> list[str]:
    return page.locator("#filter-file option").all_inner_texts()


def test_without_its_script_the_numbers_are_there(chromium: Any, out: Path) -> None:
    page = chromium.new_page(java_script_enabled=False)
    page.goto((out / "report.html").as_uri())
    counts = json.loads((out / "summary.json").read_text())["counts"]
    assert f"{counts['viral_contigs']} of " in page.inner_text("h1")
    assert "predicted to be viral" in page.inner_text("h1")
    assert len(column(page, 1)) == 25
    assert "Without its script, this page shows the first 25 rows only." in page.inner_text("#main")
    assert not page.is_visible("#contig-controls")
    assert not page.is_visible("#theme")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_texts_can_be_read_and_nothing_is_cut_off(width: int, scheme: str, chromium: Any, out: Path) -> None:
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto((out / "report.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    low = page.evaluate(CONTRAST)
    assert low == []
    page.close()


def test_colours_can_be_changed(opened: Opened) -> None:
    page = opened.page
    background = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != before
    page.click("#theme")
    assert page.evaluate(background) == before


def test_everything_is_reached_by_keyboard(opened: Opened) -> None:
    page, reached = opened.page, set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"Skip to the results", "theme", "filter-id", "filter-verdict", "next", "verdict"} <= reached


def test_it_can_be_printed(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(media="print")
    assert not page.is_visible("nav")
    assert not page.is_visible("#contig-controls")
    content = page.pdf(format="A4")
    assert content.startswith(b"%PDF")


# The texts whose colour differs too little from what is behind them (WCAG 2.2, AA: 4.5, of large text 3).
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = numbers(getComputedStyle(one).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element);
    if (!own || !element.checkVisibility()) continue;
    if (element.closest(":disabled, option, desc, title, script")) continue;
    const inSvg = element.closest("svg");
    const pair = [light(numbers(inSvg ? style.fill : style.color)), light(behind(element))];
    const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    const isLarge = parseFloat(style.fontSize) >= 24;
    const what = `${element.tagName} ${element.textContent.slice(0, 40)}: ${ratio}`;
    if (ratio < (isLarge ? 3 : 4.5)) low.push(what);
  }
  return low;
}"""
