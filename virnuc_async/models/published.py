"""
The published models: their files, where to download them, and how they are checked.

No checksum was published for ESM-2's files. They are checked by the size that the server states, the
checksums inside torch's files, and the names and shapes of their tensors. The bundle records the sha256
of each downloaded file, so that another model with the same encoders can reuse them.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from virnuc_async.errors import BadBundle, BadCheckpoint, DownloadBusy, UsageError
from virnuc_async.fileio import (
    atomic_directory,
    link_or_copy,
    read_json,
    remove_leftovers,
    require_empty_directory,
)
from virnuc_async.networks.shapes import ClassifierShape, ProteinShape
from virnuc_async.text import did_you_mean

from .bundle import CLASSIFIERS, ENCODERS, Bundle, find
from .checkpoint_formats import ESM2_HEADS, read_protein
from .import_checkpoint import CheckpointPaths, import_bundle, import_classifier
from .reference import Reference, published_reference

HUB = "https://huggingface.co"
LICENCE = "ESM-2: MIT; DNABERT-S: Apache-2.0; classifier: see github.com/Li-Jing-1997/VirNucPro"

ESM2 = {
    "esm2_t6_8M_UR50D": (6, 320),
    "esm2_t12_35M_UR50D": (12, 480),
    "esm2_t30_150M_UR50D": (30, 640),
    "esm2_t33_650M_UR50D": (33, 1280),
    "esm2_t36_3B_UR50D": (36, 2560),
    "esm2_t48_15B_UR50D": (48, 5120),
}

_ESM2_URL = "https://dl.fbaipublicfiles.com/fair-esm/models"
_CLASSIFIERS_URL = "https://github.com/Li-Jing-1997/VirNucPro/raw/HEAD"
_MAX_CONFIG_SIZE = 1 << 20  # bytes
_CLASSIFIER = ClassifierShape(inputs=3328, hidden=512)
_OVERHEAD = 1 << 24  # bytes of a checkpoint besides its weights: names, settings
_MIRROR_SUFFIX = " by a mirror"
_DNABERT_S = "DNABERT-S"
_DNABERT_S_CONFIG = {"num_attention_heads": 12, "hidden_size": 768, "num_hidden_layers": 12}
_DNABERT_S_PATH = "zhihan1996/DNABERT-S/resolve/00e47f96cdea35e4b6f5df89e5419cbe47d490c6"


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The servers to download from instead of the official ones."""

    hub: str = ""  # instead of Hugging Face, as HF_ENDPOINT in other programs
    mirror: str = ""  # has every file under its official host and path, as wget -x saves them

    def __post_init__(self) -> None:
        for url in filter(None, (self.hub, self.mirror)):
            if not url.startswith(("http://", "https://")):
                raise UsageError(f"a mirror begins with https:// or http://, unlike {url!r}")

    def url(self, official: str) -> str:
        """Return the address to download the file from whose address is *official*."""
        if self.hub and official.startswith(HUB):
            return self.hub.rstrip("/") + official.removeprefix(HUB)
        if self.mirror:
            return f"{self.mirror.rstrip('/')}/{official.removeprefix('https://')}"
        return official

    def source(self, official: str, name: str, **facts: Any) -> Source:
        """Return the file called *name* whose address is *official*; *facts* are for its checks."""
        url = self.url(official)
        origin = official if url == official else official + _MIRROR_SUFFIX
        return Source(url, name, origin=origin, **facts)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model; without a classifier, the encoders to train one on."""

    name: str
    protein: Source
    nucleotide: tuple[Source, ...]  # in one directory
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


def published_model(length: int, mirrors: Mirrors) -> ModelFiles:
    """Return the files of the published model for fragments of *length* bases."""
    name = f"{length}_model.pth"
    facts = {"git_blob": CLASSIFIERS[length], "max_size": _max_size(_CLASSIFIER.parameters)}
    classifier = mirrors.source(f"{_CLASSIFIERS_URL}/{name}", name, **facts)
    encoders, reference = published_encoders("esm2_t36_3B_UR50D", mirrors), published_reference(length)
    return ModelFiles(
        f"virnucpro-{length}", encoders.protein, encoders.nucleotide, classifier, length, reference
    )


# Of each model, the function that returns its files.
MODELS: dict[str, Callable[[Mirrors], ModelFiles]] = {
    "virnucpro-500": partial(published_model, 500),
    "virnucpro-300": partial(published_model, 300),
}


def published_encoders(protein: str, mirrors: Mirrors) -> ModelFiles:
    """
    Return the files of the ESM-2 called *protein*, and of DNABERT-S.

    Raises:
        UsageError: there is no such ESM-2
    """
    if protein not in ESM2:
        hint = did_you_mean(protein, ESM2)
        raise UsageError(f"no ESM-2 is called {protein!r}.{hint} There are: {', '.join(ESM2)}")
    shape = ProteinShape(*ESM2[protein], ESM2_HEADS[ESM2[protein]])
    facts = {"check": partial(_check_esm2, shape), "max_size": _max_size(shape.parameters)}
    source = mirrors.source(f"{_ESM2_URL}/{protein}.pt", f"{protein}.pt", **facts)
    return ModelFiles(protein, source, tuple(_dnabert_s(mirrors)))


def _max_size(parameters: int) -> int:
    """Return the largest size of a checkpoint: four bytes per weight, and a quarter for other tensors."""
    return 5 * parameters + _OVERHEAD


def _dnabert_s(mirrors: Mirrors) -> Iterator[Source]:
    config, tokenizer, weights = (
        (f"{HUB}/{_DNABERT_S_PATH}/{name}", f"{_DNABERT_S}/{name}")
        for name in ("config.json", "tokenizer.json", "pytorch_model.bin")
    )
    yield mirrors.source(*config, check=_check_dnabert_s, max_size=_MAX_CONFIG_SIZE)
    checksum = "667f5a0e6e9630f7052b004784dda7c7aeba395cc4ca3c01b11b02e6aa29d7b1"
    yield mirrors.source(*tokenizer, size=168_203, sha256=checksum)
    checksum = "f3cfc3d0541859df64759e758cc4bc40fe1d5760799a7d098a9f9f09501c1e5f"
    yield mirrors.source(*weights, size=468_320_053, sha256=checksum)


def _check_esm2(expected: ProteinShape, path: Path) -> None:
    _, shape = read_protein(path)
    if shape != expected:
        reason = f"an ESM-2 of {shape.layers} layers of {shape.width}, {shape.heads} heads"
        raise BadCheckpoint(str(path), f"it is {reason}")


def _check_dnabert_s(path: Path) -> None:
    """Check the settings that are used of ``config.json``; raise BadCheckpoint if they are others."""
    try:
        config = read_json(path, _MAX_CONFIG_SIZE)
        is_right = all(config[name] == value for name, value in _DNABERT_S_CONFIG.items())
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(str(path), f"not the configuration of a network ({error!r:.99})") from error
    if not is_right:
        raise BadCheckpoint(str(path), "not the configuration of DNABERT-S")


def download(
    targets: Mapping[Path, ModelFiles],
    cache: Path | None,
    on_progress: ProgressCallback,
    report_status: Callable[[str], object],
    options: FetchOptions = DEFAULT_OPTIONS,
) -> None:
    """
    Download and check the models *targets*, by directory; the directories have the same parent.

    Files that several models need are downloaded once; files from earlier downloads, next to *targets* or
    in *cache* if there is one, are reused if they pass their checks.

    Raises:
        DownloadError: a file could not be downloaded; received data is kept
        BadCheckpoint: a file is the published one, but cannot be imported
        BadBundle, ForeignDirectoryError: a target exists and is damaged, or something else
        CannotWrite: the disk is full, or cannot be written to
    """
    parent = next(iter(targets)).parent
    for line in remove_leftovers(parent):
        report_status(line)
    work = parent / ".download"
    missing = _missing(targets, report_status)
    if not missing:
        _clear(work, targets.values())
        return
    with exclusive_lock(work):
        # The process that had the lock before may have made one meanwhile.
        missing = _missing(missing, report_status)
        caches = [] if cache is None else [cache]
        models = (parent, *(cache / "models" for cache in caches))
        base = _find_base(missing.values(), models, report_status)
        bases = [base] if base else []
        encoders = (parent, *(cache / "encoders" for cache in caches))
        local = [directory / name for directory in encoders for name in ESM2]
        missing = {
            target: files if _base(files, bases) else _with_local_encoders(files, local, work, report_status)
            for target, files in missing.items()
        }
        sources = {source.name: source for files in missing.values() for source in _needed(files, bases)}
        if sources:
            report_status("")  # the progress shows the rest
            fetch_all(list(sources.values()), work, on_progress, options)
        for target, files in missing.items():
            report_status(f"{files.name}: writing to {target}")
            bases += _make(target, files, work, bases)
        _remove_received(work, sources)


def _clear(work: Path, made: Iterable[ModelFiles]) -> None:
    """Remove what a process that was killed after it had *made* these models left in *work*."""
    with suppress(DownloadBusy, OSError):
        if work.is_dir():
            with exclusive_lock(work):
                _remove_received(work, [source.name for files in made for source in files.sources])


def _remove_received(work: Path, names: Iterable[str]) -> None:
    """Remove the files *names* from *work*, and *work* itself if nothing of another model is in it."""
    for name in names:
        (work / name).unlink(missing_ok=True)
    if not any(path.is_file() for path in work.rglob("*") if path != work / "lock"):
        shutil.rmtree(work)


def _missing(
    targets: Mapping[Path, ModelFiles], report_status: Callable[[str], object]
) -> dict[Path, ModelFiles]:
    return {target: files for target, files in targets.items() if not _is_present(target, report_status)}


def _is_present(target: Path, report_status: Callable[[str], object]) -> bool:
    """Return whether *target* exists; then it is complete, since it is created atomically."""
    if not target.exists():
        require_empty_directory(target)  # which a link that leads nowhere is not
        return False
    if target.is_dir() and not any(target.iterdir()):
        return False
    if (target / "bundle.json").is_file():
        report_status(f"{target} exists: checking its files")
        find(target).check()
    elif not (target / _DNABERT_S).is_dir():
        require_empty_directory(target)
    return True


def _find_base(
    missing: Iterable[ModelFiles], parents: Iterable[Path], report_status: Callable[[str], object]
) -> Bundle | None:
    """Return a model from an earlier download whose encoders a *missing* model needs, after checking them."""
    for directory in dict.fromkeys(parent / name for parent in parents for name in MODELS):
        try:
            base = find(directory) if os.path.isfile(directory / "bundle.json") else None
            if base and (names := [files.name for files in missing if _has_encoders(base, files)]):
                source = f"the encoders are taken from {directory} after a check"
                report_status(f"{' and '.join(names)}: only the classifier is downloaded, {source}")
                base.check(*ENCODERS)
                return base
        except BadBundle as failure:
            report_status(f"{failure}. It is not used")
    return None


def _has_encoders(base: Bundle, files: ModelFiles) -> bool:
    """Return whether the encoders of *base* were made from those of *files*, as it states itself."""
    if files.classifier is None:
        return False
    address, _, _ = base.origin.get("protein", "").partition(", sha256 ")
    # A file from an official server can be used instead of a mirror's, but not the other way around.
    official = files.protein.origin.removesuffix(_MIRROR_SUFFIX)
    return (
        address in (official, files.protein.origin)
        and base.origin.get("nucleotide", "").endswith(f", sha256 {files.weights.sha256}")
        and base.checksums["tokenizer.json"] == files.tokenizer.sha256
    )


def _base(files: ModelFiles, bases: Iterable[Bundle]) -> Bundle | None:
    return next((base for base in bases if _has_encoders(base, files)), None)


def _needed(files: ModelFiles, bases: Iterable[Bundle]) -> tuple[Source, ...]:
    """Return the files to download if the encoders of *bases* can be reused."""
    return (files.classifier,) if files.classifier and _base(files, bases) else files.sources


def _with_local_encoders(
    files: ModelFiles, directories: Iterable[Path], work: Path, report_status: Callable[[str], object]
) -> ModelFiles:
    """Link encoders from earlier downloads into *work*, where existing files are checked."""
    for directory in directories:
        found = [source.name for source in files.sources if os.path.isfile(directory / source.name)]
        new = [name for name in found if not (work / name).exists()]
        for name in new:
            (work / name).parent.mkdir(exist_ok=True)
            link_or_copy(directory / name, work / name)
        if new:
            report_status(f"{files.name}: using {', '.join(new)} from {directory} after a check")
        if files.protein.name in found:
            # Its address was not recorded, and it has no published checksum that would prove it.
            files = replace(files, protein=replace(files.protein, origin=files.protein.name))
    return files


def _make(target: Path, files: ModelFiles, work: Path, bases: Iterable[Bundle]) -> Sequence[Bundle]:
    """Make the model, or the directory of encoders, from the files in *work*; return the model."""
    if files.classifier is None:
        with atomic_directory(target) as hidden:
            for source in files.sources:
                (hidden / source.name).parent.mkdir(exist_ok=True)
                link_or_copy(work / source.name, hidden / source.name)
        return ()
    classifier, facts = work / files.classifier.name, (files.name, files.length, files.reference)
    if base := _base(files, bases):
        address = files.classifier.origin
        return (import_classifier(classifier, base, target, *facts, licence=LICENCE, address=address),)
    addresses = {
        "protein": files.protein.origin,
        "nucleotide": files.weights.origin,
        "classifier": files.classifier.origin,
    }
    nucleotide = (work / files.weights.name).parent
    paths = CheckpointPaths(work / files.protein.name, nucleotide, classifier, addresses)
    return (import_bundle(paths, target, *facts, licence=LICENCE),)


def reference_for(classifier: Path) -> Reference | None:
    """Return the reference of the published model with this *classifier*; None for any other file."""
    lengths = {blob: length for length, blob in CLASSIFIERS.items()}
    try:
        length = lengths.get(git_blob(classifier))
    except OSError:
        return None  # reading the classifier reports the error
    return None if length is None else published_reference(length)
