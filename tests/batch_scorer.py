"""A device whose scores depend on all of a batch: where one is packed otherwise, every number differs."""

from zlib import crc32

import numpy as np
from fakes import FakeScorer, Rules

from virnuc_async.engine.devices import Device
from virnuc_async.engine.replica import Scores
from virnuc_async.models.bundle import Bundle
from virnuc_async.sequences.batches import Batch
from virnuc_async.settings import Precision

_LARGEST = 2**32


class BatchScorer(FakeScorer):
    """Scores an ORF by its residues and by those of all others of its batch."""

    def _scores(self, batch: Batch) -> Scores:
        scores = super()._scores(batch)
        whole = crc32(batch.residues.ids.tobytes(), crc32(batch.residues.lengths.tobytes()))
        parts = np.split(batch.residues.ids, np.cumsum(batch.residues.lengths)[:-1])
        virus = np.array([crc32(part.tobytes(), whole) / _LARGEST for part in parts], np.float32)
        scores.probabilities[:] = np.stack([np.float32(1) - virus, virus], 1)
        if scores.embeddings is not None:
            scores.embeddings[:] = virus[:, None]
        return scores


class BatchRules(Rules):
    """Rules whose devices are such."""

    def scorer(self, device: Device, bundle: Bundle, precision: Precision, embeddings: bool) -> BatchScorer:
        return BatchScorer(device.name, self, bundle.shapes.classifier.inputs if embeddings else None)
