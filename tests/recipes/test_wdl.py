"""
The WDL tasks, run for real by miniwdl without containers, on a BAM file, and read as the programs behind do.

Those programs are viral-pipelines and viral-ngs of the Broad Institute: their columns, order, empty tables.
"""

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pysam
import pytest
from object_stores import Bucket
from recipe_files import (
    OPTIONS,
    PLANNED,
    RECIPES,
    SHARDS,
    TABLES,
    Note,
    Shell,
    commands,
    compute_in_segments,
    contigs,
)
from recipe_files import Tables as RecipeTables
from running import predict
from support import ROOT, fasta

pandas = pytest.importorskip("pandas")
pytestmark = [pytest.mark.recipes, pytest.mark.timeout(180)]
WDL = RECIPES / "wdl" / "virnuc_async.wdl"
SHARDS_WDL = RECIPES / "wdl" / "virnuc_async_shards.wdl"
MODEL = ROOT / "virnuc_async" / "models" / "tiny-500"
MODEL_TAR = {"model_tar": "model.tar"}
OTHER_OUTPUTS = {"predictions_tsv", "highestscore_tsv", "pairs_tsv", "summary_json"}
OUTPUTS = ("contigs.tsv", "fragments.tsv", "contig_calls.tsv", "pairs.tsv")
# Of the tasks that are replaced: github.com/broadinstitute/viral-pipelines, tasks_metagenomics.wdl, 2026.
GPU = dict.fromkeys(("accelerator_type", "gpu_type", "vm_size"), "String?") | dict.fromkeys(
    ("accelerator_count", "gpu_count"), "Int?"
)
SIZES = {"esm_batch_size": "Int?", "dnabert_batch_size": "Int?"}
REPLACED = {
    "classify_virnucpro": {
        "inputs": {"reads_input": "File", "expected_length": "Int 300", "batch_size": "Int 256"}
        | dict.fromkeys(("parallel", "persist_model", "use_gpu", "resume"), "Boolean false")
        | GPU
        | SIZES,
        "outputs": {"virnuc_pro_scores": "File"},
    },
    "virnucpro": {
        "inputs": {"in_fasta": "File", "expected_length": "Int 500", "batch_size": "Int?", "gpus": "String?"}
        | {"machine_mem_gb": "Int 64", "cpu": "Int 8"}
        | dict.fromkeys(
            ("parallel", "persistent_models", "resume", "v1_fallback", "v1_attention"), "Boolean false"
        )
        | GPU
        | SIZES,
        "outputs": {"predictions_tsv": "File", "highestscore_tsv": "File"}
        | {"max_ram_gb": "Int", "virnucpro_version": "String"},
    },
}


@pytest.fixture
def wdl(shell: Shell, tool: Callable[[str], str]) -> Iterator[Shell]:
    """A shell with the WDL file, the shipped model in a tar file, and a miniwdl that needs no containers."""
    tool("miniwdl")
    shutil.copy(WDL, shell.directory)
    shutil.copy(SHARDS_WDL, shell.directory)
    with tarfile.open(shell.directory / "model.tar", "w") as tar:
        tar.add(MODEL, "tiny-500")
    shell.environment["MINIWDL__SCHEDULER__CONTAINER_BACKEND"] = "bare"
    yield shell
    for path in shell.directory.rglob("PLACE"):  # where a container would have had it
        shutil.rmtree(path.read_text().strip(), ignore_errors=True)


class Tables(NamedTuple):
    """The tables of a run, as pandas reads them."""

    predictions: Any
    fragments: Any


def run_task(shell: Shell, task: str, **inputs: object) -> dict[str, Any]:
    """Run a task and return its outputs."""
    return run_wdl(shell, f"{WDL.name} --task {task}", inputs)


def run_wdl(shell: Shell, what: str, inputs: dict[str, object]) -> dict[str, Any]:
    """Run a task or a workflow and return its outputs."""
    (shell.directory / "inputs.json").write_text(json.dumps(inputs))
    out = shell.run(f"miniwdl run {what} -i inputs.json 2> log.txt || (cat log.txt; false)")
    return {name.split(".")[1]: value for name, value in json.loads(out)["outputs"].items()}


def read_archive(path: str, stem: str) -> Tables:
    """Read the archive of classify_virnucpro."""
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{stem}.virnucpro.tsv", f"{stem}.virnucpro_highestscore.csv"]
        return Tables(*(pandas.read_csv(tar.extractfile(name), sep="\t") for name in tar.getnames()))


