"""The README of the recipes: every block of commands is one that a test runs, and links lead somewhere."""

import re
from pathlib import Path

from recipe_files import RECIPES

README = (RECIPES / "README.md").read_text()
HERE = Path(__file__).parent


def test_every_block_of_commands_is_run_by_a_test() -> None:
    blocks = re.findall(r"^## (.*)\n(?:(?!^## ).*\n)*?^```$", README, re.MULTILINE)
    tests = "".join(path.read_text() for path in HERE.glob("test_*.py"))
    assert blocks == re.findall(r"^## (\w+)$", README, re.MULTILINE)
    assert len(blocks) == README.count("\n```\n") / 2
    assert {name for name in blocks if f'commands("{name}")' in tests} == set(blocks)


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
