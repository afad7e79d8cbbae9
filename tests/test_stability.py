"""Whoever changes the public API says so."""

import json

from public_api import signatures
from support import DATA, ROOT


def test_a_change_of_the_public_api_is_in_the_changelog() -> None:
    """The signatures of the last release are in tests/data/public_api.json."""
    released, now = json.loads((DATA / "public_api.json").read_text()), signatures()
    changed = {name for name in released.keys() | now.keys() if released.get(name) != now.get(name)}
    _, _, later = (ROOT / "CHANGELOG.md").read_text("utf-8").partition("## Unreleased")
    unreleased = later.partition("\n## ")[0]
    assert not [name for name in changed if name.partition(".")[0] not in unreleased]


def test_every_public_class_and_function_is_described() -> None:
    text = (ROOT / "docs" / "reference" / "python-api.md").read_text("utf-8")
    names = {name for name in signatures() if "." not in name}
    assert not [name for name in names if f"`{name}" not in text and f"# {name}\n" not in text]
