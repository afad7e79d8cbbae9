"""The program, with segments of 20,000 bases in place of 64 million: python short_segments.py predict ..."""

import runpy

from virnuc_async.sequences import segments

if __name__ == "__main__":
    vars(segments)["SEGMENT_BASES"] = 20_000  # before any module takes it from there
    runpy.run_module("virnuc_async", run_name="__main__")
