"""
Measure how far the precisions are from FP64 on the ORFs that models are verified with.

The tolerances of the verification are based on this. FP64 means the same networks with weights and
activations in FP64, except for ESM-2's rotary angles and the final rounding of embeddings, in FP32. On a
CPU, FP8 is what plain torch makes of it: numbers are rounded as on a GPU, and summed in FP32.
"""

import argparse
from dataclasses import replace

import anyio
import numpy as np
import torch
from numpy.typing import NDArray

from virnuc_async.engine.devices import Device, choose
from virnuc_async.engine.replica import Replica
from virnuc_async.engine.verification import batch_of, compute
from virnuc_async.models.bundle import Bundle, find
from virnuc_async.models.reference import Reference, compare, published_reference, sketch
from virnuc_async.networks.classifier import Classifier
from virnuc_async.networks.dnabert_s import DnabertS
from virnuc_async.networks.esm2 import Esm2
from virnuc_async.networks.loading import load
from virnuc_async.networks.packing import pack
from virnuc_async.sequences.batches import Batch
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.sequences.windows import Cut, form_windows
from virnuc_async.settings import Precision, Settings

HEAD = "model | precision | device | score | distance of sums | cosine of sums | length"


@torch.inference_mode()
def exact(bundle: Bundle, orfs: Reference) -> Reference:
    """Return the results of *bundle* for *orfs* in FP64, on the CPU."""
    batch, shapes, cpu = batch_of(bundle, orfs), bundle.shapes, torch.device("cpu")
    with torch.device("meta"):
        networks = DnabertS(shapes.nucleotide), Esm2(shapes.protein), Classifier(shapes.classifier)
    files = (bundle.directory / f"{part}.safetensors" for part in ("nucleotide", "protein", "classifier"))
    nucleotide, protein, classifier = (
        load(network, file, cpu, torch.float64) for network, file in zip(networks, files, strict=True)
    )
    bases = nucleotide.embeddings(pack(batch.nucleotides))
    residues = protein.embeddings(pack(batch.residues))
    scores = classifier(torch.cat((bases, residues), 1).double()).numpy()
    return replace(orfs, scores=scores, nucleotide=sketch(bases.numpy()), protein=sketch(residues.numpy()))


def measure(name: str, bundle: Bundle, device: Device) -> None:
    """Print a row for each precision."""
    orfs = published_reference(bundle.length)
    reference = exact(bundle, orfs)
    for precision in Precision:
        if precision is Precision.AUTO:
            continue
        computed = anyio.run(compute, bundle, orfs, device, precision)
        found = compare(reference, computed, orfs.tolerance(precision))
        differences = f"{found.score:.1e} | {found.distance:.1e} | {found.cosine:.7f} | {found.length:.1e}"
        print(f"{name} | {precision.upper()} | {device.model} | {differences}", flush=True)


async def probabilities(
    bundle: Bundle, device: Device, precision: Precision, batches: list[Batch]
) -> NDArray[np.float32]:
    """Return the scores of all ORFs of *batches*."""
    replica = Replica(device, bundle, precision)
    try:
        await replica.load()
        return np.concatenate([(await replica.score(batch)).probabilities for batch in batches])
    finally:
        await replica.close()


def measure_labels(bundle: Bundle, device: Device, path: str) -> None:
    """Print how many labels of the ORFs in *path* are those of FP32, and how close those are that are not."""
    tokenizer = OrfTokenizer(bundle.tokenizer())
    windows = form_windows([path], read_contigs, Cut(bundle.length), tokenizer)
    batches = [batch for window in windows for batch in window.batches(3072)]
    exact = anyio.run(probabilities, bundle, device, Precision.FP32, batches)
    for precision in (Precision.BF16, Precision.FP16, Precision.FP8):
        found = anyio.run(probabilities, bundle, device, precision, batches)
        differ = found.argmax(1) != exact.argmax(1)
        margin = np.abs(exact[differ, 0] - exact[differ, 1]).max(initial=0)
        print(
            f"{precision.upper()}: {len(exact)} ORFs, {differ.sum()} labels differ, of scores that are "
            f"at most {margin:.3f} apart in FP32; scores differ by up to {np.abs(found - exact).max():.1e}"
        )


def main() -> None:
    """Measure the models that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME|DIR")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--labels", metavar="FILE", help="compare the labels of the ORFs in this file instead"
    )
    options = parser.parse_args()
    (device,) = choose(Settings(devices=(options.device,)))
    if options.labels:
        for name in options.models:
            measure_labels(find(name), device, options.labels)
        return
    print(HEAD)
    for name in options.models:
        measure(name.rstrip("/").rpartition("/")[2], find(name), device)


if __name__ == "__main__":
    main()
