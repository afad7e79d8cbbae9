"""
A bundle is a directory with everything that turns ORFs into scores, and no pickle.

``bundle.json`` names the other files and their checksums: ``protein.safetensors``,
``nucleotide.safetensors``, ``classifier.safetensors``, ``tokenizer.json``; and ``reference.json``, if the
bundle has one. A ``calibration.json`` may lie beside them, which changes no score.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from virnuc_async.errors import BadBundle, UnknownBundle
from virnuc_async.fileio import atomic_write, read_bounded, sha256
from virnuc_async.networks.shapes import ClassifierShape, NucleotideShape, ProteinShape
from virnuc_async.sequences.tokens import OrfTokenizer

from . import calibration
from .calibration import CALIBRATION, Calibration

PARTS = ("protein.safetensors", "nucleotide.safetensors", "classifier.safetensors", "tokenizer.json")
ENCODERS = ("protein.safetensors", "nucleotide.safetensors", "tokenizer.json")  # all but the classifier
REFERENCE = "reference.json"  # what the model gave where it was known to be right; not in every bundle
DEFAULT = "tiny-500"
PUBLISHED = ("virnucpro-500", "virnucpro-300")
HOW_TO_GET = "The published models are got with: models download NAME (docs/how-to/models.md)"

_FORMAT = 1
_LARGEST = 1 << 20  # bytes of a bundle.json
LARGEST_TOKENIZER = 1 << 24  # bytes; the published one has 170,000
_MOST = {"layers": 1_000}
_SHIPPED = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Shapes:
    """The dimensions of the three networks of a bundle."""

    protein: ProteinShape
    nucleotide: NucleotideShape
    classifier: ClassifierShape


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk, as its ``bundle.json`` describes it."""

    directory: Path
    name: str
    length: int  # of the fragments that it was trained on, in bases
    shapes: Shapes
    checksums: Mapping[str, str]  # file name -> sha256
    origin: Mapping[str, str]  # where each part came from
    licence: str = ""
    notice: str = ""  # what a user of this bundle should be told on every run
    calibration: Calibration | None = None

    @property
    def fingerprint(self) -> str:
        """What decides the scores: the parts and the fragment length, not names or places."""
        parts = sorted((name, checksum) for name, checksum in self.checksums.items() if name in PARTS)
        facts = json.dumps([self.length, parts])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def check(self, *names: str) -> None:
        """
        Compare the files *names*, or all of them, with their checksums; reads them.

        Raises:
            BadBundle: a file is missing or is not the one that the bundle was made with
        """
        for name in names or self.checksums:
            wanted = self.checksums[name]
            try:
                found = sha256(self.directory / name)
            except OSError as error:
                raise BadBundle(str(self.directory), f"{name}: {error.strerror}") from error
            if found != wanted:
                raise BadBundle(
                    str(self.directory), f"{name} has changed or is damaged (sha256 {found[:12]})"
                )

    def tokenizer(self) -> str:
        """
        Give the definition of the tokenizer for bases, as text.

        Raises:
            BadBundle: it is none, or not that of the network beside it
        """
        try:
            text = read_bounded(self.directory / "tokenizer.json", LARGEST_TOKENIZER).decode("utf-8")
            vocabulary = OrfTokenizer(text).vocabulary
        except (OSError, ValueError) as error:
            raise BadBundle(str(self.directory), f"tokenizer.json: {error}") from error
        if vocabulary > self.shapes.nucleotide.vocabulary:
            reason = f"{vocabulary} tokens, the network {self.shapes.nucleotide.vocabulary}"
            raise BadBundle(str(self.directory), f"tokenizer.json: it has {reason}")
        return text


def is_shipped(bundle: Bundle) -> bool:
    """Whether *bundle* is one of the package's own, which are the same for all of its users."""
    return bundle.directory.resolve().parent == _SHIPPED.resolve()


def cache_directory(cache: Path | None = None) -> Path:
    """Where bundles are looked for by name, beside the shipped ones: below *cache*, or the user's own."""
    return (cache or user_cache_path("virnuc-async")) / "models"


