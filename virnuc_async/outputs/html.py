"""
Self-contained HTML pages, from the templates of this package: one file, no request to anywhere.

Everything that is put into a template is escaped, whatever it is; characters that a reader would not see,
or that change the direction of text, are written as escapes. A page may run its own script and nothing
else: its policy names the style and the script by their hashes.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from virnuc_async._version import __version__
from virnuc_async.text import plural

from .columns import Chunks

_TEMPLATES = Path(__file__).parent / "templates"
_STYLE = "style.css"
# Inside of a script element, these could end it or begin a comment.
_IN_SCRIPT = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})


def render(template: str, script: str = "", **values: Any) -> str:
    """Return the page of *template*, which may run the file *script* of this package, with *values*."""
    return _environment().get_template(template).render(**_shared(script), **values)


def page_chunks(template: str, script: str = "", **values: Any) -> Chunks:
    """Yield the page that :func:`render` returns, some lines at a time."""
    stream = _environment().get_template(template).stream(**_shared(script), **values)
    stream.enable_buffering(1000)
    for part in stream:
        yield part.encode()


def visible(text: str | bytes) -> str:
    """Return *text* with an escape for each character that is not visible, and for each invalid byte."""
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogateescape")
    decoded = text.decode("utf-8", "backslashreplace")
    if decoded.isprintable():
        return decoded
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in decoded
    )


def shortened(text: str, most: int) -> str:
    """Return *text*, or its first *most* characters and a mark that there are more."""
    return text if len(text) <= most else f"{text[:most]}\N{HORIZONTAL ELLIPSIS}"


def embedded_json(value: Any) -> Markup:
    """Return *value* as JSON that is safe inside of a script element, whatever its texts are."""
    # In ASCII: some characters beyond end a line for a script, though not for JSON.
    return Markup(json.dumps(value, separators=(",", ":"), ensure_ascii=True).translate(_IN_SCRIPT))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {
        "embedded_json": embedded_json,
        "count": lambda number: f"{number:,}",
        "plural": plural,
        "shortened": shortened,
    }
    return environment


@cache
def _shared(script: str) -> Mapping[str, Any]:
    """Return what every page has: its style, its script, and the policy that allows these alone."""
    style = _source(_STYLE)
    policy = f"default-src 'none'; style-src {_hash(style)}"
    if script:
        policy += f"; script-src {_hash(_source(script))}"
    return {
        "policy": f"{policy}; base-uri 'none'; form-action 'none'",
        "style": Markup(style),
        "script": Markup(_source(script)) if script else "",
        "version": __version__,
    }


def _source(name: str) -> str:
    return (_TEMPLATES / name).read_text("utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{b64encode(sha256(source.encode()).digest()).decode()}'"
