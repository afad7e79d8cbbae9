"""The text of each record, as it is in its file: whatever its line ends, in blocks of any size."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sequence_files import EACH_BLOCK
from support import wrapped
from test_line_ends import BASES, ENDS, IDS, RECORDS, WORDS, with_ends

from virnuc_async.sequences.fastx import FastxParser, Limits, first_word

MARK = b" MARK"


def texts(content: bytes, block: int = 1 << 18) -> list[tuple[bytes, ...]]:
    """Return the text of each record in its parts."""
    parser = FastxParser("-", io.BytesIO(content), lambda: False, first_word, Limits(block))
    return [parser.text for _ in parser.contigs()]


def marked(content: bytes, block: int = 1 << 18) -> bytes:
    """Return all records with a mark behind the text of each header."""
    return b"".join(MARK.join(parts) for parts in texts(content, block))


@EACH_BLOCK
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b">a\nAC\ngt\n\n>b x y\r\nAC\r\n>c", b">a MARK\nAC\ngt\n\n>b x y MARK\r\nAC\r\n>c MARK"),
        (b"\xef\xbb\xbf\n >a \nAC\n", b">a  MARK\nAC\n"),  # what is before the first record is of none
        (b">a\rAC\r>b\r\rGG", b">a MARK\rAC\r>b MARK\r\rGG"),
        (b">a x\rmore words\r\nACGT\r>b\nA", b">a x\rmore words MARK\r\nACGT\r>b MARK\nA"),
        (b">a\r\r\nAC\r\r\nGT\r\r\r\n>b\nA\r", b">a MARK\r\r\nAC\r\r\nGT\r\r\r\n>b MARK\nA\r"),
        (b">a\nA-.C \n", b">a MARK\nA-.C \n"),
        (b"@a x\nAC\n+\nII\n", b"@a x MARK\nAC\n+\nII\n"),
        (b"@a x\nAC\n+a x\n@I\n", b"@a x MARK\nAC\n+a x MARK\n@I\n"),
        (b"@a x\nAC\n+a\n@I\n", b"@a x MARK\nAC\n+a\n@I\n"),
        (
            b"@a\r\nAC\r\n+a\r\nII\r\n@b\r\n\r\n+\r\n",
            b"@a MARK\r\nAC\r\n+a MARK\r\nII\r\n@b MARK\r\n\r\n+\r\n",
        ),
        (b"@a\nAC\n+\nII\n\n\n\n\n@b\nAC\n+\nII", b"@a MARK\nAC\n+\nII\n@b MARK\nAC\n+\nII"),
        (b"@a\rAC\r+a\rII\r@b\rA\r+\rI\r", b"@a MARK\rAC\r+a MARK\rII\r@b MARK\rA\r+\rI\r"),
        (b"@a some\rmore\r\nAC\n+\nII\n@b\rG\n+\rI", b"@a some\rmore MARK\r\nAC\n+\nII\n@b MARK\rG\n+\rI"),
        (b"@\nA\n+\nI\n", b"@ MARK\nA\n+\nI\n"),
    ],
)
def test_examples(content: bytes, expected: bytes, block: int) -> None:
    assert marked(content, block) == expected


@given(RECORDS.filter(bool), st.integers(1, 70), ENDS, st.booleans(), st.integers(1, 40))
def test_fasta_with_any_line_ends(records, width, ends, ended, block) -> None:
    heads = [b">%s%s" % (id, words) for id, words, _ in records]
    letters = (wrapped(bases, width).encode() for _, _, bases in records)
    lines = [b"%s\n%s" % pair for pair in zip(heads, letters, strict=True)]
    content = with_ends(b"\n".join(lines) + b"\n" * ended, ends)
    found = texts(content, block)
    assert b"".join(map(b"".join, found)) == content
    assert [parts[0] for parts in found] == heads


@given(
    st.lists(st.tuples(IDS, WORDS, BASES.filter(bool), st.sampled_from([0, 1, 2])), min_size=1, max_size=8),
    ENDS,
    st.booleans(),
    st.integers(1, 40),
)
def test_fastq_with_any_line_ends(records, ends, ended, block) -> None:
    heads = [b"@%s%s" % (id, words) for id, words, _, _ in records]
    titles = [(b"", id, id + words)[choice] for id, words, _, choice in records]
    lines = [
        b"%s\n%s\n+%s\n%s" % (head, bases.encode(), title, b"I" * len(bases))
        for head, title, (_, _, bases, _) in zip(heads, titles, records, strict=True)
    ]
    content = with_ends(b"\n".join(lines) + b"\n" * ended, ends)
    found = texts(content, block)
    assert b"".join(map(b"".join, found)) == content
    assert [parts[0] for parts in found] == heads
    repeated = [title == head[1:] for head, title in zip(heads, titles, strict=True)]
    assert [len(parts) for parts in found] == [2 + is_repeated for is_repeated in repeated]
