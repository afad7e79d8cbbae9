"""Text for people: plurals, and what a terminal must not obey."""


def plural(number: int, noun: str, ending: str = "s") -> str:
    """Format a count with its noun: 1 record, 2 records."""
    return f"{number:,} {noun}" + ("" if number == 1 else ending)


# A terminal obeys control characters, and the name of a file may hold any.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def escape_control_chars(text: str) -> str:
    """Return *text* with control characters written as escapes, as a terminal may show it."""
    return text.translate(_CONTROLS)
