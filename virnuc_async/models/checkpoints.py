"""
Third-party checkpoint files, read safely: pickles, zip files, safetensors and ``config.json``.

Pickles are read with torch's restricted unpickler and an allow-list, which builds tensors and the few
named types; no code from a file is executed, and a file that asks for anything else is refused. A file
takes no more memory than it is large: what claims more is refused before it is allocated.

In a directory only the tensors' files, ``config.json`` and ``tokenizer.json`` are read, by these names:
files that an index names are not.
"""

import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from virnuc_async.errors import BadCheckpoint
from virnuc_async.fileio import check_zip, read_json

_MAX_PICKLES = 5  # in a file of torch before 1.6
_MAX_CONFIG_SIZE = 1 << 20  # bytes
_ZIP_MAGIC = b"PK\3\4"

# What damaged files were seen to make the readers raise.
_DAMAGED = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError),
    *(OSError, struct.error, SafetensorError, BadZipFile, MemoryError, OverflowError, RecursionError),
)


def read_values(path: Path) -> Any:
    """
    Read tensors and plain values that torch saved. Tensors stay in the file until they are used.

    Raises:
        BadCheckpoint: it is damaged, or contains something else too
    """
    return unpickle(path, [])


def unpickle(path: Path, allowed: list[Any]) -> Any:
    """
    Read a file that torch saved; *allowed* are the types that it may contain besides tensors.

    Raises:
        BadCheckpoint: it is damaged, or contains something else too
    """

    def read() -> Any:
        is_zip = _check_memory(path)
        # From a mapped file, a tensor is at most what the file contains of it. Otherwise torch would trust
        # the length in the pickle, and return what happens to follow the data in memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)

    # torch warns about an unknown file before it refuses it: the refusal is enough.
    with safe_globals(allowed), warnings.catch_warnings(action="ignore"):
        return _guarded_read(path, read)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """
    Read the tensors of a safetensors file, or of a Hugging Face directory.

    Raises:
        BadCheckpoint: there are none, or a file is damaged or contains something else
    """
    files = tensor_files(path)
    if not files:
        raise BadCheckpoint(str(path), "no *.safetensors and no pytorch_model*.bin in it")
    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= _guarded_read(file, partial(load_file, file))
        else:
            found = read_values(file)
            if not isinstance(found, dict):
                raise BadCheckpoint(str(file), "it contains no named tensors")
            tensors |= found
    return tensors


def tensor_files(path: Path) -> list[Path]:
    """Return the files with the tensors of *path*, which is one of them or a directory."""
    if not path.is_dir():
        return [path]
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))


def read_config(directory: Path, required: bool) -> dict[str, Any]:
    """
    Return the ``config.json`` of a Hugging Face directory; empty if it is missing and not *required*.

    Raises:
        BadCheckpoint: it is missing, not JSON, or without num_attention_heads
    """
    path = directory / "config.json"
    try:
        config = read_json(path, _MAX_CONFIG_SIZE)
    except FileNotFoundError as error:
        if not required:
            return {}
        raise BadCheckpoint(str(directory), "there is no config.json in it") from error
    except (OSError, ValueError) as error:
        raise BadCheckpoint(str(path), str(error)) from error
    if not isinstance(config, dict) or not isinstance(config.get("num_attention_heads"), int):
        raise BadCheckpoint(str(path), "it does not state num_attention_heads")
    return config


def check_storage(path: Path, tensors: Mapping[str, Any]) -> None:
    """
    Check that *tensors* are plain and no larger than their files: copies could take any memory.

    Raises:
        BadCheckpoint: they are not
    """
    size = 0
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not isinstance(name, str):
            raise BadCheckpoint(str(path), f"{name!r:.99} is not a tensor")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise BadCheckpoint(str(path), f"{name!r:.99} is not a plain tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise BadCheckpoint(str(path), f"{name!r:.99} claims more numbers than it has")
        size += tensor.numel() * tensor.element_size()
    # Twice: two tensors may share their data, as the first and last layer of some networks do.
    if size > 2 * sum(file.stat().st_size for file in tensor_files(path)):
        raise BadCheckpoint(str(path), "its tensors claim more numbers than it has")


def _check_memory(path: Path) -> bool:
    """
    Return whether *path* is a zip file, as torch writes since 1.6, and not a sequence of pickles.

    Raises:
        BadCheckpoint: it would take more memory than it is large
    """
    with open(path, "rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            file.seek(0)
            _reject_preallocation(path, file)
            return False
    try:
        members = check_zip(path)
    except ValueError as error:
        raise BadCheckpoint(str(path), str(error)) from error
    with ZipFile(path) as archive:
        for member in members:
            if member.filename.endswith("/data.pkl"):
                with archive.open(member) as program:
                    _reject_preallocation(path, program)
    return True


def _reject_preallocation(path: Path, program: IO[bytes]) -> None:
    """Refuse a pickle that allocates memory without data, which torch's own allow-list permits."""
    # genops reads and executes nothing. It may fail on what is not a pickle: torch reports that better.
    with suppress(ValueError, EOFError, struct.error, OverflowError):
        for code, argument, _ in chain.from_iterable(map(pickletools.genops, repeat(program, _MAX_PICKLES))):
            if code.name == "GLOBAL" and str(argument).endswith(" bytearray"):
                raise BadCheckpoint(str(path), _refusal_reason("GLOBAL bytearray"))


def _guarded_read(path: Path, read: Callable[[], Any]) -> Any:
    """Call *read*; translate what torch and safetensors raise about the file into BadCheckpoint."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise BadCheckpoint(str(path), "it is not a plain file")  # opening a pipe would wait
    try:
        return read()
    except pickle.UnpicklingError as error:
        raise BadCheckpoint(str(path), _refusal_reason(str(error))) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadCheckpoint(str(path), error.strerror or str(error)) from error
    except _DAMAGED as error:
        cause = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
        raise BadCheckpoint(str(path), f"damaged, or not a checkpoint ({cause})") from error


def _refusal_reason(text: str) -> str:
    """Return why a pickle is refused, from the *text* of torch's error."""
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it contains more than tensors ({found[1]}); no code from it was executed"
    return "damaged, or not a checkpoint; no code from it was executed"
