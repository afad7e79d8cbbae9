"""
A bundle: a directory with everything that is needed to score ORFs, without pickles.

``bundle.json`` lists the other files and their checksums: ``protein.safetensors``,
``nucleotide.safetensors``, ``classifier.safetensors``, ``tokenizer.json``; and ``reference.json``, if the
bundle has one. The directory may also contain a ``calibration.json`` and a ``contig_score.json``, which
change no score of an ORF.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from virnuc_async.errors import ANOTHER_CACHE, BadBundle, NoCacheDirectory, UnknownBundle
from virnuc_async.fileio import atomic_write, read_bounded, read_json, sha256, stat_signature, user_cache
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape, Shapes
from virnuc_async.sequences.tokens import OrfTokenizer
from virnuc_async.text import is_printable

from . import calibration, contig_score
from .calibration import CALIBRATION, Calibration
from .contig_score import CONTIG_SCORE, NO_PENALTY, ContigScore

PARTS = ("protein.safetensors", "nucleotide.safetensors", "classifier.safetensors", "tokenizer.json")
ENCODERS = ("protein.safetensors", "nucleotide.safetensors", "tokenizer.json")  # all but the classifier
REFERENCE = "reference.json"  # results of a trusted installation; not in every bundle
DEFAULT = "tiny-500"
PUBLISHED = ("virnucpro-500", "virnucpro-300")
# What git calls the files of the published classifiers, by their lengths: there is no other checksum.
CLASSIFIERS = {
    500: "fc35d5ef9f1f4564eea7036f34f4f8ec6000d33d",
    300: "a0b5b85e7c1e44f00cde146d091beb82b2c8e855",
}

_FORMAT = 1
_MAX_JSON_SIZE = 1 << 20  # bytes of a bundle.json, calibration.json or contig_score.json
MAX_TOKENIZER_SIZE = 1 << 24  # bytes; the published one has 170,000
_MAX_LAYERS, _MAX_DIMENSION = 1_000, 1 << 20
_SHIPPED = Path(__file__).parent

# Of the bundles that this process has checked: checksums and signatures of their files, by directory.
_checked: dict[Path, tuple[Mapping[str, str], Mapping[str, Any]]] = {}

Entry = TypeVar("Entry", Calibration, ContigScore)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk, as its ``bundle.json`` describes it."""

    directory: Path
    name: str
    length: int  # bases of the fragments that it was trained on
    shapes: Shapes
    checksums: Mapping[str, str]  # file name -> sha256
    origin: Mapping[str, str]  # the file that each part was made from
    licence: str = ""
    notice: str = ""  # shown to the user on every run
    penalty: float = NO_PENALTY  # of log_odds, for each fragment
    calibration: Calibration | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of what determines the scores: the parts and the fragment length."""
        parts = sorted((name, checksum) for name, checksum in self.checksums.items() if name in PARTS)
        identity = json.dumps([self.length, parts])
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def check(self, *names: str) -> None:
        """
        Check the checksums of the files *names*, or of all files.

        Raises:
            BadBundle: a file is missing, or has changed since the bundle was made
        """
        for name in names or self.checksums:
            try:
                found = sha256(self.directory / name)
            except OSError as error:
                raise BadBundle(str(self.directory), f"{name}: {error.strerror}") from error
            if found != self.checksums[name]:
                raise BadBundle(
                    str(self.directory), f"{name} has changed or is damaged (sha256 {found[:12]})"
                )

    def check_once(self) -> None:
        """
        Check all files as :meth:`check` does, unless this process has and none was written since.

        A process that does one run after the other would read gigabytes for each.
        """
        now = {name: _signature(self.directory / name) for name in self.checksums}
        if _checked.get(self.directory) != (self.checksums, now):
            self.check()
            _checked[self.directory] = (self.checksums, now)

    def signatures(self) -> dict[str, tuple[int, ...] | None]:
        """Return what changes when one of the files that decide the scores is written or replaced."""
        return {name: _signature(self.directory / name) for name in PARTS}

    def require_unchanged(self, before: Mapping[str, tuple[int, ...] | None]) -> None:
        """
        Check that the files are still those of *before*, so that what was checked is what was loaded.

        Raises:
            BadBundle: one was written or replaced
        """
        if changed := [name for name, signature in self.signatures().items() if signature != before[name]]:
            reason = f"{', '.join(changed)} changed while the model was loaded. Rerun the same command"
            raise BadBundle(str(self.directory), reason)

    def tokenizer(self) -> str:
        """
        Return the definition of the tokenizer for bases, as text.

        Raises:
            BadBundle: it is invalid, or does not fit the network of the bundle
        """
        try:
            text = read_bounded(self.directory / "tokenizer.json", MAX_TOKENIZER_SIZE).decode("utf-8")
            vocabulary = OrfTokenizer(text).vocabulary
        except (OSError, ValueError) as error:
            raise BadBundle(str(self.directory), f"tokenizer.json: {error}") from error
        if vocabulary > self.shapes.nucleotide.vocabulary:
            reason = f"{vocabulary} tokens, but the network {self.shapes.nucleotide.vocabulary}"
            raise BadBundle(str(self.directory), f"tokenizer.json: it has {reason}")
        return text


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        return stat_signature(str(path))
    except OSError:
        return None


def is_shipped(bundle: Bundle) -> bool:
    """Return whether *bundle* comes with the package, and is the same for all users."""
    return bundle.directory.resolve().parent == _SHIPPED.resolve()


def cache_directory(cache: Path | None = None) -> Path:
    """
    Return the directory of the installed bundles, in *cache* or the user's own cache.

    Raises:
        NoCacheDirectory: the user has no home directory
    """
    return (cache or user_cache()) / "models"


def known(cache: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Yield the name and directory of every installed bundle that can be seen, the default one first."""
    yield from _bundles_in(_SHIPPED)
    with suppress(NoCacheDirectory, OSError):
        yield from _bundles_in(cache_directory(cache))


