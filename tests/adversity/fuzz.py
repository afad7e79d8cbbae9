"""
Look for inputs that break a promise: ``python tests/adversity/fuzz.py readers --seconds 600``.

Needs atheris (``pip install -e '.[fuzz]'``), which follows what the package's own code does with an
input and mutates the inputs that make it do something new. An input that breaks a promise is kept in
``tests/data/crashes``, where a test plays it from then on.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

# Not torch: it takes minutes to be instrumented, and is not what is to be explored.
with atheris.instrument_imports(include=["virnuc_async"]):
    from virnuc_async import (  # noqa: F401
        batches,
        bundles,
        features,
        fragments,
        orfs,
        references,
        sequences,
        tokens,
        upstream,
        verification,
    )

sys.path.insert(0, str(Path(__file__).parents[1]))
from adversity.targets import TARGETS, seeds

CRASHES = Path(__file__).parents[1] / "data" / "crashes"


def main() -> None:
    """Fuzz one target for a while, from its seeds and from what was found before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--most-bytes", type=int, default=8_000, help="of an input")
    parser.add_argument("--corpus", type=Path, help="a directory to keep the inputs that did something new")
    options = parser.parse_args()
    found = CRASHES / options.target
    found.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        corpus = options.corpus or Path(scratch) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(options.target)):
            (corpus / f"seed{number}").write_bytes(seed)
        arguments = [
            f"-max_total_time={options.seconds}",
            f"-max_len={options.most_bytes}",
            f"-artifact_prefix={found}/",
            "-timeout=20",
            "-rss_limit_mb=3000",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *arguments, str(corpus), str(found)], TARGETS[options.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
