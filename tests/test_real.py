"""A run of the published program with the published models; skipped without the optional data."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import Rules, fake_devices
from numpy.typing import NDArray
from support import beside, fasta, pieces, read_table

from virnuc_async.engine.replica import Scores
from virnuc_async.models.bundle import Bundle
from virnuc_async.models.import_checkpoint import CheckpointPaths, import_bundle
from virnuc_async.networks.shapes import ClassifierShape
from virnuc_async.pipeline import execute
from virnuc_async.runs.plan import Plan
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Settings

LENGTH = 500  # of the run's fragments


@pytest.fixture(params=["test_with_orfs", "test_fixed_500bp"])
def real(request: pytest.FixtureRequest) -> Path:
    return beside("real") / request.param


def test_fragments(real: Path):
    found = [(piece.id, piece.bases) for piece in pieces(real / "input.fa", LENGTH)]
    assert fasta(found, width=60) == (real / "chunks.fa").read_text("ascii")


@pytest.mark.parametrize(("letters", "name"), [("protein", "protein.faa"), ("bases", "nucleotide.fa")])
def test_orfs(real: Path, letters: str, name: str):
    found = [
        (f"{piece.id}{orf.frame.name}", getattr(orf, letters).decode())
        for piece in pieces(real / "input.fa", LENGTH)
        for orf in piece.orfs
    ]
    assert fasta(found) == (real / name).read_text("ascii")


def test_ids_equal_those_of_the_scores(real: Path):
    _, *rows = read_table(real / "prediction_results.txt")
    found = list(pieces(real / "input.fa", LENGTH))
    assert [f"{piece.id}{orf.frame.name}" for piece in found for orf in piece.orfs] == [
        row[0] for row in rows
    ]
    _, *verdicts = read_table(real / "prediction_results_highestscore.csv")
    assert sorted(piece.id for piece in found if piece.orfs) == [row[0] for row in verdicts]


def test_the_whole_input_is_read(real: Path):
    letters = {piece.id: piece.bases for piece in pieces(real / "input.fa", 10**6)}
    records = (real / "input.fa").read_text("ascii").split(">")[1:]
    expected = {record.split()[0] + "_chunk_1": "".join(record.split("\n")[1:]) for record in records}
    assert letters == expected


class Stored(Rules):
    """A device that returns the stored scores and embeddings of the published models."""

    def __init__(self, real: Path) -> None:
        super().__init__()
        _, *rows = read_table(real / "prediction_results.txt")
        self.scores: NDArray[np.float32] = np.array([row[2:] for row in rows], np.float32)
        self.features = torch.load(real / "merged.pt", weights_only=True)["data"].numpy()

    def scorer(self, *args: object) -> object:
        scorer = super().scorer(*args)

        async def score(batch: Batch) -> Scores:
            orfs = batch.orfs
            nothing = np.zeros(len(batch), dtype=np.int64)
            return Scores(
                batch, self.scores[orfs], nothing, self.features[orfs], 0.0, np.ones((0, 2), np.float32)
            )

        scorer.score = score
        return scorer


@pytest.fixture(scope="module")
def bundle(golden_parts: CheckpointPaths, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with the published widths, as far as tables depend on them."""
    made = import_bundle(golden_parts, tmp_path_factory.mktemp("bundle"), "stored", LENGTH)
    return replace(made, shapes=replace(made.shapes, classifier=ClassifierShape(3328, 512)))


async def test_the_published_files_from_the_stored_scores(real: Path, bundle: Bundle, tmp_path: Path):
    settings = Settings(embeddings=True, tokens_per_batch=70)
    plan = Plan((str(real / "input.fa"),), settings, bundle, fake_devices(3), window=2)
    await execute(plan, tmp_path, Stored(real).scorer)
    for name in ("prediction_results.txt", "prediction_results_highestscore.csv"):
        assert (tmp_path / name).read_bytes() == (real / name).read_bytes()
    ours, published = (
        torch.load(path / name, weights_only=True)
        for path, name in ((tmp_path, "merged_features.pt"), (real, "merged.pt"))
    )
    assert ours["ids"] == published["ids"]
    assert torch.equal(ours["data"], published["data"])