def why_unseen(cache: Path | None = None) -> str:
    """Return why installed bundles cannot be seen, "" if they can."""
    try:
        deque(_bundles_in(cache_directory(cache)), 0)
    except NoCacheDirectory as error:
        return f"{error.reason}. {ANOTHER_CACHE}"
    except OSError as error:
        return f"{error.filename}: {error.strerror}. {ANOTHER_CACHE}"
    return ""


def _bundles_in(directory: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name and directory of every bundle in *directory*; raise OSError if it cannot be read."""
    if directory.is_dir():
        for path in sorted(directory.iterdir()):
            # A hidden one is being made or replaced.
            if path.name[0] != "." and (path / "bundle.json").is_file():
                yield path.name, path


def find(name: str | Path, cache: Path | None = None) -> Bundle:
    """
    Read the bundle called *name*, or the one in the directory *name*.

    Raises:
        UnknownBundle: there is neither
        BadBundle: its ``bundle.json`` is invalid
    """
    directory = dict(known(cache)).get(str(name), Path(name))
    # Not Path.is_file, which raises where a name is too long or a directory may not be entered.
    if not os.path.isfile(directory / "bundle.json"):
        installed = [name for name, _ in known(cache)]
        raise UnknownBundle(str(name), installed, PUBLISHED, why_unseen(cache))
    return _read(directory)


def write_manifest(
    directory: Path, name: str, length: int, shapes: Shapes, origin: Mapping[str, str], **more: str
) -> Bundle:
    """
    Write the ``bundle.json`` of the files in *directory*; return the bundle as it is read back.

    *more* may contain ``licence`` and ``notice``.
    """
    files = (*PARTS, REFERENCE) if (directory / REFERENCE).is_file() else PARTS
    checksums = {file: sha256(directory / file) for file in files}
    bundle = Bundle(directory, name, length, shapes, checksums, origin)
    return save_manifest(replace(bundle, licence=more.get("licence", ""), notice=more.get("notice", "")))


def save_manifest(bundle: Bundle) -> Bundle:
    """Write the ``bundle.json`` of *bundle*; return the bundle as it is read back."""
    texts = {"licence": bundle.licence, "notice": bundle.notice}
    manifest = {
        "format": _FORMAT,
        "name": bundle.name,
        "fragment_length": bundle.length,
        **{name: text for name, text in texts.items() if text},
        **asdict(bundle.shapes),
        "origin": dict(bundle.origin),
        "files": dict(bundle.checksums),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    # Atomic: at any moment there is either the old manifest or the new one.
    with atomic_write(bundle.directory / "bundle.json") as file:
        file.write(text.encode("utf-8"))
    return _read(bundle.directory)


def _read(directory: Path) -> Bundle:
    path = directory / "bundle.json"
    try:
        described = read_json(path, _MAX_JSON_SIZE)
        if described["format"] != _FORMAT:
            raise BadBundle(
                str(directory), f"its format is {described['format']!r:.99}, this program reads {_FORMAT}"
            )
        bundle = Bundle(
            directory=directory,
            name=_check_line("name", described["name"]),
            length=_check_number("fragment_length", described["fragment_length"]),
            shapes=_parse_shapes(described),
            checksums=_parse_checksums(described["files"]),
            origin={part: _check_line(part, text) for part, text in described.get("origin", {}).items()},
            licence=_check_line("licence", described.get("licence", "")),
            notice=_check_line("notice", described.get("notice", "")),
        )
        return _with_entries(bundle)
    except OSError as error:
        raise BadBundle(str(directory), f"bundle.json: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadBundle(str(directory), f"bundle.json: {error!r}") from error


def _with_entries(bundle: Bundle) -> Bundle:
    """Return *bundle* with what the optional files hold that change no score of an ORF."""
    score = _read_entry(bundle, CONTIG_SCORE, contig_score.read)
    penalty = score.penalty if score else NO_PENALTY
    fitted = _read_entry(bundle, CALIBRATION, calibration.read)
    if fitted and fitted.log_odds and fitted.log_odds.penalty != penalty:
        penalties = f"{fitted.log_odds.penalty:g} for each fragment, and now it is {penalty:g}"
        reason = f"{CALIBRATION} was fitted with a penalty of {penalties}. Run calibrate again, or remove it"
        raise BadBundle(str(bundle.directory), reason)
    return replace(bundle, penalty=penalty, calibration=fitted)


def _read_entry(bundle: Bundle, name: str, read: Callable[[Mapping[str, Any]], Entry]) -> Entry | None:
    """Return what *read* makes of the file *name* of *bundle*; None if there is none."""
    path = bundle.directory / name
    if not path.exists():
        return None
    try:
        found = read(read_json(path, _MAX_JSON_SIZE))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadBundle(str(bundle.directory), f"{name}: {error!r}") from error
    if found.of != bundle.fingerprint:
        raise BadBundle(str(bundle.directory), f"{name} was fitted for another bundle ({found.of:.99})")
    return found


def _parse_shapes(described: Mapping[str, Any]) -> Shapes:
    for part in ("protein", "nucleotide", "classifier"):
        for name, number in described[part].items():
            _check_number(name, number, float if name == "eps" else int)
    protein, nucleotide = ProteinShape(**described["protein"]), NucleotideShape(**described["nucleotide"])
    # Each head has an equal share of the width; ESM-2's rotary positions need an even share.
    if protein.width % (2 * protein.heads) or nucleotide.width % nucleotide.heads:
        raise ValueError("the heads cannot share the width")
    classifier = ClassifierShape(**described["classifier"])
    if classifier.inputs != nucleotide.width + protein.width:
        raise ValueError(f"the classifier's inputs are {classifier.inputs}, not the sum of both widths")
    return Shapes(protein, nucleotide, classifier)


def _check_line(name: str, text: Any) -> str:
    """Return *text*, which is untrusted, if it is safe to show on a terminal; raise ValueError if not."""
    if not is_printable(text):
        raise ValueError(f"{name} is {text!r:.99}")
    return text


def _parse_checksums(files: Mapping[str, str]) -> dict[str, str]:
    # Names are compared, not joined: an untrusted bundle cannot refer to files outside its directory.
    if set(files) - {REFERENCE} != set(PARTS):
        raise ValueError(f"it must describe {', '.join(PARTS)}, not {', '.join(files)}")
    return {name: _check_line(name, checksum) for name, checksum in files.items()}


def _check_number(name: str, number: Any, kind: type[int] | type[float] = int) -> Any:
    """Return *number* if it is a positive dimension of a network; raise ValueError if not."""
    # By type and not isinstance: true is an int. With a limit: a network of these dimensions is built
    # before any weight is read.
    limit = _MAX_LAYERS if name == "layers" else _MAX_DIMENSION
    if type(number) is not kind or not 0 < number <= limit:
        raise ValueError(f"{name} is {number!r:.99}")
    return number
