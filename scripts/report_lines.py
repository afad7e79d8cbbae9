"""
A plugin of pytest: write a line of JSON for each test as it ends, and begin none after a deadline.

The environment says where and when: REPORT_LINES is a file, REPORT_UNTIL is in seconds since 1970.
The exit code says it where tests were not reached and none failed.
"""

import os
from pathlib import Path

import pytest
from json_lines import TIME_IS_UP, Lines

_UNTIL = os.environ.get("REPORT_UNTIL")
_PATH = os.environ.get("REPORT_LINES")
_lines = Lines(Path(_PATH) if _PATH else None, float(_UNTIL) if _UNTIL else None)
_reached: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the result of a test, or of its set-up if that is where it ended."""
    if report.when == "call" or (report.when == "setup" and not report.passed) or report.failed:
        row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.failed:
            row["error"] = report.longreprtext[-4000:]
        _lines.write(row)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Skip over *item* without running it if the time is up."""
    if _lines.is_time_up:
        return True
    _reached.add(item.nodeid)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name what was not reached."""
    if left := [item.nodeid for item in session.items if item.nodeid not in _reached]:
        _lines.not_reached(*left)
        session.exitstatus = session.exitstatus or TIME_IS_UP
