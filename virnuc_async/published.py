"""The published models: what their files are, where they are, and what is known of them."""

import hashlib
from pathlib import Path

from .references import Reference, published_reference

# The ids that git has for the files; nobody published another checksum of them.
CLASSIFIERS = {
    500: "fc35d5ef9f1f4564eea7036f34f4f8ec6000d33d",
    300: "a0b5b85e7c1e44f00cde146d091beb82b2c8e855",
}


def reference_for(classifier: Path) -> Reference | None:
    """Give what the published model gave whose *classifier* this is; None if it is another file."""
    lengths = {blob: length for length, blob in CLASSIFIERS.items()}
    try:
        length = lengths.get(git_blob(classifier))
    except OSError:
        return None  # who reads it says why it cannot be read
    return None if length is None else published_reference(length)


def git_blob(path: Path) -> str:
    """Give the id that git has for the content of *path*."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
