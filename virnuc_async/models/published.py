"""
The published models: what their files are, where they are, and what is known of them.

Of ESM-2's files nobody published a checksum. What can be seen of them is: the size that the server
said, the checksums that torch's files have inside, and that they hold the tensors of the network of
that name, by names and shapes. What was got is written down with its sha256 in the bundle, which is how
another model with the same encoders knows that it need not get them again.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from virnuc_async.downloads.fetch import (
    DEFAULT_OPTIONS,
    FetchOptions,
    ProgressCallback,
    exclusive_lock,
    fetch_all,
)
from virnuc_async.downloads.source import Source, git_blob
from virnuc_async.errors import BadBundle, BadCheckpoint, ForeignDirectoryError, UsageError
from virnuc_async.fileio import atomic_directory, link_or_copy, read_bounded
from virnuc_async.networks.shapes import ClassifierShape, ProteinShape

from .bundle import ENCODERS, Bundle, find
from .import_checkpoint import ESM2_HEADS, CheckpointPaths, import_bundle, import_classifier, read_protein
from .reference import Reference, published_reference

HUB = "https://huggingface.co"
LICENCE = "ESM-2: MIT; DNABERT-S: Apache-2.0; classifier: see github.com/Li-Jing-1997/VirNucPro"

# The ids that git has for the files; nobody published another checksum of them.
CLASSIFIERS = {
    500: "fc35d5ef9f1f4564eea7036f34f4f8ec6000d33d",
    300: "a0b5b85e7c1e44f00cde146d091beb82b2c8e855",
}
ESM2 = {
    "esm2_t6_8M_UR50D": (6, 320),
    "esm2_t12_35M_UR50D": (12, 480),
    "esm2_t30_150M_UR50D": (30, 640),
    "esm2_t33_650M_UR50D": (33, 1280),
    "esm2_t36_3B_UR50D": (36, 2560),
    "esm2_t48_15B_UR50D": (48, 5120),
}

_ESM2_AT = "https://dl.fbaipublicfiles.com/fair-esm/models"
_CLASSIFIERS_AT = "https://github.com/Li-Jing-1997/VirNucPro/raw/HEAD"
_LARGEST_CONFIG = 1 << 20  # bytes
_CLASSIFIER = ClassifierShape(inputs=3328, hidden=512)
_ROOM = 1 << 24  # bytes of a checkpoint beside its numbers: names, settings
_BY_A_MIRROR = " by a mirror"
_DNABERT_S = "DNABERT-S"
_DNABERT_S_CONFIG = {"num_attention_heads": 12, "hidden_size": 768, "num_hidden_layers": 12}
_DNABERT_S_AT = "zhihan1996/DNABERT-S/resolve/00e47f96cdea35e4b6f5df89e5419cbe47d490c6"


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Where files are got from: the official servers, unless others are named."""

    hub: str = ""  # in the place of Hugging Face, as HF_ENDPOINT is elsewhere
    mirror: str = ""  # has every file by its official host and path, as wget -x keeps them

    def __post_init__(self) -> None:
        for place in filter(None, (self.hub, self.mirror)):
            if not place.startswith(("http://", "https://")):
                raise UsageError(f"a mirror begins with https:// or http://, unlike {place!r}")

    def url(self, official: str) -> str:
        """Give where the file is got from whose address is *official*."""
        if self.hub and official.startswith(HUB):
            return self.hub.rstrip("/") + official.removeprefix(HUB)
        if self.mirror:
            return f"{self.mirror.rstrip('/')}/{official.removeprefix('https://')}"
        return official

    def source(self, official: str, name: str, **facts: Any) -> Source:
        """Give the file called *name* whose address is *official*; *facts* are what it is checked by."""
        url = self.url(official)
        origin = official if url == official else official + _BY_A_MIRROR
        return Source(url, name, origin=origin, **facts)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What is to be downloaded: a model, or without a classifier the encoders to make one of."""

    name: str
    protein: Source
    nucleotide: tuple[Source, ...]  # of one directory
    classifier: Source | None = None
    length: int = 0
    reference: Reference | None = None

    @property
    def tokenizer(self) -> Source:
        """The tokenizer for bases."""
        return self._nucleotide("tokenizer.json")

    @property
    def weights(self) -> Source:
        """The network for bases."""
        return self._nucleotide("pytorch_model.bin")

    def _nucleotide(self, name: str) -> Source:
        (one,) = (source for source in self.nucleotide if Path(source.name).name == name)
        return one

    @property
    def sources(self) -> tuple[Source, ...]:
        """All files."""
        last = () if self.classifier is None else (self.classifier,)
        return (self.protein, *self.nucleotide, *last)


def published_model(length: int, places: Mirrors) -> ModelFiles:
    """Give what the published model for fragments of *length* bases is made of."""
    name = f"{length}_model.pth"
    facts = {"git_blob": CLASSIFIERS[length], "max_size": _most(_CLASSIFIER.parameters)}
    classifier = places.source(f"{_CLASSIFIERS_AT}/{name}", name, **facts)
    encoders, reference = published_encoders("esm2_t36_3B_UR50D", places), published_reference(length)
    return ModelFiles(
        f"virnucpro-{length}", encoders.protein, encoders.nucleotide, classifier, length, reference
    )


# By name, what gives its files.
MODELS: dict[str, Callable[[Mirrors], ModelFiles]] = {
    "virnucpro-500": partial(published_model, 500),
    "virnucpro-300": partial(published_model, 300),
}


def published_encoders(protein: str, places: Mirrors) -> ModelFiles:
    """
    Give the ESM-2 called *protein*, and DNABERT-S.

    Raises:
        UsageError: there is no such ESM-2
    """
    if protein not in ESM2:
        raise UsageError(f"no ESM-2 is called {protein!r}: there are {', '.join(ESM2)}")
    wanted = ProteinShape(*ESM2[protein], ESM2_HEADS[ESM2[protein]])
    facts = {"check": partial(_see_that_it_is_esm2, wanted), "max_size": _most(wanted.parameters)}
    source = places.source(f"{_ESM2_AT}/{protein}.pt", f"{protein}.pt", **facts)
    return ModelFiles(protein, source, tuple(_dnabert_s(places)))


def _most(parameters: int) -> int:
    """Give how many bytes a checkpoint can have: four a number, and a quarter more for other tensors."""
    return 5 * parameters + _ROOM


def _dnabert_s(places: Mirrors) -> Iterator[Source]:
    config, tokenizer, weights = (
        (f"{HUB}/{_DNABERT_S_AT}/{name}", f"{_DNABERT_S}/{name}")
        for name in ("config.json", "tokenizer.json", "pytorch_model.bin")
    )
    yield places.source(*config, check=_see_that_it_is_dnabert_s, max_size=_LARGEST_CONFIG)
    of_tokenizer = "667f5a0e6e9630f7052b004784dda7c7aeba395cc4ca3c01b11b02e6aa29d7b1"
    yield places.source(*tokenizer, size=168_203, sha256=of_tokenizer)
    of_weights = "f3cfc3d0541859df64759e758cc4bc40fe1d5760799a7d098a9f9f09501c1e5f"
    yield places.source(*weights, size=468_320_053, sha256=of_weights)


def _see_that_it_is_esm2(wanted: ProteinShape, path: Path) -> None:
    _, shape = read_protein(path)
    if shape != wanted:
        reason = f"an ESM-2 of {shape.layers} layers of {shape.width}, {shape.heads} heads"
        raise BadCheckpoint(str(path), f"it is {reason}")


def _see_that_it_is_dnabert_s(path: Path) -> None:
    """See that what is read of ``config.json`` is as published: its other lines are not used."""
    try:
        config = json.loads(read_bounded(path, _LARGEST_CONFIG))
        is_right = all(config[name] == value for name, value in _DNABERT_S_CONFIG.items())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadCheckpoint(str(path), f"not the configuration of a network ({error!r:.99})") from error
    if not is_right:
        raise BadCheckpoint(str(path), "not the configuration of DNABERT-S")


def download(
    targets: Mapping[Path, ModelFiles],
    cache: Path,
    watch: ProgressCallback,
    tell: Callable[[str], object],
    options: FetchOptions = DEFAULT_OPTIONS,
) -> None:
    """
    Have in each directory of *targets*, which lie side by side, what is wanted there, whole and checked.

    Files that several need are fetched once; what was downloaded before, beside *targets* or into
    *cache*, is not fetched if it is whole. *watch* sees them come, *tell* is told what is done then.

    Raises:
        DownloadError: a file could not be downloaded; its parts are kept
        BadCheckpoint: a file is what was published, and yet no part of a model
        BadBundle, ForeignDirectoryError: what is there already
        CannotWrite: the disk
    """
    missing = {target: wanted for target, wanted in targets.items() if not _is_there(target, tell)}
    if not missing:
        return
    place = next(iter(targets)).parent
    work = place / ".download"
    with exclusive_lock(work):
        # Whoever was at work before may have made one meanwhile.
        missing = {target: wanted for target, wanted in missing.items() if not _is_there(target, tell)}
        old = _old_base(missing.values(), (place, cache / "models"), tell)
        bases = [old] if old else []
        at_hand = [directory / name for directory in (place, cache / "encoders") for name in ESM2]
        missing = {
            target: wanted if _base(wanted, bases) else _with_checkpoints(wanted, at_hand, work, tell)
            for target, wanted in missing.items()
        }
        sources = {source.name: source for wanted in missing.values() for source in _needed(wanted, bases)}
        if sources:
            tell("")  # who watches sees more
            fetch_all(list(sources.values()), work, watch, options)
        for target, wanted in missing.items():
            tell(f"{wanted.name}: writing it to {target}")
            bases += _make(target, wanted, work, bases)
        for name in sources:
            (work / name).unlink(missing_ok=True)
        if not any(path.suffix == ".part" for path in work.rglob("*")):
            shutil.rmtree(work)


def _is_there(target: Path, tell: Callable[[str], object]) -> bool:
    """Whether *target* is finished: then it is whole, since it appeared as such."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if (target / "bundle.json").is_file():
        tell(f"{target} is there: checking its files")
        find(target).check()
    elif not (target / _DNABERT_S).is_dir():
        raise ForeignDirectoryError(str(target), "is not empty. Name another directory")
    return True


