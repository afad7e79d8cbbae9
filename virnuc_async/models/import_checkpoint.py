"""Make a bundle from third-party checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from virnuc_async.errors import BadBundle, BadCheckpoint
from virnuc_async.fileio import (
    atomic_directory,
    create_new,
    link_or_copy,
    read_bounded,
    require_empty_directory,
    sha256,
)
from virnuc_async.networks.saving import save
from virnuc_async.networks.shapes import NucleotideShape, Shapes
from virnuc_async.sequences.tokens import OrfTokenizer

from .bundle import ENCODERS, MAX_TOKENIZER_SIZE, Bundle, find, write_manifest
from .checkpoint_formats import as_stacked, read_classifier, read_nucleotide, read_protein
from .checkpoints import tensor_files
from .reference import Reference, write_reference


@dataclass(frozen=True, slots=True)
class CheckpointPaths:
    """The checkpoint of each part of a bundle."""

    protein: Path
    nucleotide: Path
    classifier: Path
    addresses: Mapping[str, str] = field(default_factory=dict)  # by part, where it was downloaded


def import_bundle(
    paths: CheckpointPaths,
    directory: Path,
    name: str,
    length: int,
    reference: Reference | None = None,
    **more: str,
) -> Bundle:
    """
    Make a bundle called *name*, for fragments of *length* bases, in the new *directory*.

    *more* may contain ``licence`` and ``notice``.

    Raises:
        BadCheckpoint: a part is damaged, hostile, of an unknown format, or does not fit the others
        ForeignDirectoryError: *directory* exists and is not empty
    """
    require_empty_directory(directory)
    protein, protein_shape = read_protein(paths.protein)
    nucleotide, nucleotide_shape = read_nucleotide(paths.nucleotide)
    classifier, classifier_shape = read_classifier(paths.classifier)
    shapes = Shapes(protein_shape, nucleotide_shape, classifier_shape)
    _require_matching_widths(paths.classifier, shapes)
    tokenizer = _read_tokenizer(paths.nucleotide, nucleotide_shape)
    with atomic_directory(directory) as hidden:
        save(as_stacked(protein), hidden / "protein.safetensors")
        save(nucleotide, hidden / "nucleotide.safetensors")
        save(classifier, hidden / "classifier.safetensors")
        with create_new(hidden / "tokenizer.json") as file:
            file.write(tokenizer)
        if reference:
            write_reference(hidden, reference)
        write_manifest(hidden, name, length, shapes, _origins(paths), **more)
    return find(directory)


def import_classifier(
    path: Path,
    base: Bundle,
    directory: Path,
    name: str,
    length: int,
    reference: Reference | None = None,
    **more: str,
) -> Bundle:
    """
    Make a bundle of the encoders of *base* and the classifier at *path*, as ``import_bundle`` does.

    *more* may also contain the ``address`` that the classifier was downloaded from.

    Raises:
        BadCheckpoint: it is damaged, hostile, of an unknown format, or does not fit the encoders
        BadBundle: the encoders of *base* have changed since it was made
        ForeignDirectoryError: *directory* exists and is not empty
    """
    require_empty_directory(directory)
    require_empty_directory(directory)
    classifier, shape = read_classifier(path)
    shapes = replace(base.shapes, classifier=shape)
    _require_matching_widths(path, shapes)
    origin = {**base.origin, "classifier": _origin(path, more.get("address", ""))}
    with atomic_directory(directory) as hidden:
        for file in ENCODERS:
            link_or_copy(base.directory / file, hidden / file)
        save(classifier, hidden / "classifier.safetensors")
        if reference:
            write_reference(hidden, reference)
        made = write_manifest(hidden, name, length, shapes, origin, **more)
        for file in ENCODERS:
            if made.checksums[file] != base.checksums[file]:
                raise BadBundle(str(base.directory), f"{file} has changed or is damaged")
    return find(directory)


def _require_matching_widths(path: Path, shapes: Shapes) -> None:
    """Check that the classifier at *path* takes the embeddings; raise BadCheckpoint if not."""
    nucleotide, protein = shapes.nucleotide.width, shapes.protein.width
    if shapes.classifier.inputs != nucleotide + protein:
        embeddings = f"the embeddings have {nucleotide} + {protein} numbers"
        raise BadCheckpoint(str(path), f"it takes {shapes.classifier.inputs} numbers, but {embeddings}")


def _origins(paths: CheckpointPaths) -> dict[str, str]:
    """Return the file of each part by name and content, without the directory, which is private."""
    parts = {"protein": paths.protein, "nucleotide": paths.nucleotide, "classifier": paths.classifier}
    return {part: _origin(path, paths.addresses.get(part, "")) for part, path in parts.items()}


def _origin(path: Path, address: str) -> str:
    """Return the name, or *address*, and checksum of the file at *path*, or of the only one in it."""
    files = tensor_files(path)
    if len(files) != 1:
        return address or _printable(path.name)
    (file,) = files
    name = path.name if file == path else f"{path.name}/{file.name}"
    return f"{address or _printable(name)}, sha256 {sha256(file)}"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _read_tokenizer(directory: Path, shape: NucleotideShape) -> bytes:
    """Return the content of the tokenizer's file; raise BadCheckpoint if it does not fit the network."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise BadCheckpoint(str(directory), "there is no tokenizer.json in it")
    try:
        content = read_bounded(path, MAX_TOKENIZER_SIZE)
        vocabulary = OrfTokenizer(content.decode("utf-8")).vocabulary
    except (OSError, ValueError) as error:
        raise BadCheckpoint(str(path), str(error)) from error
    if vocabulary > shape.vocabulary:
        reason = f"it has {vocabulary} tokens, but the network {shape.vocabulary}"
        raise BadCheckpoint(str(path), reason)
    return content