def write_bam(path: Path, records: Iterable[tuple[str, str]], flags: Iterable[int]) -> Path:
    with pysam.AlignmentFile(str(path), "wb", header={"HD": {"VN": "1.6", "SO": "unsorted"}}) as bam:
        for (name, bases), flag in zip(records, flags, strict=False):
            record = pysam.AlignedSegment(bam.header)
            record.query_name, record.flag, record.query_sequence = name, flag, bases
            record.query_qualities = pysam.qualitystring_to_array("F" * len(bases))
            bam.write(record)
    return path


def natural(name: str) -> list[tuple[bool, int | str]]:
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", name)]


def called_as_downstream(fragments: Any) -> Any:
    """Return the contig calls that the programs behind make of the fragment table: SPADES's NODE groups."""
    table = fragments.assign(
        ID=fragments["Modified_ID"].str.replace(r"_chunk_\d+$", "", regex=True),
        node=fragments["Modified_ID"].str.extract(r"(NODE_\d+)", expand=False),
        delta=fragments["max_score_1"] - fragments["max_score_0"],
        viral=(fragments["max_score_1"] > 0.8) & (fragments["max_score_0"] < 0.3),
        other=(fragments["max_score_0"] > 0.8) & (fragments["max_score_1"] < 0.3),
        both=(fragments["max_score_0"] > 0.7) & (fragments["max_score_1"] > 0.7),
    )
    groups = [group for _, group in table.groupby("node")]
    deltas = [np.average(group["delta"], weights=group["delta"].abs() ** 0.5) for group in groups]
    calls = pandas.DataFrame({"ID": [group["ID"].iloc[0] for group in groups]})
    calls["weighted_delta"] = np.round(deltas, 3)
    calls["n_chunks"] = [len(group) for group in groups]
    for column, flag in (
        ("n_confident_viral", "viral"),
        ("n_confident_nonviral", "other"),
        ("n_ambiguous", "both"),
    ):
        calls[column] = [int(group[flag].sum()) for group in groups]
    calls["call"] = np.select(
        [np.array(deltas) > 0.3, np.array(deltas) < -0.3], ["Viral", "Non-viral"], "Ambiguous"
    )
    return calls.sort_values("ID", key=lambda ids: ids.map(natural), ignore_index=True)


def test_the_file_is_right(wdl: Shell, tool: Callable[[str], str], note: Note) -> None:
    wdl.run(f"miniwdl check --strict {WDL.name}")
    python = Path(tool("miniwdl")).parent / "python"
    interface = Path(__file__).with_name("wdl_interface.py")
    tasks = json.loads(wdl.run(f"{python} {interface} {WDL.name}"))
    assert tasks.keys() == REPLACED.keys()
    for name, replaced in REPLACED.items():
        added = {"classify_virnucpro": set(), "virnucpro": {"use_gpu"}}[name] | {"docker", "model_tar"}
        assert {key: text for key, text in tasks[name]["inputs"].items() if key not in added} == replaced[
            "inputs"
        ]
        assert tasks[name]["outputs"] == replaced["outputs"]
        assert '"nvidia-tesla-t4"' in tasks[name]["runtime"]["gpuType"]
        assert int(tasks[name]["runtime"]["maxRetries"]) >= 1
        assert int(tasks[name]["runtime"]["preemptible"]) >= 1
    note("WDL: miniwdl check --strict; inputs and outputs equal those of the tasks that it replaces")


def test_a_bam_through_the_task_and_into_pandas(wdl: Shell, note: Note) -> None:
    records = contigs(12, 1900)
    write_bam(wdl.directory / "contigs.bam", records, [4] * 12)
    outputs = run_task(wdl, "classify_virnucpro", reads_input="contigs.bam", expected_length=500, **MODEL_TAR)
    tables = read_archive(outputs["virnuc_pro_scores"], "contigs")
    assert list(tables.predictions) == ["Sequence_ID", "Prediction", "score1", "score2"]
    assert list(tables.fragments) == ["Modified_ID", "Is_Virus", "max_score_0", "max_score_1"]
    assert (
        tables.fragments["Is_Virus"] == (tables.fragments["max_score_1"] >= tables.fragments["max_score_0"])
    ).all()
    (wdl.directory / "contigs.fa").write_text(fasta(records))
    out = wdl.directory / "out"
    assert predict(wdl.directory / "contigs.fa", out, "--calls").code == 0
    calls = called_as_downstream(tables.fragments)
    assert len(calls) == 12
    ours = pandas.read_csv(out / "contig_calls.tsv", sep="\t")
    pandas.testing.assert_frame_equal(ours[list(calls)], calls, check_dtype=False, atol=0, rtol=0)
    expected = pandas.read_csv(out / "fragments.tsv", sep="\t")[list(tables.fragments)]
    expected = expected.sort_values("Modified_ID", ignore_index=True)
    pandas.testing.assert_frame_equal(tables.fragments, expected)
    note(
        "WDL, classify_virnucpro: miniwdl run with a BAM file, the real program and the shipped model; pandas"
    )


