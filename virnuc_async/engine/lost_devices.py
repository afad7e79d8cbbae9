"""
What belongs to devices that were lost. It is never freed, not even when the interpreter ends.

After an error that a device does not recover from, torch raises where it frees page-locked memory that
was copied from or to it, and events: in destructors of C++, which ends the process, and with it the work
of the other devices. When the interpreter ends it frees what modules hold, so that a list alone would
only delay it.
"""

import ctypes

_kept: list[object] = []


def keep_until_exit(*things: object) -> None:
    """Keep *things* of a lost device as long as this process lives."""
    for thing in things:
        _kept.append(thing)
        # One reference that nobody gives back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
