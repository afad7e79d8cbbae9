"""What a report gathers of a run, compared with a slow and simple implementation."""

import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stored_runs import LENGTH, Record, ScoredOrf, store_run

from virnuc_async.outputs import overview as overviews
from virnuc_async.outputs.overview import Histogram, Overview, row_values
from virnuc_async.outputs.verdicts import LABELS, vote
from virnuc_async.runs.blocks import Block
from virnuc_async.settings import RegionRules

RULES = RegionRules(smoothing=0, gap=0, min_length=200, min_contig=800)


def judged(block: Block) -> dict[str, np.ndarray]:
    """Return columns of verdicts: virus if at least half of a contig's fragments are viral."""
    votes, size = vote(block), len(block.contigs)
    scored, viral = (np.bincount(rows, minlength=size) for rows in (votes.rows, votes.rows[votes.are_viral]))
    with np.errstate(invalid="ignore"):
        means = np.bincount(votes.rows, votes.highest, size) / scored
    labels = np.where(scored == 0, LABELS.index("no_orf"), viral * 2 >= scored)
    return {"viral_fragments": viral, "mean_p_virus": means, "verdict": labels}


def gathered(directory: Path, records: list[Record], size: int = 4096) -> Overview:
    store = store_run(directory, records, size=size)
    overview = Overview(LENGTH, judged, RULES)
    for block in store.reader.blocks():
        overview.add(block)
    store.close()
    return overview


def record(name: str, *scores: float) -> Record:
    """Return a contig with an ORF in each of its first fragments, with these scores for virus."""
    orfs = (ScoredOrf(number, 0, 1 - score, score) for number, score in enumerate(scores, 1))
    return Record(name.encode(), tuple(orfs))


RECORDS = [
    record("none"),
    record("low", 0.1, 0.2),
    record("one", 0.9),
    record("two", 0.6, 0.7),
    record("tie", 0.7, 0.6),
    record("high", 0.4, 0.45),
    record("three", 0.9, 0.9, 0.9),
]


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_viral_contigs_come_first_by_their_fragments(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gathered(tmp_path / "all", RECORDS, size)
    assert found.rows.ids == [b"three", b"two", b"tie", b"one", b"high", b"low", b"none"]
    assert [found.count(label) for label in LABELS] == [2, 4, 1]
    assert found.contigs == 7
    rows = list(row_values(found.rows.columns, ["viral_fragments", "mean_p_virus", "verdict"]))
    assert rows[0] == [3, 0.9, LABELS.index("virus")]
    assert rows[-1] == [0, None, LABELS.index("no_orf")]
    monkeypatch.setattr(overviews, "MOST_ROWS", 3)
    assert gathered(tmp_path / "some", RECORDS, size).rows.ids == [b"three", b"two", b"tie"]


def of(blocks: list[Block]) -> Overview:
    overview = Overview(LENGTH, judged, RULES)
    for block in blocks:
        if block.ids:
            overview.add(block)
    return overview


@given(st.lists(st.lists(st.sampled_from([0.1, 0.45, 0.6, 0.9]), max_size=14), max_size=12), st.data())
def test_what_parts_have_gathered_is_that_of_all(contigs: list[list[float]], data: st.DataObject) -> None:
    records = [record(f"c{number}", *scores) for number, scores in enumerate(contigs)]
    cut = data.draw(st.integers(0, len(records)))
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(overviews, "MOST_ROWS", 4)
        patch.setattr(overviews, "MOST_TRACKS", 3)
        store = store_run(Path(place), records)
        blocks = list(store.reader.blocks())
        store.close()
        whole, joined = of(blocks), Overview(LENGTH, judged, RULES)
        for first, end in ((0, cut), (cut, len(records))):
            file = io.BytesIO()
            part = of([block.within(first, end) for block in blocks])
            np.savez(file, allow_pickle=False, **part.to_arrays())
            file.seek(0)
            joined.add_arrays(dict(np.load(file, allow_pickle=False)))
        np.testing.assert_equal(joined.to_arrays(), whole.to_arrays())
        assert [track.regions for track in joined.tracks] == [track.regions for track in whole.tracks]


def test_distributions(tmp_path: Path) -> None:
    found = gathered(tmp_path, RECORDS)
    scores = [orf.virus for record in RECORDS for orf in record.orfs]
    expected = [
        np.histogram(np.array(part, np.float32), found.fragment_scores.edges)[0].tolist()
        for part in ([s for s in scores if s < 0.5], [s for s in scores if s >= 0.5])
    ]
    assert found.fragment_scores.counts.tolist() == expected
    assert found.contig_scores.counts.sum(1).tolist() == [2, 4, 0]
    assert found.lengths.counts.sum(1).tolist() == [2, 4, 1]
    assert found.bases == sum(LENGTH * 9 - 7 * number % LENGTH for number in range(len(RECORDS)))


@given(st.lists(st.floats(0, 2), max_size=50))
def test_a_histogram_counts_each_number_once(numbers: list[float]) -> None:
    histogram = Histogram(np.linspace(0, 1, 5), 2)
    series = np.arange(len(numbers)) % 2
    histogram.add(np.array(numbers), series)
    for which in (0, 1):
        own = [min(number, 1) for number, at in zip(numbers, series, strict=True) if at == which]
        assert histogram.counts[which].tolist() == np.histogram(own, histogram.edges)[0].tolist()


def test_tracks_are_those_with_the_most_viral_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overviews, "MOST_TRACKS", 2)
    records = [
        record("island", *[0.1] * 3, *[0.9] * 3, *[0.1] * 6),
        record("short", *[0.9] * 9),
        record("host", *[0.1] * 12),
        record("phage", *[0.9] * 12),
        Record(b"unscored", ()),
    ]
    tracks = gathered(tmp_path, records).tracks
    assert [track.id for track in tracks] == [b"phage", b"short"]
    monkeypatch.setattr(overviews, "MOST_TRACKS", 9)
    tracks = gathered(tmp_path / "more", records).tracks
    assert [track.id for track in tracks] == [b"phage", b"short", b"island", b"host"]
    island = tracks[2]
    assert [region.fragments for region in island.regions] == [3]
    assert (island.starts[3], island.ends[3]) == (300, 400)
    assert island.scores.tolist() == pytest.approx([0.1] * 3 + [0.9] * 3 + [0.1] * 6)


def test_long_tracks_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overviews, "_MOST_POINTS", 5)
    (track,) = gathered(tmp_path, [record("a", *[number / 12 for number in range(12)])]).tracks
    assert track.scores.tolist() == pytest.approx([1 / 12, 4 / 12, 7 / 12, 10 / 12])
    assert (int(track.starts[0]), int(track.ends[-1])) == (0, int(track.row["length"][0]))