def known(cache: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Give the name and directory of every bundle installed here, the default one first."""
    for place in (_SHIPPED, cache_directory(cache)):
        if place.is_dir():
            for path in sorted(place.iterdir()):
                # A hidden one is being made, or being replaced.
                if path.name[0] != "." and (path / "bundle.json").is_file():
                    yield path.name, path


def find(name: str | Path, cache: Path | None = None) -> Bundle:
    """
    Read the bundle called *name*, or the one in the directory *name*.

    Raises:
        UnknownBundle: there is neither
        BadBundle: there is, but its description cannot be read
    """
    directory = dict(known(cache)).get(str(name), Path(name))
    if not (directory / "bundle.json").is_file():
        hint = f"Get it with: models download {name}" if str(name) in PUBLISHED else ""
        raise UnknownBundle(str(name), [name for name, _ in known(cache)], hint)
    return _read(directory)


def write_manifest(
    directory: Path, name: str, length: int, shapes: Shapes, origin: Mapping[str, str], **more: str
) -> Bundle:
    """
    Describe the finished files in *directory* in its ``bundle.json``, and read it back.

    *more* may hold ``licence`` and ``notice``.
    """
    files = (*PARTS, REFERENCE) if (directory / REFERENCE).is_file() else PARTS
    checksums = {file: sha256(directory / file) for file in files}
    bundle = Bundle(directory, name, length, shapes, checksums, origin)
    licence, notice = (more.get(word, "") for word in ("licence", "notice"))
    return save_manifest(replace(bundle, licence=licence, notice=notice))


def save_manifest(bundle: Bundle) -> Bundle:
    """Write the ``bundle.json`` of *bundle*, and read it back."""
    words = {"licence": bundle.licence, "notice": bundle.notice}
    described = {
        "format": _FORMAT,
        "name": bundle.name,
        "fragment_length": bundle.length,
        **{name: text for name, text in words.items() if text},
        **asdict(bundle.shapes),
        "origin": dict(bundle.origin),
        "files": dict(bundle.checksums),
    }
    text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
    # The old description is there until the new one is, whatever happens meanwhile.
    with atomic_write(bundle.directory / "bundle.json") as file:
        file.write(text.encode("utf-8"))
    return _read(bundle.directory)


def _read(directory: Path) -> Bundle:
    path = directory / "bundle.json"
    try:
        described = json.loads(read_bounded(path, _LARGEST))
        if described["format"] != _FORMAT:
            raise BadBundle(
                str(directory), f"its format is {described['format']!r:.99}, this program reads {_FORMAT}"
            )
        bundle = Bundle(
            directory=directory,
            name=_words("name", described["name"]),
            length=_positive("fragment_length", described["fragment_length"]),
            shapes=_shapes(described),
            checksums=_checksums(described["files"]),
            origin={part: _words(part, place) for part, place in described.get("origin", {}).items()},
            licence=_words("licence", described.get("licence", "")),
            notice=_words("notice", described.get("notice", "")),
        )
        return replace(bundle, calibration=_calibration(bundle))
    except OSError as error:
        raise BadBundle(str(directory), f"bundle.json: {error.strerror}") from error
    # RecursionError: lists in lists, thousands deep.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadBundle(str(directory), f"bundle.json: {error!r}") from error


def _calibration(bundle: Bundle) -> Calibration | None:
    path = bundle.directory / CALIBRATION
    if not path.exists():
        return None
    try:
        found = calibration.read(json.loads(read_bounded(path, _LARGEST)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadBundle(str(bundle.directory), f"{CALIBRATION}: {error!r}") from error
    if found.of != bundle.fingerprint:
        raise BadBundle(str(bundle.directory), f"{CALIBRATION} is of another classifier ({found.of:.99})")
    return found


def _shapes(described: Mapping[str, Any]) -> Shapes:
    for part in ("protein", "nucleotide", "classifier"):
        for name, number in described[part].items():
            _positive(name, number, float if name == "eps" else int)
    protein, nucleotide = ProteinShape(**described["protein"]), NucleotideShape(**described["nucleotide"])
    # Each head has an equal share of the width; ESM-2's rotary positions want an even one.
    if protein.width % (2 * protein.heads) or nucleotide.width % nucleotide.heads:
        raise ValueError("the heads cannot share the width")
    classifier = ClassifierShape(**described["classifier"])
    if classifier.inputs != nucleotide.width + protein.width:
        raise ValueError(f"the classifier's inputs are {classifier.inputs}, not both widths")
    return Shapes(protein, nucleotide, classifier)


def _words(name: str, text: Any) -> str:
    """Give *text* if a terminal can show it: it may come from anybody."""
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError(f"{name} is {text!r:.99}")
    return text


def _checksums(files: Mapping[str, str]) -> dict[str, str]:
    # Names are compared, not joined: a bundle from elsewhere cannot point outside itself.
    if set(files) - {REFERENCE} != set(PARTS):
        raise ValueError(f"it must describe {', '.join(PARTS)}, not {', '.join(files)}")
    return {name: _words(name, checksum) for name, checksum in files.items()}


def _positive(name: str, number: Any, kind: type[int] | type[float] = int) -> Any:
    # By type and not isinstance: true is an int. Not beyond reason: a network is built by these
    # numbers before a single weight is read.
    if type(number) is not kind or not 0 < number <= _MOST.get(name, 1 << 20):
        raise ValueError(f"{name} is {number!r:.99}")
    return number
