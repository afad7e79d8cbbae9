"""
Average the weights of bundles of one training: the mean is often better than each of them.

Their weights must be similar, like those of the bundles that ``train_tiny.py --keep`` writes, also when
it continues from one of them with ``--start`` (Wortsman et al. 2022, arXiv:2203.05482).
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
    """Write the averaged bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    bundle = find(options.bundles[0])
    network = Tiny(bundle.shapes)
    for part in PARTS:
        blend(getattr(network, part), [directory / f"{part}.safetensors" for directory in options.bundles])
    write(network, bundle.shapes, bundle.tokenizer(), options.output)


def blend(network: nn.Module, files: Sequence[Path]) -> None:
    """Load the mean of the tensors of *files* into *network*; integers are those of the first file."""
    states = [load_file(file) for file in files]
    network.load_state_dict({name: _mean([state[name] for state in states]) for name in states[0]})


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    return torch.stack(list(tensors)).double().mean(0).to(tensors[0].dtype)


if __name__ == "__main__":
    main()
