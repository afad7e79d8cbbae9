"""
Predict many samples, one directory each, and print one line for each; what failed is tried last, once more.

    python docs/examples/many_samples.py results/ sample1.fq.gz sample2.fq.gz
"""

import asyncio
import sys
from pathlib import Path

from virnuc_async import Settings, VirnucError, run_pipeline


async def predict_all(out: Path, samples: list[Path], settings: Settings) -> dict[str, int]:
    """Return how many contigs of each sample are viral; a run that was interrupted is resumed."""
    viral: dict[str, int] = {}
    left = list(samples)
    for is_last_try in (False, True):
        again: list[Path] = []
        for sample in left:
            try:
                # One after the other: each uses every device.
                summary = await run_pipeline(sample, out / sample.name, settings)
            except VirnucError as error:
                print(f"{sample}: {error}", file=sys.stderr)
                again.append(sample)
            else:
                counts = summary.counts
                print(f"{sample.name}\t{counts['contigs']}\t{counts['viral_contigs']}\t{counts['failures']}")
                viral[sample.name] = counts["viral_contigs"]
        left = again
        if is_last_try or not left:
            break
    return viral


if __name__ == "__main__":
    asyncio.run(predict_all(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]], Settings()))
