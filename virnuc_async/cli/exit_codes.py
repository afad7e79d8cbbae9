"""
The exit codes of the commands.

Wrong usage exits with 64 (:class:`virnuc_async.errors.UsageError`), an interrupted command with 128
plus the number of the signal: 130 and 143.
"""

DONE = 0
FAILED = 1
INCOMPLETE = 2  # the tables are written, but failed_files.txt lists what is missing from them
