"""
Tables in other formats than text: Parquet and lines of JSON, made of the lines of the text.

They have the same columns and the same values: numbers are read as they are printed, which for a float32 is
exact. A chunk of the text, about a window of the run, is one row group, and all that is in memory.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from virnuc_async.errors import UsageError
from virnuc_async.settings import Format

from .columns import Chunks


class Kind(StrEnum):
    """What the values of a column are, in the words of Arrow."""

    TEXT = "string"  # binary, in Parquet, if an id or a path of the run is not UTF-8
    LABEL = "label"  # text with few different values
    BOOL = "bool"
    INTEGER = "int64"
    SINGLE = "float"
    DOUBLE = "double"


COLUMNS: dict[str, Kind] = {
    **dict.fromkeys(("Sequence_ID", "Modified_ID", "ID", "pair"), Kind.TEXT),
    **dict.fromkeys(("contig", "file", "file_1", "file_2"), Kind.LABEL),
    **dict.fromkeys(("Prediction", "verdict", "best_frame", "call", "tier"), Kind.LABEL),
    "Is_Virus": Kind.BOOL,
    **dict.fromkeys(("length", "length_1", "length_2"), Kind.INTEGER),
    **dict.fromkeys(("fragment", "start", "end", "frames"), Kind.INTEGER),
    **dict.fromkeys(("fragments", "fragments_with_orf", "viral_fragments"), Kind.INTEGER),
    **dict.fromkeys(("n_chunks", "n_confident_viral", "n_confident_nonviral", "n_ambiguous"), Kind.INTEGER),
    **dict.fromkeys(("score1", "score2", "max_score_0", "max_score_1"), Kind.SINGLE),
    **dict.fromkeys(("viral_fraction", "mean_p_virus", "max_p_virus"), Kind.SINGLE),
    **dict.fromkeys(("p_virus_calibrated", "q"), Kind.SINGLE),
    **dict.fromkeys(("log_odds", "weighted_delta"), Kind.DOUBLE),
    **dict.fromkeys(("viral_proportion", "nonviral_proportion"), Kind.DOUBLE),
}

_NUMBERS = (Kind.INTEGER, Kind.SINGLE, Kind.DOUBLE)
_BOOLS = {b"True": b"true", b"False": b"false"}


def require_formats(formats: tuple[Format, ...]) -> None:
    """
    Check that files of these *formats* can be written.

    Raises:
        UsageError: an optional dependency is missing
    """
    if Format.PARQUET in formats and find_spec("pyarrow") is None:
        raise UsageError("Parquet needs pyarrow: pip install 'virnuc-async[parquet]'")


def format_of(name: str) -> Format:
    """Return the format that a file's *name* stands for; text if it stands for no other."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    return next((format for format in Format if plain.endswith(f".{format}")), Format.TSV)


def jsonl_chunks(text: Chunks) -> Chunks:
    """Yield the table *text* as a JSON object a line: its column names and values."""
    with closing(text):
        names = _column_names(next(text))
        write = [_json_writer(COLUMNS[name]) for name in names]
        keys = [b'%s"%s": ' % (b", " if at else b"{", name.encode()) for at, name in enumerate(names)]
        for chunk in text:
            yield b"".join(_json_lines(chunk, keys, write))


def _json_lines(chunk: bytes, keys: list[bytes], write: list[Callable[[bytes], bytes]]) -> Iterator[bytes]:
    for line in chunk.split(b"\n")[:-1]:
        for key, value, to_json in zip(keys, line.split(b"\t"), write, strict=True):
            yield key
            yield to_json(value)
        yield b"}\n"


def _json_writer(kind: Kind) -> Callable[[bytes], bytes]:
    """Return what makes JSON of a value; a number is written as it is printed in the text."""
    if kind is Kind.BOOL:
        return _BOOLS.__getitem__
    return (lambda value: value or b"null") if kind in _NUMBERS else _json_text


def _json_text(value: bytes) -> bytes:
    return json.dumps(value.decode("utf-8", "surrogateescape")).encode()


def parquet_chunks(text: Chunks, is_utf8: bool) -> Chunks:
    """
    Yield the table *text* as Parquet, a row group for each chunk of it.

    Columns of text are strings if all text of the run *is_utf8*, else they are binary.
    """
    arrow, csv, parquet = map(import_module, ("pyarrow", "pyarrow.csv", "pyarrow.parquet"))
    with closing(text):
        names = _column_names(next(text))
        schema = arrow.schema([(name, _arrow_type(arrow, COLUMNS[name], is_utf8)) for name in names])
        labels = [name for name in names if COLUMNS[name] is Kind.LABEL]
        file = _Collected()
        with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=labels) as writer:
            for chunk in text:
                writer.write_table(_arrow_table(csv, chunk, schema))
                yield file.take()
        yield file.take()


def _arrow_type(arrow: Any, kind: Kind, is_utf8: bool) -> Any:
    if kind in (Kind.TEXT, Kind.LABEL):
        return arrow.string() if is_utf8 else arrow.binary()
    return arrow.type_for_alias(kind)


def _arrow_table(csv: Any, chunk: bytes, schema: Any) -> Any:
    return csv.read_csv(
        # A line before the first: an id may begin with what would be a byte order mark.
        io.BytesIO(b"\n" + chunk),
        # In one block: what a chunk has fits into memory, and a line may be longer than any block.
        csv.ReadOptions(use_threads=False, block_size=len(chunk) + 2, column_names=schema.names, skip_rows=1),
        csv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
        csv.ConvertOptions(
            column_types=schema,
            null_values=[""],
            strings_can_be_null=False,
            true_values=["True"],
            false_values=["False"],
        ),
    )


def _column_names(header: bytes) -> list[str]:
    return header.decode().rstrip("\n").split("\t")


class _Collected(io.RawIOBase):
    """A file whose bytes are taken out while it is written."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, content: Any, /) -> int:
        """Add *content*."""
        self._parts.append(bytes(content))
        self._size += len(self._parts[-1])
        return len(self._parts[-1])

    def tell(self) -> int:
        """Return how much was written."""
        return self._size

    def take(self) -> bytes:
        """Return what was written since the last time."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content
