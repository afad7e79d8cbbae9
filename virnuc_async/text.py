"""Text of and for people: URLs among paths, plurals, suggestions, and what a terminal must not interpret."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TypeGuard


def plural(number: int, noun: str, ending: str = "s") -> str:
    """Format a count with its noun: 1 record, 2 records."""
    return f"{number:,} {noun}" + ("" if number == 1 else ending)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Format the names of *known* that *word* may stand for as a question; return "" if none is close."""
    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_lower, n=2, cutoff=0.8)
    if word and not close:
        close = [name for name in by_lower if name.startswith(word.lower())][:2]
    return f" Did you mean {' or '.join(by_lower[name] for name in close)}?" if close else ""


_URL = re.compile(r"(s3|gs|az|https?)://", re.IGNORECASE)


def is_url(name: str) -> bool:
    """Return whether *name* is a URL of an object store or a web server, and no path."""
    return _URL.match(name) is not None


def is_utf8(text: bytes) -> bool:
    """Return whether *text* is UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def is_printable(text: object) -> TypeGuard[str]:
    """Return whether *text* is a string that a terminal shows as it is."""
    return isinstance(text, str) and text.isprintable()


# A terminal obeys control characters, and the name of a file may contain any.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def escape_control_chars(text: str) -> str:
    """Return *text* with its control characters escaped, safe to show on a terminal."""
    return text.translate(_CONTROLS)
