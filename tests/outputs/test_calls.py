"""The table of calls, compared with a slow and simple reading of the table of fragments."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import predict, run, tables
from stored_runs import LENGTH, Record, ScoredOrf, store_run, table_lines
from support import DATA, read_table

from virnuc_async.errors import UsageError
from virnuc_async.outputs.calls import COLUMNS, call_chunks, natural_key
from virnuc_async.outputs.fragments import fragment_chunks
from virnuc_async.settings import CallRules, Settings

BOUNDARIES = [0, 0.05, 0.1, 0.2, 0.3, 0.35, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 1, 1e-5, 1 / 3]
SCORES = st.sampled_from(BOUNDARIES) | st.floats(0, 1, width=32)
NAMES = [b"c1", b"c2", b"c10", b"c", b"c02", b"c-3", b"7", b"07", b"\xe9", b"NODE_1_x", b"NODE_1_y"]


@st.composite
def records(draw: st.DrawFn) -> Record:
    orf = st.tuples(SCORES, SCORES, st.sampled_from([False, False, False, True]))
    orfs = (ScoredOrf(number, 0, *draw(orf)) for number in range(1, draw(st.integers(0, 9)) + 1))
    return Record(draw(st.sampled_from(NAMES)), tuple(orfs))


@st.composite
def rules(draw: st.DrawFn) -> CallRules:
    numbers = [draw(st.sampled_from([default, 0.0, 0.5])) for default in (0.3, 0.6, 0.8, 0.3, 0.7)]
    counts = draw(st.sampled_from([(1, 0.1, 5), (0, 0.0, 0), (2, 0.5, 3)]))
    return CallRules(*numbers, *counts, id_pattern=draw(st.sampled_from([None, r"c(\d)", "NODE_|7"])))


def slow_rows(fragments: list[list[str]], rules: CallRules) -> Iterator[list[str]]:
    """Yield what the table of calls must have, from the text of the rows of ``fragments.tsv``."""
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in fragments:
        groups[expected_id(row[4], rules.id_pattern)].append((float(row[2]), float(row[3])))
    for name in sorted(groups, key=lambda name: (natural_parts(name), name)):
        yield [name, *slow_call(groups[name], rules)]


def expected_id(contig: str, pattern: str | None) -> str:
    if pattern == r"c(\d)":
        return contig[1] if contig[0] == "c" and contig[1:2].isdigit() else contig
    if pattern == "NODE_|7":
        return "NODE_" if "NODE_" in contig else "7" if "7" in contig else contig
    return contig


def natural_parts(name: str) -> list[tuple[int, int, str]]:
    """Return *name* as a list in which a number is (0, number, "") and a letter (1, 0, letter)."""
    parts: list[tuple[int, int, str]] = []
    for letter in name:
        if letter in "0123456789":
            before = parts.pop()[1] if parts and parts[-1][0] == 0 else 0
            parts.append((0, 10 * before + int(letter), ""))
        else:
            parts.append((1, 0, letter))
    return parts


def slow_call(scores: list[tuple[float, float]], rules: CallRules) -> list[str]:
    deltas = [virus - others for others, virus in scores]
    weights = [math.sqrt(abs(delta)) for delta in deltas]
    top = sum(delta * weight for delta, weight in zip(deltas, weights, strict=True))
    delta = top / sum(weights) if sum(weights) else sum(deltas) / len(deltas)
    high, low = rules.confident_score, rules.confident_other_score
    viral = sum(virus > high and others < low for others, virus in scores)
    nonviral = sum(others > high and virus < low for others, virus in scores)
    ambiguous = sum(min(pair) > rules.ambiguous_score for pair in scores)
    clear = len(scores) - ambiguous
    shares = [count / clear if clear else 0 for count in (viral, nonviral)]
    if delta > rules.call_threshold:
        call, count, share = "Viral", viral, shares[0]
    elif delta < -rules.call_threshold:
        call, count, share = "Non-viral", nonviral, shares[1]
    else:
        call, count, share = "Ambiguous", 0, 0.0
    if call == "Ambiguous":
        tier = "review"
    elif count >= rules.min_confident and share >= rules.min_proportion:
        tier = "high_confidence" if abs(delta) > rules.high_threshold else "moderate_confidence"
        tier = tier if len(scores) >= rules.min_fragments else "low_confidence"
    else:
        tier = "low_confidence" if len(scores) >= rules.min_fragments else "review"
    numbers = (len(scores), viral, nonviral, ambiguous)
    return [call, tier, f"{delta:.3f}", *map(str, numbers), *(f"{share:.3f}" for share in shares)]


@settings(max_examples=40)
@given(
    run=st.lists(records(), max_size=8),
    rules=st.just(CallRules()) | rules(),
    window=st.sampled_from([1, 5, 4096]),
    run_bytes=st.sampled_from([1, 1 << 20]),
)
def test_calls_are_those_of_the_simple_implementation(
    run: list[Record], rules: CallRules, window: int, run_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = store_run(Path(directory), run, size=window)
        fragments = [split(line) for line in table_lines(fragment_chunks(store.reader, LENGTH))[1:]]
        header, *found = [
            split(line) for line in table_lines(call_chunks(store.reader, rules, run_bytes=run_bytes))
        ]
        assert header == list(COLUMNS)
        assert found == list(slow_rows(fragments, rules))
        store.close()


def split(line: bytes) -> list[str]:
    return line.decode("latin-1").rstrip("\n").split("\t")


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # A weighted delta of exactly 0.3 or -0.3 is no call, the next number is; 0.6 is not high.
        ([(0, 0.3)], "Ambiguous review 0.300 1 0 0 0 0.000 0.000"),
        ([(0.35, 0.65)], "Viral review 0.300 1 0 0 0 0.000 0.000"),  # 0.65 - 0.35 > 0.3 in FP64
        ([(0.4, 0.1)] * 5, "Ambiguous review -0.300 5 0 0 0 0.000 0.000"),
        ([(0.25, 0.85)] * 5, "Viral moderate_confidence 0.600 5 5 0 0 1.000 0.000"),
        ([(0.2, 0.9)] * 5, "Viral high_confidence 0.700 5 5 0 0 1.000 0.000"),
        ([(0.9, 0.2)] * 5, "Non-viral high_confidence -0.700 5 0 5 0 0.000 1.000"),
        # Fewer than five fragments: one tier lower.
        ([(0.2, 0.9)] * 4, "Viral low_confidence 0.700 4 4 0 0 1.000 0.000"),
        ([(0.1, 0.8)] * 4, "Viral review 0.700 4 0 0 0 0.000 0.000"),
        # A score of exactly 0.8, 0.3 or 0.7 is neither confident nor ambiguous.
        ([(0.1, 0.8)] * 5, "Viral low_confidence 0.700 5 0 0 0 0.000 0.000"),
        ([(0.3, 0.9)] * 5, "Viral low_confidence 0.600 5 0 0 0 0.000 0.000"),
        ([(0.7, 0.75)] * 5, "Ambiguous review 0.050 5 0 0 0 0.000 0.000"),
        ([(0.71, 0.75)] * 5, "Ambiguous review 0.040 5 0 0 5 0.000 0.000"),
        # One confident fragment of ten that are not ambiguous is enough, one of eleven is not.
        ([(0.1, 0.9), *[(0.2, 0.79)] * 9], "Viral high_confidence 0.614 10 1 0 0 0.100 0.000"),
        ([(0.1, 0.9), *[(0.2, 0.79)] * 10], "Viral low_confidence 0.612 11 1 0 0 0.091 0.000"),
        ([(0.5, 0.5)] * 5, "Ambiguous review 0.000 5 0 0 0 0.000 0.000"),
    ],
)
def test_boundaries(pairs: list[tuple[float, float]], expected: str, tmp_path: Path) -> None:
    orfs = tuple(ScoredOrf(number, 0, *pair) for number, pair in enumerate(pairs, 1))
    store = store_run(tmp_path, [Record(b"c", orfs)])
    _, line = table_lines(call_chunks(store.reader, CallRules()))
    assert " ".join(split(line)[1:]) == expected
    store.close()


def test_natural_order() -> None:
    names = ["", "1", "2", "10", "010a", "a", "a1", "a1b", "a2", "a10", "a10.2", "a10.10", "ab", "b"]
    assert sorted(reversed(names), key=natural_key) == names


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calls") / "out"
    assert predict(DATA / "golden" / "upstream" / "input.fa", out).code == 0
    return out


def test_the_command_and_the_option_write_the_same(finished: Path, tmp_path: Path) -> None:
    source = DATA / "golden" / "upstream" / "input.fa"
    assert predict(source, tmp_path / "out", "--calls", "--min-fragments", 2).code == 0
    calls = (tmp_path / "out" / "contig_calls.tsv").read_bytes()
    before = tables(finished)
    ended = run("calls", finished, "--min-fragments", 2)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"{finished / 'contig_calls.tsv'}: ")
    assert (finished / "contig_calls.tsv").read_bytes() == calls
    assert tables(finished) == before
    rules = CallRules(min_fragments=2)
    assert read_table(finished / "contig_calls.tsv")[1:] == [
        *slow_rows(read_table(finished / "fragments.tsv")[1:], rules)
    ]
    # It is the run's own file now, and stays what it is.
    assert "its files are unchanged" in predict(source, finished).err
    assert (finished / "contig_calls.tsv").read_bytes() == calls
    assert "calls: min_fragments=2 -> the default rules" in predict(source, finished, "--calls").err
    assert (finished / "contig_calls.tsv").read_bytes() != calls


def test_another_threshold_keeps_the_calls(finished: Path) -> None:
    assert run("calls", finished, "--call-threshold", 0.1).code == 0
    calls = (finished / "contig_calls.tsv").read_bytes()
    source = DATA / "golden" / "upstream" / "input.fa"
    assert "threshold: 0.5 -> 0.9" in predict(source, finished, "--threshold", 0.9).err
    assert (finished / "contig_calls.tsv").read_bytes() == calls


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--call-threshold", 0.05),
        ("--high-threshold", 0.99),
        ("--confident-score", 0.999),
        ("--confident-other-score", 0.001),
        ("--ambiguous-score", 0),
        ("--min-confident", 4),
        ("--min-proportion", 1),
        ("--min-fragments", 1),
        ("--id-pattern", "_(.)"),
    ],
)
def test_every_rule_changes_the_calls(finished: Path, option: str, value: object) -> None:
    assert run("calls", finished, "--min-fragments", 2).code == 0
    calls = (finished / "contig_calls.tsv").read_bytes()
    assert run("calls", finished, "--min-fragments", 2, option, value).code == 0
    assert (finished / "contig_calls.tsv").read_bytes() != calls


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"call_threshold": 2}, "call threshold must be a number from 0 to 1, not 2"),
        ({"min_fragments": 1.5}, "min fragments must be a whole number, not 1.5"),
        ({"id_pattern": "("}, "id pattern must be a regular expression, not '(': "),
    ],
)
def test_rules_that_make_no_sense(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        CallRules(**values)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)
    with pytest.raises(UsageError, match="calls must be CallRules, not True"):
        Settings(calls=True)  # type: ignore[arg-type]


def test_calls_again_certify_no_other_file(finished: Path) -> None:
    source, table = DATA / "golden" / "upstream" / "input.fa", finished / "contigs.tsv"
    predict(source, finished)
    content = table.read_bytes()
    table.write_bytes(content + b"edited\n")
    assert run("calls", finished).code == 0
    assert "some of its files have changed: writing them again" in predict(source, finished).err
    assert table.read_bytes() == content
