"""
Look for inputs that break a promise: ``python tests/adversity/fuzz.py readers --seconds 600``.

Needs atheris (``pip install -e '.[fuzz]'``), which records the coverage of the package's own code and
mutates the inputs that reach new code. An input that breaks a promise is saved in
``tests/data/crashes``, and a test runs it from then on.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris

# Not torch: instrumenting it takes minutes, and it is not what is tested here.
with atheris.instrument_imports(include=["virnuc_async"]):
    from virnuc_async.engine import verification  # noqa: F401
    from virnuc_async.models import bundle, import_checkpoint, reference  # noqa: F401
    from virnuc_async.runs import reuse_embeddings  # noqa: F401
    from virnuc_async.sequences import batches, fragments, inputs, orfs, tokens  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[1]))
from adversity.targets import TARGETS, seeds

CRASHES = Path(__file__).parents[1] / "data" / "crashes"


def main() -> None:
    """Fuzz one target for a while, starting with its seeds and the inputs found before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--most-bytes", type=int, default=8_000, help="length limit of an input")
    parser.add_argument("--corpus", type=Path, help="directory to save the inputs that reach new code in")
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
