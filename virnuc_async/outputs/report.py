"""``report.html``: what a run has found, to be looked at by people, in one file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from virnuc_async.models.bundle import DEFAULT
from virnuc_async.runs.device_history import DeviceHistory
from virnuc_async.settings import RegionRules
from virnuc_async.text import plural

from .columns import Chunks
from .html import page_chunks, shortened, visible
from .methods import CITED, methods_text
from .overview import MOST_ROWS, Overview, Track, row_values
from .report_charts import device_charts, histograms, track_chart
from .samples import Sample, sums
from .summary import Summary, viral_text
from .verdicts import CALIBRATED, COUNTS, LABELS, LOG_ODDS, VERDICT, Q

if TYPE_CHECKING:
    from .output_files import FinishedRun

REPORT = "report.html"
MOST_INPUTS, MOST_FAILURES = 200, 100
_MOST_ID, _MOST_TEXT = 100, 300  # characters that are shown of an id, of a path or a message
_MOST_REGIONS = 20  # that are listed of a sequence

_DEMONSTRATION = (
    "This is a result of the demonstration model, which is small: use it to try the program out, and not for "
    "conclusions about a sample."
)
_NOT_REPRODUCIBLE = (
    "Some scores may differ in their last digits when the run is repeated: batches were split for lack of "
    "memory, or devices of several kinds were mixed."
)
_TRACKS = (
    "{0} of at least {1.min_contig:,} bases, those with the most bases in viral regions first. The line is "
    "the score of the fragments: the best P(virus) by the sum of that and the best P(others), so that a "
    "fragment counts as viral from 0.5 on; where it is interrupted, fragments have no score. A region begins "
    "where the score, averaged over {1.smoothing:,} bases, reaches {1.open_score:g}, and extends until it "
    "falls below {1.close_score:g}; it has at least {1.min_length:,} bases. A region that is only a part of "
    "its sequence is a candidate for a prophage."
)
_SECTIONS = {
    "reading": "How to read this",
    "samples": "Inputs",
    "distributions": "Scores and lengths",
    "sequences": "Sequences",
    "tracks": "Along the long sequences",
    "devices": "Speed and memory",
    "failures": "Failures",
    "methods": "Methods, to cite",
    "files": "Files",
}
# The columns of the table, in their order: what they are called there, and what they mean.
_COLUMNS = {
    "contig": ("sequence", "the id"),
    VERDICT: (VERDICT, "by the rule that is stated above"),
    "length": ("length", "in bases"),
    "mean_p_virus": ("mean P(virus)", "mean over the scored fragments of their best P(virus)"),
    "max_p_virus": ("best P(virus)", "the best P(virus) of all"),
    "viral_fragments": ("viral fragments", "those whose best viral score is at least the best other one"),
    "fragments_with_orf": ("scored fragments", "those with a frame without a stop codon"),
    "fragments": ("all fragments", "that the sequence was cut into"),
    "viral_fraction": ("viral fraction", "viral fragments by scored ones"),
    LOG_ODDS: ("log odds", "of all fragments together: above 0 if they are rather viral"),
    Q: ("q", "the probability that the calibration of the model gives for the log odds"),
    CALIBRATED: ("calibrated P(virus)", "the mean P(virus) as the calibration of the model maps it"),
    "file": ("file", "the input that the sequence came from"),
}
_FILES = {
    "contigs.tsv": "a verdict for each sequence: all rows of the table above",
    "fragments.tsv": "the scores of each fragment, and where it is",
    "contig_calls.tsv": "a call and a tier for each sequence",
    "pairs.tsv": "a verdict for each pair of reads",
    "regions.bed": "the viral regions of long sequences",
    "regions.gff3": "the same, with their kinds as terms of the Sequence Ontology",
    "prediction_results.txt": "the scores of each reading frame",
    "prediction_results_highestscore.csv": "whether each fragment is viral",
    "failed_files.txt": "what could not be read or scored",
    "merged_features.pt": "the embeddings",
    "summary.json": "settings, counts and times, for programs",
    "run.sqlite3": "the run itself: all tables can be made of it again",
}


def report_chunks(run: "FinishedRun") -> Chunks:
    """Yield ``report.html`` of *run*, whose tables are written."""
    yield from page_chunks("report.html.j2", "report.js", **_values(run))


def _values(run: "FinishedRun") -> dict[str, Any]:
    """Return all that the template shows."""
    summary, overview, history = run.summary, run.overview, run.reader.device_history()
    tracks = [_track(track, number) for number, track in enumerate(overview.tracks)]
    charts = list(histograms(overview))
    hidden = {name for name, shown in (("distributions", charts), ("tracks", tracks)) if not shown}
    return {
        "title": f"{viral_text(summary)} predicted to be viral",
        "summary": summary,
        "dates": _dates(history),
        "sections": [section for section in _SECTIONS.items() if section[0] not in hidden],
        "alerts": list(_alerts(summary)),
        "facts": list(_facts(summary, overview)),
        "length": run.length,
        "criterion": run.rule.criterion(),
        "labels": LABELS,
        "charts": charts,
        "tracks": tracks,
        "tracks_note": _TRACKS.format(plural(len(tracks), "sequence"), run.options.regions or RegionRules()),
        "devices": list(map(_device, summary.devices)),
        "device_charts": list(device_charts(history.devices)),
        **_inputs(run),
        **_table(summary, overview),
        **_failures(run),
        **_methods(run),
    }


def _dates(history: DeviceHistory) -> str:
    """Return when the devices worked, in UTC; "" if that is not known."""
    points = [point for points in history.devices.values() for point in points]
    if not points:
        return ""
    ends = (min(point.begin for point in points), max(point.end for point in points))
    begin, end = (f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}" for seconds in ends)
    return f"{begin} UTC" if begin == end else f"{begin} to {end} UTC"


def _alerts(summary: Summary) -> Iterator[str]:
    if summary.bundle["name"] == DEFAULT:
        yield _DEMONSTRATION
    if failed := summary.counts["failures"]:
        yield f"{plural(failed, 'failure')}: not everything could be read or scored; see below."
    if not summary.reproducible:
        yield _NOT_REPRODUCIBLE


def _facts(summary: Summary, overview: Overview) -> Iterator[tuple[str, str, str]]:
    """Yield what is most asked for: its name, the number, and a detail."""
    counts, contigs, viral = summary.counts, overview.contigs, overview.count("virus")
    of_all = f"{100 * viral / contigs:.1f} % of all" if contigs else ""
    yield "sequences called virus", f"{viral:,}", of_all
    yield "called others", f"{overview.count('others'):,}", ""
    yield "not scored (no_orf)", f"{overview.count('no_orf'):,}", "no frame without a stop"
    if short := counts.get("short_contigs", 0):
        yield "left out", f"{short:,}", f"shorter than {summary.settings['min_length']:,} bases"
    if pairs := counts.get("pairs", 0):
        yield "read pairs called virus", f"{counts['viral_pairs']:,}", f"of {pairs:,}"
    yield "bases read", f"{overview.bases:,}", plural(len(summary.inputs), "input")
    yield "fragments", f"{counts['fragments']:,}", f"{counts['orfs']:,} frames scored"
    yield "failures", f"{counts['failures']:,}", ""


def _inputs(run: "FinishedRun") -> dict[str, Any]:
    """Return the inputs with their verdicts, as many as a page can show, and the sums of each kind."""
    shown, totals = run.samples[:MOST_INPUTS], list(sums(run.samples))
    counts = run.summary.counts
    pairs = counts.get("pairs", 0)
    return {
        "samples": [_sample(sample, sample.file) for sample in shown],
        "sums": [_sample(total, f"all {total.kind}") for total in totals] if len(run.samples) > 1 else [],
        "more_samples": len(run.samples) - len(shown),
        "pairs": f"{counts['viral_pairs']:,} of {pairs:,} called virus" if pairs else "",
    }


def _sample(sample: Sample, name: str) -> dict[str, Any]:
    numbers = [sample.counts[label] for label in LABELS]
    return {
        "path": shortened(visible(name), _MOST_TEXT),
        "kind": sample.kind,
        "status": sample.status,
        "total": sum(numbers),
        **dict(zip(LABELS, numbers, strict=True)),
        "shares": list(_shares(numbers)),
    }


def _shares(numbers: Sequence[int]) -> Iterator[tuple[str, float, float]]:
    """Yield label, start and width of each part of a bar that is 100 wide, viral ones first."""
    by_label, start = dict(zip(LABELS, numbers, strict=True)), 0.0
    for label in ("virus", "others", "no_orf"):
        if by_label[label]:
            width = 100 * by_label[label] / sum(numbers)
            yield label, round(start, 2), round(width, 2)
            start += width


def _table(summary: Summary, overview: Overview) -> dict[str, Any]:
    """Return the table of the most telling sequences, and what it is."""
    found, known = overview.rows, {"contig", *overview.rows.columns}
    if len(summary.inputs) == 1:
        known.discard("file")
    names = [name for name in (*_COLUMNS, *sorted(known - {*_COLUMNS, "number"})) if name in known]
    at = {name: place for place, name in enumerate(names)}
    rows = list(row_values(found.columns, names[1:]))
    rows = [[shortened(visible(id), _MOST_ID), *row] for id, row in zip(found.ids, rows, strict=True)]
    # Only the files of the rows: there may be thousands.
    files = found.columns.get("file", np.empty(0, np.int32)).tolist()
    used = sorted(set(files))
    for row, file in zip(rows, files, strict=True):
        if "file" in at:
            row[at["file"]] = used.index(file)
        row[at[VERDICT]] = LABELS[row[at[VERDICT]]]
    columns = [_column(name) for name in names]
    paths = [shortened(visible(summary.inputs[file]["path"]), _MOST_TEXT) for file in used]
    return {
        "table": {"columns": columns, "files": paths, "rows": rows},
        "table_note": _table_note(overview.contigs),
    }


def _column(key: str) -> dict[str, str]:
    name, meaning = _COLUMNS.get(key, (key.replace("_", " "), "as in contigs.tsv"))
    kinds = {"contig": "id", "file": "file", VERDICT: VERDICT}
    kind = kinds.get(key, "integer" if key in (*COUNTS, "length") else "number")
    return {"key": key, "name": name, "help": meaning, "kind": kind}


def _table_note(contigs: int) -> str:
    order = "Viral ones come first, by the number of their viral fragments and their mean P(virus)"
    if contigs <= MOST_ROWS:
        return f"All {plural(contigs, 'sequence')}. {order}."
    return (
        f"The {MOST_ROWS:,} most telling of {contigs:,} sequences; all of them are in contigs.tsv. {order}, "
        "and then the others by their mean P(virus)."
    )


def _track(track: Track, number: int) -> dict[str, Any]:
    name = shortened(visible(track.id), _MOST_ID)
    row = {key: column[0] for key, column in track.row.items()}
    note = (
        f"{row['length']:,} bases, {plural(int(row['fragments_with_orf']), 'scored fragment')}, "
        f"{LABELS[row[VERDICT]]}, mean P(virus) {row['mean_p_virus']:.3f}"
    )
    more = max(len(track.regions) - _MOST_REGIONS, 0)
    chart = track_chart(track, number, name)
    return {"note": note, "chart": chart, "regions": track.regions[:_MOST_REGIONS], "more_regions": more}


def _device(facts: Mapping[str, Any]) -> dict[str, Any]:
    seconds, peak = facts["busy_seconds"], facts["peak_memory_bytes"]
    rates = {
        f"{noun}_per_second": f"{facts[noun] / seconds:,.0f}" if seconds else ""
        for noun in ("orfs", "tokens")
    }
    return {**facts, **rates, "memory": f"{peak / 2**30:.2f} GiB" if peak else ""}


def _failures(run: "FinishedRun") -> dict[str, Any]:
    total = run.summary.counts["failures"]
    shown = [
        {
            "path": shortened(visible(failure.path), _MOST_TEXT),
            "stage": str(failure.stage),
            "message": shortened(visible(failure.message), _MOST_TEXT),
        }
        for failure in islice(chain(run.reader.failures(), run.paired.failures), MOST_FAILURES)
    ]
    which = f"The first {len(shown):,} of {total:,}" if total > len(shown) else f"{plural(total, 'failure')}"
    note = f"{which}; all are in failed_files.txt. What is not named here was read and scored."
    return {"failures": shown, "failures_note": note}


def _setting(value: Any) -> str:
    """Return the text of a setting; "" if it was left to the program."""
    if value is None or isinstance(value, str):
        return str(value or "")
    return json.dumps(value, ensure_ascii=False)


def _methods(run: "FinishedRun") -> dict[str, Any]:
    settings = ((name, _setting(value)) for name, value in run.summary.settings.items())
    return {
        "methods": methods_text(run.summary, run.length, run.rule),
        "publications": [
            {"text": str(each).removesuffix(f" doi:{each.doi}"), "doi": each.doi, "url": each.url}
            for each in CITED
        ],
        "settings": [(name.replace("_", " "), text) for name, text in settings if text],
        "files": [(name, text) for name, text in _FILES.items() if run.reader.directory.is_file(name)],
    }