def test_an_empty_bam_gives_tables_without_rows(wdl: Shell) -> None:
    write_bam(wdl.directory / "empty.bam", [], [])
    outputs = run_task(wdl, "classify_virnucpro", reads_input="empty.bam", expected_length=500, **MODEL_TAR)
    tables = read_archive(outputs["virnuc_pro_scores"], "empty")
    assert (len(tables.predictions), len(tables.fragments)) == (0, 0)
    assert list(tables.fragments) == ["Modified_ID", "Is_Virus", "max_score_0", "max_score_1"]


def test_the_task_with_a_file_for_each_table(wdl: Shell, note: Note) -> None:
    (wdl.directory / "sample.fasta").write_text(fasta(contigs(3)))
    outputs = run_task(wdl, "virnucpro", in_fasta="sample.fasta", use_gpu=False, **MODEL_TAR)
    assert Path(outputs["predictions_tsv"]).name == "sample.virnucpro.predictions.tsv"
    assert Path(outputs["highestscore_tsv"]).name == "sample.virnucpro.highestscore.tsv"
    assert len(pandas.read_csv(outputs["highestscore_tsv"], sep="\t")) == 3
    assert outputs["max_ram_gb"] >= 0
    assert re.search(r"\d+\.\d+\.\d+", outputs["virnucpro_version"])
    note("WDL, virnucpro: miniwdl run with the real program and the shipped model")


@pytest.mark.parametrize(
    ("task", "inputs", "words"),
    [
        (
            "classify_virnucpro",
            {"use_gpu": True, "parallel": True, "persist_model": True, "resume": True, "batch_size": 8}
            | {"esm_batch_size": 16, "dnabert_batch_size": 32},
            "--expected-length 300 --use-gpu --parallel --persistent-models --batch-size 8 "
            "--esm-batch-size=16 --dnabert-batch-size=32 --resume",
        ),
        ("classify_virnucpro", {}, "--expected-length 300 --batch-size 256"),
        (
            "virnucpro",
            {"parallel": True, "persistent_models": True, "resume": True, "batch_size": 8, "gpus": "0,1"}
            | {"esm_batch_size": 16, "dnabert_batch_size": 32, "cpu": 2},
            "--expected-length 500 --use-gpu --parallel --persistent-models --resume --batch-size 8 "
            "--esm-batch-size 16 --dnabert-batch-size 32 --gpus 0,1 --threads 2 --verbose",
        ),
    ],
)
def test_inputs_become_options(wdl: Shell, task: str, inputs: dict[str, object], words: str) -> None:
    words_file = wdl.directory / "words.txt"
    wdl.add(
        "virnucpro_cli.py",
        f'echo "$*" > "{words_file}"; out=${{2:-x}}; touch "$out" "${{out%.tsv}}_highestscore.csv"',
    )
    (wdl.directory / "in.fa").write_text(">a\nACGT\n")
    name = {"classify_virnucpro": "reads_input", "virnucpro": "in_fasta"}[task]
    run_task(wdl, task, **{name: "in.fa"}, **inputs)
    assert words_file.read_text().split(maxsplit=2)[2].strip() == words


def test_the_commands_of_the_readme(wdl: Shell, note: Note) -> None:
    write_bam(wdl.directory / "reads.bam", contigs(3), [4] * 3)
    wdl.run(commands("WDL"))
    assert (wdl.directory / "scores" / "out" / "virnuc_pro_scores" / "reads.virnucpro.tgz").exists()
    note("WDL: the commands of the README")