def _old_base(
    missing: Iterable[ModelFiles], places: Iterable[Path], tell: Callable[[str], object]
) -> Bundle | None:
    """Give a published model of an earlier day that has the encoders of those that are *missing*, whole."""
    for directory in dict.fromkeys(place / name for place in places for name in MODELS):
        try:
            base = find(directory) if (directory / "bundle.json").is_file() else None
            if base and (names := [wanted.name for wanted in missing if _has_encoders(base, wanted)]):
                why = f"since {directory} has its encoders, which are checked"
                tell(f"{' and '.join(names)}: only the classifier is fetched, {why}")
                base.check(*ENCODERS)
                return base
        except BadBundle as failure:
            tell(f"{failure}: nothing of it is used")
    return None


def _has_encoders(base: Bundle, wanted: ModelFiles) -> bool:
    """Whether *base* says of itself that its encoders are of the files that a model is *wanted* of."""
    if wanted.classifier is None:
        return False
    address, _, _ = base.origin.get("protein", "").partition(", sha256 ")
    # What an official server gave is right for who has a mirror, and not the other way around.
    official = wanted.protein.origin.removesuffix(_BY_A_MIRROR)
    return (
        address in (official, wanted.protein.origin)
        and base.origin.get("nucleotide", "").endswith(f", sha256 {wanted.weights.sha256}")
        and base.checksums["tokenizer.json"] == wanted.tokenizer.sha256
    )


