"""What failed in a run: a line of ``failed_files.txt``."""

from dataclasses import dataclass

from virnuc_async.errors import Stage

_ESCAPES = (("\\", "\\\\"), ("|", "\\|"), ("\r\n", "\\n"), ("\n", "\\n"), ("\r", "\\n"))


@dataclass(frozen=True, slots=True)
class Failure:
    """An input or an ORF without a result: where it is, the stage that failed, and why."""

    path: str
    stage: Stage
    message: str


def failure_line(failure: Failure) -> str:
    """Format a line of ``failed_files.txt``, whose fields hold no bare pipe and no line end."""
    return "|".join(map(_escaped, (failure.path, failure.stage, failure.message))) + "\n"


def _escaped(text: str) -> str:
    for plain, escape in _ESCAPES:
        text = text.replace(plain, escape)
    return text
