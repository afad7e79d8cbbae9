"""
Average the weights of bundles that come from one training: often better than each of them.

They have to lie close together, as what ``train_tiny.py --keep`` writes does, and what it makes when it
goes on from there with ``--start`` (Wortsman et al. 2022, arXiv:2203.05482).
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from train_tiny import PARTS, Tiny, write

from virnuc_async.models.bundle import find


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the mean bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--output", type=Path, required=True)
    told = parser.parse_args(arguments)
    bundle = find(told.bundles[0])
    network = Tiny(bundle.shapes)
    for part in PARTS:
        blend(getattr(network, part), [directory / f"{part}.safetensors" for directory in told.bundles])
    write(network, bundle.shapes, bundle.tokenizer(), told.output)


def blend(network: nn.Module, files: Sequence[Path]) -> None:
    """Load the mean of the tensors of *files* into *network*; counts are those of the first."""
    several = [load_file(file) for file in files]
    network.load_state_dict({name: _mean([one[name] for one in several]) for name in several[0]})


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack(list(tensors)).double().mean(0).to(tensors[0].dtype)


if __name__ == "__main__":
    main()