def _base(wanted: ModelFiles, bases: Iterable[Bundle]) -> Bundle | None:
    return next((base for base in bases if _has_encoders(base, wanted)), None)


def _needed(wanted: ModelFiles, bases: Iterable[Bundle]) -> tuple[Source, ...]:
    """Give the files to fetch where *bases* are at hand."""
    return (wanted.classifier,) if wanted.classifier and _base(wanted, bases) else wanted.sources


def _with_checkpoints(
    wanted: ModelFiles, directories: Iterable[Path], work: Path, tell: Callable[[str], object]
) -> ModelFiles:
    """Have in *work*, where what is there is checked, what was downloaded as encoders before."""
    for directory in directories:
        found = [source.name for source in wanted.sources if (directory / source.name).is_file()]
        new = [name for name in found if not (work / name).exists()]
        for name in new:
            (work / name).parent.mkdir(exist_ok=True)
            link_or_copy(directory / name, work / name)
        if new:
            tell(f"{wanted.name}: {directory} has {', '.join(new)}, which is taken if it is right")
        if wanted.protein.name in found:
            # Nobody has written down where it is from, and it has no published checksum to tell.
            wanted = replace(wanted, protein=replace(wanted.protein, origin=wanted.protein.name))
    return wanted


def _make(target: Path, wanted: ModelFiles, work: Path, bases: Iterable[Bundle]) -> Sequence[Bundle]:
    """Make the model, or the directory of encoders, of the files in *work*; give the model."""
    for left in target.parent.glob(f".{target.name}.*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    if wanted.classifier is None:
        with atomic_directory(target) as hidden:
            for source in wanted.sources:
                (hidden / source.name).parent.mkdir(exist_ok=True)
                link_or_copy(work / source.name, hidden / source.name)
        return ()
    classifier, facts = work / wanted.classifier.name, (wanted.name, wanted.length, wanted.reference)
    if base := _base(wanted, bases):
        address = wanted.classifier.origin
        return (import_classifier(classifier, base, target, *facts, licence=LICENCE, address=address),)
    addresses = {
        "protein": wanted.protein.origin,
        "nucleotide": wanted.weights.origin,
        "classifier": wanted.classifier.origin,
    }
    nucleotide = (work / wanted.weights.name).parent
    parts = CheckpointPaths(work / wanted.protein.name, nucleotide, classifier, addresses)
    return (import_bundle(parts, target, *facts, licence=LICENCE),)


def reference_for(classifier: Path) -> Reference | None:
    """Give what the published model gave whose *classifier* this is; None if it is another file."""
    lengths = {blob: length for length, blob in CLASSIFIERS.items()}
    try:
        length = lengths.get(git_blob(classifier))
    except OSError:
        return None  # who reads it says why it cannot be read
    return None if length is None else published_reference(length)
