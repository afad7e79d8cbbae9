"""The model card of a trained bundle: what it was made of, how, and what it is worth."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .evaluation import figure_rows, group_rows

_OPTIMISTIC = (
    "**These figures are optimistic.** Fragments were split at random, as in the published protocol: "
    "neighbours of the fragments that were tested, of the same sequences, were learnt from. The figures say "
    "nothing of sequences that are new to the model."
)
_KEPT = (
    "**These figures are optimistic.** Held-out records that share {length}-mers with training ones "
    "were kept."
)


def card(name: str, report: Mapping[str, Any]) -> str:
    """Give the README.md of the bundle *name*, trained as *report* says."""
    parts = [
        f"# {_plain(name)}",
        f"A classifier for VirNucPro's method, trained on the encoders of {_plain(report['base']['name'])} "
        f"(fingerprint {report['base']['fingerprint']}), for fragments of "
        f"{report['base']['fragment_length']} bp.",
        *_data(report["data"]),
        *_split(report),
        *_recipe(report),
        *_figures(report),
        *_limits(report),
    ]
    return "\n\n".join(parts) + "\n"


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    yield "## Data"
    yield f"Viral: {_listed(data['viral'])}. Not viral: {_listed(data['nonviral'])}."
    keys = ("group", "class", "records", "bases", "clusters")
    yield _markdown([keys, *([_number(group[key]) for key in keys] for group in data["groups"])])


def _split(report: Mapping[str, Any]) -> Iterator[str]:
    split = report["split"]
    yield "## Split"
    yield (
        "By fragment, at random."
        if split["by_fragment"]
        else f"By cluster ({_plain(report['data']['clustered_by'])}); a cluster is never divided."
    )
    keys = ("records", "fragments", "orfs", "viral_orfs")
    rows = [[side, *(_number(facts[key]) for key in keys)] for side, facts in split["sides"].items()]
    yield _markdown([("side", "records", "fragments", "ORFs", "viral ORFs"), *rows])
    if leaks := split["leakage"]:
        yield (
            f"{leaks['sharing']:,} of {leaks['held_out_records']:,} held-out records share more than "
            f"{split['leakage_share']:.0%} of their {leaks['length']}-mers, on either strand, with records "
            f"that they are to be new to; these were treated as `--leakage {leaks['done']}` says."
        )


def _recipe(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    if report["command"]:
        yield "    " + " ".join(report["command"].split())
    yield _markdown([("setting", "value"), *([key, str(value)] for key, value in report["recipe"].items())])
    yield (
        f"{len(report['history']):,} epochs, of which number {report['best_epoch']:,} had the lowest "
        f"validation loss and was kept. virnuc-async {report['version']}, torch {report['torch']}, "
        f"{report['threads']} threads."
    )


def _figures(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Held-out figures"
    if report["split"]["by_fragment"]:
        yield _OPTIMISTIC
    leaks = report["split"]["leakage"]
    if leaks and leaks["done"] == "keep" and leaks["sharing"]:
        yield _KEPT.format(**leaks)
    yield "In parentheses: 95 % of the resamples of the clusters."
    yield _markdown(figure_rows({"test side": report["test"]}))
    yield _markdown(group_rows(report["test"]))


def _limits(report: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    few = [
        f"{group['group']} ({group['clusters']:,})"
        for group in report["data"]["groups"]
        if group["clusters"] < 20
    ]
    lines = [
        "Nothing is known of groups that are not in the tables above.",
        "Figures are of sequences like those that it was trained on: measure it on your own with `evaluate`.",
        "The encoders were not trained here, but may have learnt from the same sequences before: these "
        "figures flatter then, and nothing here can see it.",
        "P(virus) is not calibrated to how often viruses occur in a sample.",
    ]
    if few:
        lines.append(f"Groups of fewer than 20 clusters: {_listed(few)}.")
    yield "\n".join(f"- {line}" for line in lines)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(map(_plain, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _plain(text: str) -> str:
    """Take what Markdown would make of *text*: headers and names of files may hold anything."""
    for mark in ("\\", "|", "*", "_", "`", "[", "]", "<", ">", "#"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ").replace("\r", " ")


def _listed(words: Sequence[str]) -> str:
    return ", ".join(map(_plain, words))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
