"""Reports for people: the tables of metrics, the page of an evaluation, and the card of a trained model."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from virnuc_async.outputs.charts import Chart, unit_chart
from virnuc_async.outputs.html import render
from virnuc_async.text import plural

Report = dict[str, Any]  # values of JSON

_COLUMNS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "sensitivity": "sens.",
    "specificity": "spec.",
    "mcc": "MCC",
    "tpr_at_5_percent_fpr": "TPR at 5% FPR",
    "ece": "ECE",
}
_FEW_CLUSTERS = 20  # fewer in a group are pointed out

_RANDOM_SPLIT = (
    "**These results are optimistic.** Fragments were split at random, as in the published protocol, so the "
    "training data contain other fragments of the sequences in the test data. The results do not show how "
    "the model performs on sequences that are new to it."
)
_LEAKAGE_KEPT = (
    "**These results are optimistic.** Held-out records that share {length}-mers with training records were "
    "kept."
)


def metric_rows(datasets: Mapping[str, Mapping[str, Report]]) -> list[list[str]]:
    """Return the metrics of each data set and level as rows of a table, the header first."""
    rows = [["data", "level", "rows", "viral", "clusters", *_COLUMNS.values()]]
    for name, levels in datasets.items():
        for level, result in levels.items():
            counts = (f"{result[count]:,}" for count in ("rows", "viral", "clusters"))
            rows.append([name, level, *counts, *(_interval(result["figures"][each]) for each in _COLUMNS)])
    return rows


def group_rows(levels: Mapping[str, Report]) -> list[list[str]]:
    """Return the results of each group as rows of a table, the header first."""
    rows = [["group", "class", "level", "rows", "clusters", "correct", "AUROC against the other class"]]
    for level, result in levels.items():
        for group in result["groups"]:
            auroc = "-" if group["auroc"] is None else f"{group['auroc']:.3f}"
            cells = (f"{group['rows']:,}", f"{group['clusters']:,}", _interval(group["right"]), auroc)
            rows.append([group["group"], group["class"], level, *cells])
    return rows


def _interval(interval: Mapping[str, float | None]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f}-{high:.3f})"


def evaluation_page(report: Report) -> str:
    """Return the results of an evaluation as an HTML page."""
    model, data = report["model"], report["data"]
    records = sum(group["records"] for group in data["groups"])
    summary = (
        f"{plural(records, 'labelled record')} in {plural(data['clusters'], 'cluster')}; fragments of "
        f"{model['fragment_length']} bp; model fingerprint {model['fingerprint']}. Values in parentheses are "
        f"95 % confidence intervals, from {report['settings']['resamples']:,} resamples of the clusters. "
        "Sequences without an open reading frame have no score and are not counted."
    )
    sections = [
        {"name": name, "charts": list(_charts(f"at-{number}", levels)), "groups": group_rows(levels)}
        for number, (name, levels) in enumerate(report["at"].items())
    ]
    return render(
        "evaluation.html.j2",
        title=f"Evaluation of {model['name']}",
        summary=summary,
        command=report["command"],
        metrics=metric_rows(report["at"]),
        sections=sections,
    )


def _charts(id: str, levels: Mapping[str, Report]) -> Iterator[Chart]:
    roc = {level: result["curves"]["roc"] for level, result in levels.items()}
    axes = ("false positive rate", "true positive rate")
    yield unit_chart(f"{id}-roc", "ROC curve", axes, roc, has_diagonal=True)
    precision = {level: result["curves"]["precision_recall"] for level, result in levels.items()}
    yield unit_chart(f"{id}-precision", "Precision-recall curve", ("recall", "precision"), precision)
    reliability = {
        level: [(each["mean_score"], each["share"]) for each in result["reliability"]]
        for level, result in levels.items()
    }
    axes = ("mean P(virus)", "fraction viral")
    yield unit_chart(f"{id}-reliability", "Reliability diagram", axes, reliability, has_diagonal=True)


def model_card(name: str, report: Mapping[str, Any]) -> str:
    """Return the README.md of the bundle *name*, from the report of its training."""
    base = report["base"]
    parts = [
        f"# {_escape_markdown(name)}",
        f"A classifier for the VirNucPro method, trained on the encoders of {_escape_markdown(base['name'])} "
        f"(fingerprint {base['fingerprint']}), for fragments of {base['fragment_length']} bp.",
        *_data_section(report["data"]),
        *_split_section(report),
        *_training_section(report),
        *_results_section(report),
        *_limits_section(report),
    ]
    return "\n\n".join(parts) + "\n"


def _data_section(data: Mapping[str, Any]) -> Iterator[str]:
    yield "## Data"
    yield f"Viral: {_escaped_list(data['viral'])}. Nonviral: {_escaped_list(data['nonviral'])}."
    keys = ("group", "class", "records", "bases", "clusters")
    yield _markdown_table([keys, *([_cell(group[key]) for key in keys] for group in data["groups"])])


def _split_section(report: Mapping[str, Any]) -> Iterator[str]:
    split = report["split"]
    yield "## Split"
    yield (
        "By fragment, at random."
        if split["by_fragment"]
        else f"By cluster ({_escape_markdown(report['data']['clustered_by'])}). A cluster is never divided."
    )
    keys = ("records", "fragments", "orfs", "viral_orfs")
    rows = [[name, *(_cell(counts[key]) for key in keys)] for name, counts in split["sides"].items()]
    yield _markdown_table([("split", "records", "fragments", "ORFs", "viral ORFs"), *rows])
    if leakage := split["leakage"]:
        yield (
            f"{leakage['sharing']:,} of {leakage['held_out_records']:,} held-out records share more than "
            f"{split['leakage_share']:.0%} of their {leakage['length']}-mers, on either strand, with "
            "training records (test records: with training or validation records). They were handled by "
            f"`--leakage {leakage['done']}`."
        )


def _training_section(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    if report["command"]:
        yield "    " + " ".join(report["command"].split())
    settings = ([name, str(value)] for name, value in report["recipe"].items())
    yield _markdown_table([("setting", "value"), *settings])
    yield (
        f"Trained for {plural(len(report['history']), 'epoch')}. The weights are those of epoch "
        f"{report['best_epoch']:,}, which had the lowest validation loss. virnuc-async {report['version']}, "
        f"torch {report['torch']}, {plural(report['threads'], 'thread')}."
    )


def _results_section(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Test results"
    if report["split"]["by_fragment"]:
        yield _RANDOM_SPLIT
    leakage = report["split"]["leakage"]
    if leakage and leakage["done"] == "keep" and leakage["sharing"]:
        yield _LEAKAGE_KEPT.format(**leakage)
    yield (
        "Values in parentheses are 95 % confidence intervals, from resamples of the clusters. *correct* is "
        "the fraction of correct verdicts: for a viral group the sensitivity, else the specificity."
    )
    yield _markdown_table(metric_rows({"test set": report["test"]}))
    yield _markdown_table(group_rows(report["test"]))


def _limits_section(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    small = [
        f"{group['group']} ({group['clusters']:,})"
        for group in report["data"]["groups"]
        if group["clusters"] < _FEW_CLUSTERS
    ]
    lines = [
        "The model was not tested on groups that are not in the tables above.",
        "The results apply to sequences similar to the training data. Use `evaluate` to measure the model on "
        "your own data.",
        "The encoders were not trained here. If they were trained on the same sequences before, the results "
        "are optimistic; this cannot be detected.",
        "P(virus) is not calibrated to the proportion of viruses in a sample.",
    ]
    if small:
        lines.append(f"Groups with fewer than {_FEW_CLUSTERS} clusters: {_escaped_list(small)}.")
    yield "\n".join(f"- {line}" for line in lines)


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _escape_markdown(text: str) -> str:
    # Headers of records and names of files may contain anything.
    for mark in ("\\", "|", "*", "_", "`", "[", "]", "<", ">", "#"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ").replace("\r", " ")


def _escaped_list(names: Sequence[str]) -> str:
    return ", ".join(map(_escape_markdown, names))


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
