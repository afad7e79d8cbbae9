"""Parquet and lines of JSON: the same columns and values as the tables of text."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from running import predict, rows, run, some_reads, summary
from stored_runs import Record, ScoredOrf, store_run
from support import DATA, TABLES, fasta

from virnuc_async.errors import UsageError
from virnuc_async.outputs import formats
from virnuc_async.outputs.formats import COLUMNS, Kind, parquet_chunks
from virnuc_async.outputs.predictions import prediction_chunks
from virnuc_async.settings import Format, Settings

NAMES = {
    "predictions": "prediction_results.txt",
    "fragments": "fragments.tsv",
    "contigs": "contigs.tsv",
    "contig_calls": "contig_calls.tsv",
    "pairs": "pairs.tsv",
}
PARSE: dict[Kind, Callable[[str], Any]] = {
    Kind.TEXT: str,
    Kind.LABEL: str,
    Kind.BOOL: {"True": True, "False": False}.__getitem__,
    Kind.INTEGER: int,
    Kind.SINGLE: lambda text: float(np.float32(text)),
    Kind.DOUBLE: float,
}
ARROW = {Kind.TEXT: pyarrow.string(), Kind.LABEL: pyarrow.string(), Kind.BOOL: pyarrow.bool_()}
ARROW |= {Kind.INTEGER: pyarrow.int64(), Kind.SINGLE: pyarrow.float32(), Kind.DOUBLE: pyarrow.float64()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("inputs")
    for mate in "12":
        reads = {f"read{at}": letters for at, letters in enumerate(some_reads(5, 150, int(mate)).values())}
        (directory / f"a_R{mate}.fa").write_text(fasta(reads.items()))
    (directory / "none.fa").write_text(">short\nAC\n>é,\"'#\\\nGCAGCAGCA\n")
    return [*sorted(directory.iterdir()), DATA / "golden" / "upstream" / "input.fa"]


@pytest.fixture(scope="module")
def out(inputs: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("formats") / "out"
    assert predict(*inputs, out, "--calls", "--format", "jsonl,parquet,tsv").code == 0
    return out


def expected(path: Path) -> tuple[list[str], list[list[Any]]]:
    """Return the names and the values of a table of text; None is an empty number."""
    header, *lines = rows(path)
    kinds = [COLUMNS[name] for name in header]
    assert len(lines) > 1
    return header, [
        [
            PARSE[kind](text) if text or kind is Kind.TEXT else None
            for kind, text in zip(kinds, line, strict=True)
        ]
        for line in lines
    ]


@pytest.mark.parametrize(("name", "text"), NAMES.items())
def test_values_are_those_of_the_text(name: str, text: str, out: Path) -> None:
    header, values = expected(out / text)
    table = parquet.read_table(out / f"{name}.parquet")
    assert table.schema == pyarrow.schema([(column, ARROW[COLUMNS[column]]) for column in header])
    assert [list(row.values()) for row in table.to_pylist()] == values
    frame = pandas.read_parquet(out / f"{name}.parquet")
    assert list(frame.columns) == header
    assert [[none(value) for value in row] for row in frame.itertuples(index=False)] == values
    with duckdb.connect() as database:
        found = database.execute(f"SELECT * FROM '{out}/{name}.parquet'").fetchall()
        assert [list(row) for row in found] == values
    lines = (out / f"{name}.jsonl").read_text("ascii").splitlines()
    objects = [json.loads(line) for line in lines]
    assert [list(one) for one in objects] == [header] * len(values)
    singles = [COLUMNS[column] is Kind.SINGLE for column in header]
    assert [
        [
            float(np.float32(value)) if is_single and value is not None else value
            for value, is_single in zip(one.values(), singles, strict=True)
        ]
        for one in objects
    ] == values


def none(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def test_labels_are_dictionaries_and_windows_are_row_groups(tmp_path: Path) -> None:
    records = [Record(b"r%d" % at, (ScoredOrf(1, 0, 0.5, at / 9),)) for at in range(9)]
    with closing(store_run(tmp_path, records, size=2)) as store:
        content = b"".join(parquet_chunks(prediction_chunks(store.reader), True))
        again = b"".join(parquet_chunks(prediction_chunks(store.reader), True))
    assert content == again
    file = parquet.ParquetFile(pyarrow.BufferReader(content))
    groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
    assert len(groups) > 3
    assert sum(group.num_rows for group in groups) == 9
    encodings = {column.path_in_schema: column.encodings for column in map(groups[0].column, range(4))}
    assert "RLE_DICTIONARY" in encodings["Prediction"]
    assert "RLE_DICTIONARY" not in encodings["Sequence_ID"]
    assert groups[0].column(0).compression == "ZSTD"


def test_every_column_of_every_table_has_a_type(out: Path) -> None:
    for text in NAMES.values():
        assert set(rows(out / text)[0]) <= set(COLUMNS)


SCORES = [
    0.0,
    1.0,
    1e-5,
    9.9e-05,
    0.1,
    float(np.float32(1 / 3)),
    float(np.nextafter(np.float32(1), np.float32(0))),
]


def test_scores_are_exact(tmp_path: Path) -> None:
    orfs = tuple(ScoredOrf(1 + at, 0, score, 1 - score) for at, score in enumerate(SCORES))
    with closing(store_run(tmp_path, [Record(b"a", orfs)])) as store:
        content = b"".join(parquet_chunks(prediction_chunks(store.reader), True))
    found = parquet.read_table(pyarrow.BufferReader(content))
    assert found["score1"].to_pylist() == [float(np.float32(score)) for score in SCORES]
    assert found["score2"].to_pylist() == [float(np.float32(1 - score)) for score in SCORES]


IDS = [b"\xef\xbb\xbfmark", b"", b"\x00\x01", b'"quoted"', b"a,b;c", b"\\", b"#", b"NULL", b"\xff\xe9"]


def test_ids_of_any_bytes(tmp_path: Path) -> None:
    source = tmp_path / "a.fa"
    source.write_bytes(b"".join(b">%s\n%s\n" % (id, b"GCA" * 9) for id in IDS))
    assert predict(source, tmp_path / "out", "--format", "tsv,parquet,jsonl").code == 0
    ids = [
        line.split(b"\t")[0] for line in (tmp_path / "out" / "contigs.tsv").read_bytes().split(b"\n")[1:-1]
    ]
    assert ids == IDS
    table = parquet.read_table(tmp_path / "out" / "contigs.parquet")
    assert (table["contig"].type, table["file"].type) == (pyarrow.binary(), pyarrow.binary())
    assert table["contig"].to_pylist() == IDS
    lines = (tmp_path / "out" / "contigs.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["contig"].encode("utf-8", "surrogateescape") for line in lines] == IDS
    # With one id less, all are text.
    source.write_bytes(source.read_bytes().rpartition(b">")[0])
    assert predict(source, tmp_path / "text", "--format", "parquet").code == 0
    table = parquet.read_table(tmp_path / "text" / "contigs.parquet")
    assert table["contig"].to_pylist() == [id.decode() for id in IDS[:-1]]


def test_only_the_formats_that_are_asked_for(inputs: Sequence[Path], out: Path, tmp_path: Path) -> None:
    assert predict(*inputs, tmp_path / "out", "--calls", "--format", "parquet").code == 0
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{name}.parquet" for name in NAMES} <= made
    assert not made & {*TABLES, *(f"{name}.jsonl" for name in NAMES)}
    for name in NAMES:
        assert (tmp_path / "out" / f"{name}.parquet").read_bytes() == (out / f"{name}.parquet").read_bytes()
    assert summary(tmp_path / "out")["counts"] == summary(out)["counts"]
    assert "its files are unchanged" in predict(*inputs, tmp_path / "out", "--format", "parquet").err
    # What is there stays, and is as it should be.
    again = predict(*inputs, tmp_path / "out", "--threshold", 0.9)
    assert "formats: parquet -> tsv,parquet; threshold: 0.5 -> 0.9" in again.err
    _, values = expected(tmp_path / "out" / "contigs.tsv")
    table = parquet.read_table(tmp_path / "out" / "contigs.parquet")
    assert [list(row.values()) for row in table.to_pylist()] == values
    # Until it is not wanted.
    assert run("tables", tmp_path / "out", "--format", "tsv").code == 0
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_one_table_in_the_format_of_its_name(out: Path, tmp_path: Path) -> None:
    for name in ("contigs.parquet", "contigs.jsonl"):
        assert run("tables", out, "--table", "contigs", "--to", tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
    printed = run("tables", out, "--table", "contigs", "--format", "jsonl")
    assert printed.out == (out / "contigs.jsonl").read_text()
    assert run("tables", out, "--table", "contigs.jsonl").out == printed.out
    ended = run("tables", out, "--table", "failed_files.txt", "--format", "jsonl")
    assert (ended.code, ended.err) == (
        64,
        "virnuc-async: failed_files.txt is text, and has no other format\n",
    )
    assert "one table has one format" in run("tables", out, "--table", "pairs", "--format", "tsv,jsonl").err


def test_without_pyarrow(
    inputs: Sequence[Path], tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    message = "virnuc-async: Parquet needs pyarrow: pip install 'virnuc-async[parquet]'\n"
    assert predict(*inputs, tmp_path / "out", "--format", "parquet") == (64, "", message)
    assert not (tmp_path / "out").exists()
    assert run("tables", out, "--table", "contigs", "--format", "parquet") == (64, "", message)
    assert predict(*inputs, tmp_path / "out", "--format", "jsonl").code == 0


def test_formats_that_make_no_sense() -> None:
    for words, message in (
        ("--format tvs", "formats must be one of tsv, parquet, jsonl, not 'tvs'"),
        ("--format ,", "formats: name at least one of tsv, parquet, jsonl"),
    ):
        ended = run("predict", "a.fa", "out", *words.split())
        assert ended.code == 64
        assert message in ended.err
    assert Settings(formats=("jsonl", "tsv", "tsv")).formats == (Format.TSV, Format.JSONL)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        Settings(formats=())