def test_bam_fastq_and_fasta_of_the_same_reads_give_the_same_tables(tmp_path: Path, note: Note) -> None:
    pairs = [(f"pair{number // 2}", bases) for number, (_, bases) in enumerate(contigs(20, 300))]
    write_bam(tmp_path / "reads.bam", pairs, [77, 141] * 10)
    (tmp_path / "reads.fq").write_text(
        "".join(f"@{name}\n{bases}\n+\n{'F' * len(bases)}\n" for name, bases in pairs)
    )
    (tmp_path / "reads.fa").write_text(fasta(pairs))
    results = []
    for path, options in (
        ("bam", ()),
        ("fq", ("--pairs", "interleaved")),
        ("fa", ("--pairs", "interleaved")),
    ):
        out = tmp_path / path
        assert predict(tmp_path / f"reads.{path}", out, "--calls", *OPTIONS, *options).code == 0
        names = (*OUTPUTS, "prediction_results.txt", "prediction_results_highestscore.csv")
        tables = {name: (out / name).read_bytes() for name in names}
        results.append(
            {name: table.replace(b"reads." + path.encode(), b"") for name, table in tables.items()}
        )
    assert results[0]["pairs.tsv"].count(b"\n") == 11
    assert results[0] == results[1] == results[2]
    note("Tables of BAM, FASTQ and FASTA of the same read pairs: byte-identical but for the name of the file")


def run_shards(wdl: Shell, *paths: Path, **inputs: object) -> dict[str, Any]:
    """Run the workflow of shards on the CPU and return its outputs."""
    given = {"reads_inputs": list(map(str, paths)), "shards": SHARDS, "device": "cpu", "options": PLANNED}
    return run_wdl(wdl, SHARDS_WDL.name, given | MODEL_TAR | inputs)


def test_a_workflow_of_shards(
    wdl: Shell, request: pytest.FixtureRequest, in_segments: RecipeTables, note: Note
) -> None:
    compute_in_segments(wdl)
    path = request.getfixturevalue("contigs")
    outputs = run_shards(wdl, path)
    assert {*outputs} == {*(f"{name.split('.')[0]}_tsv" for name in TABLES), *OTHER_OUTPUTS}
    found = {name: Path(outputs[f"{name.split('.')[0]}_tsv"]).read_bytes() for name in TABLES}
    (place,) = {*re.findall(rb"/tmp/virnuc-async-\w{16}/", found["contigs.tsv"])}
    assert {
        name: table.replace(place + b"contigs.fa", b"INPUT") for name, table in found.items()
    } == in_segments
    assert Path(outputs["predictions_tsv"]).read_text().count("\n") > 300
    note("WDL, shards: miniwdl check --strict; run by miniwdl, byte-identical to one machine")


def test_urls_are_read_where_they_are(
    bucket: Bucket, wdl: Shell, request: pytest.FixtureRequest, in_segments: RecipeTables, note: Note
) -> None:
    compute_in_segments(wdl)
    wdl.environment |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    url = bucket.put("reads/contigs.fa", request.getfixturevalue("contigs").read_bytes())
    outputs = run_shards(wdl, urls=[url])
    found = {name: Path(outputs[f"{name.split('.')[0]}_tsv"]).read_bytes() for name in TABLES}
    assert {name: table.replace(url.encode(), b"INPUT") for name, table in found.items()} == in_segments
    note("WDL, shards of an object of a local S3 server: byte-identical to one machine")


def test_inputs_of_the_same_name_are_refused(wdl: Shell) -> None:
    for place in ("a", "b"):
        (wdl.directory / place).mkdir()
        (wdl.directory / place / "same.fa").write_text(">a\nACGT\n")
    inputs = {"reads_inputs": ["a/same.fa", "b/same.fa"], "device": "cpu"}
    (wdl.directory / "inputs.json").write_text(json.dumps(inputs))
    printed = wdl.run(f"miniwdl run --verbose {SHARDS_WDL.name} -i inputs.json 2>&1 || true")
    assert "these are there more than once: same.fa" in printed


def test_the_commands_for_shards(wdl: Shell, note: Note) -> None:
    write_bam(wdl.directory / "reads.bam", contigs(3), [4] * 3)
    wdl.run(commands("WDL", 1))
    table = (wdl.directory / "many" / "out" / "contigs_tsv" / "contigs.tsv").read_text()
    assert table.count("\n") == 4
    note("WDL, shards: the commands of the README")
