"""Numbers in tables: the shortest decimals that are read back as the same float32."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_runs import Record, ScoredOrf, store_run, table_lines

from virnuc_async.outputs.columns import float_column
from virnuc_async.outputs.predictions import prediction_chunks


def score_texts(numbers: np.ndarray, directory: Path) -> list[str]:
    """Return the text of *numbers* as scores in prediction_results.txt."""
    pairs = enumerate(zip(numbers[::2].tolist(), numbers[1::2].tolist(), strict=True), start=1)
    store = store_run(directory, [Record(b"c", tuple(ScoredOrf(n, 0, *pair) for n, pair in pairs))])
    rows = [row.decode().rstrip("\n").split("\t") for row in table_lines(prediction_chunks(store.reader))[1:]]
    store.close()
    return [text for row in rows for text in row[2:]]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=30))
def test_every_float32_is_formatted_like_str(bits: list[int]) -> None:
    numbers = np.array(bits, np.uint32).view(np.float32)
    texts = [row.tobytes().translate(None, b"\r").decode() for row in float_column(numbers)]
    assert texts == list(map(str, numbers))


def test_probabilities_are_formatted_like_str(tmp_path: Path) -> None:
    first, last = np.array([0.9e-4, 1], np.float32).view(np.int32)
    sample = np.arange(first, last, 2003, dtype=np.int32)
    numbers = np.concatenate([sample, last - np.arange(1000, dtype=np.int32)]).view(np.float32)
    numbers = numbers[: len(numbers) // 2 * 2]
    assert score_texts(numbers, tmp_path) == list(map(str, numbers))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.1, "0.1"),
        (1 / 3, "0.33333334"),
        (0.0001, "1e-04"),
        (0.00001, "1e-05"),
        (1.2345678e-05, "1.2345678e-05"),
        (1.0, "1.0"),
        (0.0, "0.0"),
        (1 - 2**-24, "0.99999994"),
        (1e-45, "1e-45"),
        (0.037826713, "0.037826713"),
    ],
)
def test_decimals_are_the_shortest_that_are_read_back_as_the_number(
    number: float, text: str, tmp_path: Path
) -> None:
    store = store_run(tmp_path, [Record(b"c", (ScoredOrf(1, 0, number, 1.0),))])
    _, row = table_lines(prediction_chunks(store.reader))
    assert row.decode("latin-1").split("\t")[2] == text == str(np.float32(number))
    store.close()
