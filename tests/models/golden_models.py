"""The golden networks as published models, and the command that downloads them."""

import hashlib
from pathlib import Path

from running import Ran, run
from serving import Server

from virnuc_async.downloads.source import Source, git_blob
from virnuc_async.models.checkpoint_formats import read_protein
from virnuc_async.models.import_checkpoint import CheckpointPaths
from virnuc_async.models.published import Mirrors, ModelFiles
from virnuc_async.models.reference import published_reference


def golden_files(parts: CheckpointPaths, length: int, mirrors: Mirrors) -> ModelFiles:
    def source(official: str, name: str, path: Path) -> Source:
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        return mirrors.source(f"https://{official}", name, size=path.stat().st_size, sha256=checksum)

    names = ("config.json", "tokenizer.json", "pytorch_model.bin")
    protein = mirrors.source(
        "https://dl.fbaipublicfiles.com/fair-esm/models/esm2.pt",
        "esm2.pt",
        check=read_protein,
        max_size=1_000_000,
    )
    nucleotide = tuple(
        source(f"huggingface.co/x/{name}", f"DNABERT-S/{name}", parts.nucleotide / name) for name in names
    )
    classifier = mirrors.source(
        f"https://github.com/{length}.pth",
        f"{length}.pth",
        git_blob=git_blob(parts.classifier),
    )
    return ModelFiles(
        f"virnucpro-{length}", protein, nucleotide, classifier, length, published_reference(length)
    )


def download(server: Server, *more: str | Path) -> Ran:
    return run("models", "download", *more, "--mirror", server.url)


def requested_files(server: Server) -> list[str]:
    return [path.rsplit("/", 1)[1] for path, _ in server.requests]
