"""The published program's own run of the published models, where the optional data are at hand."""

from pathlib import Path

import pytest
from support import beside, fasta, pieces, read_table

LENGTH = 500  # of the run's fragments


@pytest.fixture(params=["test_with_orfs", "test_fixed_500bp"])
def real(request: pytest.FixtureRequest) -> Path:
    return beside("real") / request.param


def test_fragments(real: Path):
    found = [(piece.id, piece.bases) for piece in pieces(real / "input.fa", LENGTH)]
    assert fasta(found, width=60) == (real / "chunks.fa").read_text("ascii")


def test_proteins(real: Path):
    found = [
        (f"{piece.id}{orf.frame.name}", orf.protein.decode())
        for piece in pieces(real / "input.fa", LENGTH)
        for orf in piece.orfs
    ]
    assert fasta(found) == (real / "protein.faa").read_text("ascii")


def test_bases(real: Path):
    found = [
        (f"{piece.id}{orf.frame.name}", orf.bases.decode())
        for piece in pieces(real / "input.fa", LENGTH)
        for orf in piece.orfs
    ]
    assert fasta(found) == (real / "nucleotide.fa").read_text("ascii")


def test_ids_are_those_of_the_scores(real: Path):
    _, *rows = read_table(real / "prediction_results.txt")
    found = list(pieces(real / "input.fa", LENGTH))
    assert [f"{piece.id}{orf.frame.name}" for piece in found for orf in piece.orfs] == [
        row[0] for row in rows
    ]
    _, *verdicts = read_table(real / "prediction_results_highestscore.csv")
    assert sorted(piece.id for piece in found if piece.orfs) == [row[0] for row in verdicts]


def test_the_input_is_read_whole(real: Path):
    letters = {piece.id: piece.bases for piece in pieces(real / "input.fa", 10**6)}
    records = (real / "input.fa").read_text("ascii").split(">")[1:]
    wanted = {record.split()[0] + "_chunk_1": "".join(record.split("\n")[1:]) for record in records}
    assert letters == wanted
