"""Errors of models: bundles, checkpoints, references and embeddings."""

from collections.abc import Iterable, Sequence

from virnuc_async.text import did_you_mean

from .base import VirnucError, _PathError

ANOTHER_CACHE = "Choose another directory for models with --cache-dir, or set VIRNUC_ASYNC_CACHE_DIR"


class BundleError(VirnucError):
    """A model bundle cannot be used."""


class UnknownBundle(BundleError):
    """*name* is neither an installed bundle nor a directory with one."""

    def __init__(
        self, name: str, known: Iterable[str], published: Iterable[str] = (), unseen: str = ""
    ) -> None:
        super().__init__(name)
        self.name, self.known, self.published = name, tuple(known), tuple(published)
        self.unseen = unseen  # why there may be more, in a directory that cannot be read

    def __str__(self) -> str:
        installed = f"Installed: {', '.join(self.known)}."
        if self.unseen:
            return f"no model {self.name!r} here. {installed} Others cannot be seen: {self.unseen}"
        if self.name in self.published:
            return f"no model {self.name!r} here. {installed} Get it with: models download {self.name}"
        hint = did_you_mean(self.name, [*self.known, *self.published])
        others = [name for name in self.published if name not in self.known]
        download = f" To download: {', '.join(others)}." if others else ""
        return f"no model {self.name!r} here.{hint} {installed}{download}"


class NoCacheDirectory(BundleError):
    """There is no directory for installed models, since *reason*."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"there is no directory for models: {self.reason}. {ANOTHER_CACHE}"


class BadBundle(BundleError, _PathError):
    """The bundle at *path* is incomplete, damaged, or of another shape than its manifest says."""

    def __str__(self) -> str:
        return f"{self.path} is not a usable bundle: {self.reason}"


class BadCheckpoint(BundleError, _PathError):
    """The checkpoint at *path* is damaged, hostile, or of a different network."""

    def __str__(self) -> str:
        return f"{self.path} cannot be imported: {self.reason}"


class NoThreshold(BundleError):
    """The bundle *name* has no threshold for a false positive rate, since *reason*."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return (
            f"the model {self.name!r} has no threshold for this false positive rate: {self.reason}. "
            "'calibrate --viral FILE --nonviral FILE --output DIR --model DIR' makes one of labelled "
            "sequences, in a copy of the model if it comes with the program"
        )


class NoReference(BundleError):
    """The bundle *name* has no reference to verify it against."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"the model {self.name!r} has no reference to verify it against. If it is known to be correct, "
            "'models verify --record' records one: its outputs on a CPU in FP32"
        )


class BadReference(BundleError, _PathError):
    """The file at *path* is not a reference that a model can be verified against."""

    def __str__(self) -> str:
        return f"{self.path} is not a usable reference: {self.reason}"


class PeerUnavailable(VirnucError):
    """The ESM-2 of the package *peer* cannot be used to compare with."""

    def __init__(self, peer: str, reason: str) -> None:
        super().__init__(peer, reason)
        self.peer, self.reason = peer, reason

    def __str__(self) -> str:
        return (
            f"the ESM-2 of {self.peer} cannot be used: {self.reason}. The installation is broken; repair it "
            "with: pip install --force-reinstall fair-esm==2.0.0 'transformers>=4.50' (and without the "
            "package 'esm', which hides fair-esm)"
        )


class FeatureError(VirnucError):
    """Precomputed embeddings cannot be reused."""


class NoFeatures(FeatureError):
    """The *directory* cannot be searched, or no file in it has the name of a feature file."""

    def __init__(self, directory: str, reason: str) -> None:
        super().__init__(directory, reason)
        self.directory, self.reason = directory, reason

    def __str__(self) -> str:
        return f"no features to reuse in {self.directory}: {self.reason}"


class BadFeatures(FeatureError, _PathError):
    """The file of features at *path* is damaged, hostile, or does not fit the model."""

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be reused: {self.reason}. Move it elsewhere to compute its embeddings again"
        )


class AmbiguousFeatures(FeatureError):
    """Features are identified by the *id* of their ORF, which is not unique here."""

    def __init__(self, id: str, reason: str) -> None:
        super().__init__(id, reason)
        self.id, self.reason = id, reason

    def __str__(self) -> str:
        return (
            f"ambiguous features for {self.id}: {self.reason}. "
            "Ids must be unique when --reuse-features is given"
        )


class FeatureMismatchError(FeatureError):
    """What the model computes for the ORF *id* is less similar than *minimum* to what is in *paths*."""

    def __init__(self, id: str, paths: Sequence[str], similarity: float, minimum: float) -> None:
        super().__init__(id, tuple(paths), similarity, minimum)
        self.id, self.paths, self.similarity, self.minimum = id, tuple(paths), similarity, minimum

    def __str__(self) -> str:
        return (
            f"the features of {self.id} in {' and '.join(self.paths)} are of a different sequence or a "
            f"different model: their cosine similarity to what this model computes (lower if lengths differ) "
            f"is {self.similarity:.5f}, below {self.minimum}. "
            "Use another --reuse-features or none, and --overwrite to start over"
        )
