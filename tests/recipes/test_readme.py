"""The README of the recipes: every block of commands is one that a test runs, and links lead somewhere."""

import re
from pathlib import Path

from recipe_files import RECIPES, blocks

README = (RECIPES / "README.md").read_text()
HERE = Path(__file__).parent


def test_every_block_of_commands_is_run_by_a_test() -> None:
    headings = re.findall(r"^## (.*)$", README, re.MULTILINE)
    found = {(heading, number) for heading in headings for number in range(len(blocks(heading)))}
    assert len(found) == README.count("\n```\n") / 2
    tests = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    run = re.findall(r'commands\("([\w ]+)"(?:, (\d))?\)', tests)
    assert {(heading, int(number or 0)) for heading, number in run} == found


def test_links_lead_to_files_and_headings() -> None:
    links = re.findall(r"\]\((?!https:)([^)#]*)(#[^)]*)?\)", README)
    assert len(links) > 10
    for path, heading in links:
        target = RECIPES / (path or "README.md")
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading[1:] in anchors
