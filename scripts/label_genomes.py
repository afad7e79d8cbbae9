"""Write the clusters and groups of one split of the genomes, for ``train`` and ``evaluate``."""

import argparse
from pathlib import Path

from genomes import Piece, read_pieces


def main() -> None:
    """Write ``clusters.tsv`` and ``groups.tsv``: the id of each record, and its genome or its group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--genomes", type=Path, required=True, help="directory of {train,val}.*.fna.gz")
    parser.add_argument("--split", choices=("train", "val"), default="val")
    parser.add_argument("--output", type=Path, default=Path(), help="directory of both tables")
    options = parser.parse_args()
    pieces = read_pieces(options.genomes, options.split)
    clusters = (f"{piece.id}\t{_kind(piece)}: {piece.genome}\n" for piece in pieces)
    groups = (f"{piece.id}\t{piece.group}\n" for piece in pieces)
    for name, lines in (("clusters.tsv", clusters), ("groups.tsv", groups)):
        (options.output / name).write_text("".join(lines), "utf-8")


def _kind(piece: Piece) -> str:
    return "virus" if piece.viral else "other"  # a phage may have the name of its host


if __name__ == "__main__":
    main()
