"""A plan of real files: what it says of them, of the devices, and when it is not made."""

import gzip
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import pytest
from object_stores import Bucket
from plans import segments
from running import python, some_reads
from sequence_files import FORMS, as_fasta, as_fastq, some_records
from support import fasta

from virnuc_async import Settings, logger
from virnuc_async._version import __version__
from virnuc_async.distributed.plan import SHARDS, RunPlan, read_plan, write_plan
from virnuc_async.distributed.planning import make_plan
from virnuc_async.distributed.scanning import PlanProgress, Scanning, is_plain_gzip
from virnuc_async.distributed.storage import RemoteRun
from virnuc_async.engine.devices import available
from virnuc_async.errors import (
    ForeignDirectoryError,
    InputChanged,
    MissingInputs,
    NoPlan,
    NoRecords,
    NoThreshold,
    RunMismatchError,
    UnknownBundle,
    UnsuitablePrecision,
    UsageError,
)
from virnuc_async.fileio import Directory
from virnuc_async.models.bundle import find
from virnuc_async.runs.output_directory import STORE
from virnuc_async.sequences.inputs import read_contigs
from virnuc_async.sequences.scan import Spill
from virnuc_async.sequences.segments import SEGMENT_BASES
from virnuc_async.settings import Pairing, Precision, VerdictBy

SMALL = 2000  # bases of a segment


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages of a plan, with their levels."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(line.rstrip("\n")), format="{level}: {message}", level=0)
    yield lines
    logger.remove(sink)


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


async def planned(*inputs: Path | str, run: Path, **more: Any) -> RunPlan:
    """Plan for a T4, with small segments, unless *more* says otherwise."""
    return await make_plan(inputs, run, **{"for_device": "T4", "segment_bases": SMALL, **more})


async def test_what_a_plan_says(tmp_path: Path, run: Path) -> None:
    records = some_records(40, seed=1)
    files = {
        "a.fa": as_fasta(records),
        "none.fa": b"",
        "b.fq.gz": gzip.compress(as_fastq(records)),
        # Two records, and the third is no DNA.
        "broken.fa": as_fasta(records[:2]) + b">x\nACGT!\n",
        "c.fa.zst": FORMS["zst"].pack(as_fasta(records[:30])),
    }
    paths = [write(tmp_path / name, content) for name, content in files.items()]
    plan = await planned(*paths, run=run)
    assert read_plan(run) == plan
    lengths = [[len(r.bases) for r in records[:count]] for count in (40, 0, 40, 2, 30)]
    own = [(file.path, file.size, file.records, file.bases, file.kind) for file in plan.files]
    sizes = [len(content) for content in files.values()]
    kinds = ["contigs", None, "reads", "contigs", "contigs"]
    sums = [sum(one) for one in lengths]
    assert own == [*zip(map(str, paths), sizes, map(len, lengths), sums, kinds, strict=True)]
    failure = "line 6: '!' is not a nucleotide letter (is this protein or text?)"
    assert [file.failure for file in plan.files] == [None, None, None, failure, None]
    found = [replace(one, seek=(0, 0, 0, 1, False)) for one in plan.segments]
    assert found == [replace(one, seek=(0, 0, 0, 1, False)) for one in segments(lengths, SMALL)]
    bundle = find("tiny-500")
    assert plan == replace(
        plan,
        version=__version__,
        model="tiny-500",
        fingerprint=bundle.fingerprint,
        devices="Tesla T4 (capability 7.5, 40 multiprocessors)",
        precision="fp16",
        tokens_per_batch=16384,
        window=4096,
        segment_bases=SMALL,
        flagged=[],
        is_utf8=True,
        notices=[],
    )


async def test_a_segment_is_read_from_its_seek_point(tmp_path: Path, run: Path) -> None:
    # Large enough that not all are read from the beginning.
    reads = [(f"r{number}", "ACGTACGTAC" * 1000) for number in range(1200)]
    path = write(tmp_path / "a.fa", fasta(reads, 80))
    plan = await planned(path, run=run, segment_bases=3_000_000)
    assert [segment.record for segment in plan.segments] == [0, 300, 600, 900]
    assert plan.segments[-1].seek.offset > 4_000_000
    for segment in plan.segments:
        records = read_contigs(str(path), segment.seek)
        first = next(islice(records, segment.record - segment.seek.record, None))
        assert first.id.decode() == f"r{segment.record}"


async def test_the_devices_of_this_machine_by_default(tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    (cpu,) = (device for device in available() if device.capability is None)
    ways = ((Settings(devices="cpu"), None), (None, "cpu"), (None, "CPU"))
    for number, (settings, name) in enumerate(ways):
        plan = await make_plan(path, run / str(number), settings, for_device=name)
        assert (plan.devices, plan.precision, plan.tokens_per_batch) == (cpu.kind, "fp32", 2048)
        assert plan.segment_bases == SEGMENT_BASES == 64_000_000


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("T4", {"precision": "fp32", "tokens_per_batch": 999}, ("fp32", 999)),
        ("h200", {}, ("bf16", 16384)),
        ("H200", {"precision": Precision.FP8}, ("fp8", 16384)),
        ("X (capability 9.9)", {"tokens_per_batch": 1}, ("bf16", 1)),
        ("X (capability 6.1, 1 multiprocessor)", {"tokens_per_batch": 1}, ("fp32", 1)),
        ("CPU (AVX2)", {}, ("fp32", 2048)),
        ("CPU (AVX2)", {"precision": "bf16"}, ("bf16", 3072)),
    ],
)
async def test_stated_devices(
    name: str, settings: dict[str, Any], expected: tuple[str, int], tmp_path: Path, run: Path
) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    plan = await make_plan(path, run, Settings(**settings), for_device=name)
    assert (plan.precision, plan.tokens_per_batch) == expected
    assert name in plan.devices or plan.devices.endswith("multiprocessors)")


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        (
            "A100",
            {},
            UsageError,
            "no kind of device is known as 'A100'. Did you mean A100-40GB or A100-40GB-PCIe?",
        ),
        ("A100", {}, UsageError, "B200, cpu, or a whole kind, as 'virnuc-async devices --kinds' prints it"),
        ("T4", {"precision": "fp8"}, UnsuitablePrecision, "it needs a GPU of capability 8.9 or higher"),
        ("CPU (AVX2)", {"precision": "fp8"}, UnsuitablePrecision, "and that is not CPU (AVX2)"),
        ("X (capability 9.9)", {}, UsageError, "the memory of X (capability 9.9) is not known here: choose"),
        (
            "T4",
            {"devices": "cpu"},
            UsageError,
            "choose the devices of this machine, or --for-device, not both",
        ),
        ("T4", {"gpus": 0}, UsageError, "choose the devices of this machine, or --for-device, not both"),
        ("T4", {"reuse_features": "x"}, UsageError, "plan without --reuse-features"),
        ("T4", {"model": "no-such"}, UnknownBundle, "no-such"),
        ("T4", {"verdict_by": VerdictBy.MEAN, "fpr": 1e-9}, NoThreshold, ""),
    ],
)
async def test_what_cannot_be_planned(
    name: str, settings: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, run: Path
) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    with pytest.raises(error) as caught:
        await make_plan(path, run, Settings(**settings), for_device=name)
    assert message in str(caught.value)
    assert not run.exists()


async def test_inputs_that_can_be_read_only_once(tmp_path: Path, run: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (("-", "standard input"), (tmp_path / "pipe", f"the pipe {tmp_path / 'pipe'}")):
        with pytest.raises(UsageError) as caught:
            await planned(path, run=run)
        assert str(caught.value).startswith(f"{what} can be read only once, and every shard of a run reads")


async def test_inputs_that_are_missing(tmp_path: Path, run: Path) -> None:
    there, missing = write(tmp_path / "a.fa", ">a\nACGT\n"), tmp_path / "b.fa"
    with pytest.raises(MissingInputs, match="--skip-missing"):
        await planned(there, missing, run=run)
    plan = await planned(there, missing, run=run, settings=Settings(skip_missing=True))
    assert plan.files[1].fingerprint is None
    assert (plan.files[1].size, plan.files[1].records) == (0, 0)
    assert plan.files[1].failure == "No such file or directory"


async def test_inputs_without_records(tmp_path: Path, run: Path, logged: list[str]) -> None:
    empty, broken = write(tmp_path / "a.fa", ""), write(tmp_path / "b.fa", "!\n")
    with pytest.raises(NoRecords, match="no sequence record in the 2 inputs"):
        await planned(empty, broken, run=run)
    assert not run.exists()
    plan = await planned(empty, run=run)
    assert len(plan.segments) == 1
    assert "WARNING: no input holds a record: the tables will have their header lines alone" in logged


async def test_ids_and_paths_that_are_no_utf8(tmp_path: Path, run: Path) -> None:
    good = write(tmp_path / "a.fa", ">ä\nACGT\n")
    assert (await planned(good, run=run / "1")).is_utf8
    assert not (await planned(good, write(tmp_path / "b.fa", b">\xff\nACGT\n"), run=run / "2")).is_utf8
    odd = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.fa")), ">a\nACGT\n")
    assert not (await planned(odd, run=run / "3")).is_utf8


async def test_paths_are_whole_and_directories_are_listed(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.fa", "a.fa", "notes.txt"):
        write(tmp_path / "in" / name, ">a\nACGT\n" if name.endswith("fa") else "nothing\n")
    write(tmp_path / "c.fa", ">c\nACGT\n")
    monkeypatch.chdir(tmp_path)
    plan = await planned("in", "c.fa", run=run)
    assert [file.path for file in plan.files] == [
        str(tmp_path / name) for name in ("in/a.fa", "in/b.fa", "c.fa")
    ]
    assert [level for level, text in plan.notices if "notes.txt" in text] == ["INFO"]


SAM = "@HD\tVN:1.6\n" + "".join(
    f"r{n // 2}\t{77 if n % 2 else 141}\t*\t0\t0\t*\t*\t0\t0\tACGT\t*\n" for n in range(4)
)


async def test_mates(tmp_path: Path, run: Path, logged: list[str]) -> None:
    pytest.importorskip("pysam")
    ones, twos = (write(tmp_path / f"s_R{n}.fa", fasta(some_reads(3, 50).items())) for n in (1, 2))
    other = write(tmp_path / "t_R1.fa", ">x\nACGT\n"), write(tmp_path / "t_R2.fa", ">y\nACGT\n")
    flags = write(tmp_path / "u.sam", SAM)
    inputs = (ones, twos, *other, flags)
    plan = await planned(*inputs, run=run)
    assert plan.flagged == [4]
    assert f"INFO: {ones} and {twos} are paired" in logged
    assert f"INFO: {flags}: neighbouring records are paired, as their flags say" in logged
    (warning,) = (line for line in logged if "are named as mates, but record 1 is" in line)
    assert warning.startswith(f"WARNING: {other[0]} and {other[1]}")
    logged.clear()
    plan = await planned(*inputs, run=run / "2", settings=Settings(pairs=Pairing.OFF))
    assert plan.settings["pairs"] == "off"
    assert not any("paired" in line for line in logged)


async def test_the_same_plan_is_not_made_again(tmp_path: Path, run: Path, logged: list[str]) -> None:
    path, told = write(tmp_path / "a.fa", as_fasta(some_records(30))), list[PlanProgress]()
    plan = await planned(path, run=run, on_progress=told.append)
    assert told[0] == PlanProgress(0, 1, 0, path.stat().st_size)
    assert told[-1] == PlanProgress(1, 1, path.stat().st_size, path.stat().st_size)
    told.clear()
    os.utime(path)
    # Nor with other devices of this machine, which are none of a plan's.
    assert await planned(path, run=run, settings=Settings(threads=1), on_progress=told.append) == plan
    assert not told
    assert f"INFO: {run} has this plan already" in logged


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"segment_bases": 999}, "bases per segment: 2000 -> 999"),
        ({"settings": Settings(threshold=0.75)}, "threshold: 0.5 -> 0.75"),
        ({"settings": Settings(tokens_per_batch=7)}, "tokens per batch: 16384 -> 7"),
        ({"settings": Settings(embeddings=True)}, "embeddings: False -> True"),
        ({"settings": Settings(precision="fp32")}, "precision: fp16 -> fp32"),
        (
            {"for_device": "L4"},
            "devices: Tesla T4 (capability 7.5, 40 multiprocessors) -> NVIDIA L4 (capability",
        ),
    ],
)
async def test_another_plan(changes: dict[str, Any], difference: str, tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", as_fasta(some_records(30)))
    plan = await planned(path, run=run)
    with pytest.raises(RunMismatchError) as caught:
        await planned(path, run=run, **changes)
    assert difference in str(caught.value)
    assert str(caught.value).endswith(". Use another directory, or --overwrite")
    assert read_plan(run) == plan
    overwriting = replace(changes.get("settings", Settings()), overwrite=True)
    other = await planned(path, run=run, **{**changes, "settings": overwriting})
    assert read_plan(run) == other != plan


async def test_other_inputs(tmp_path: Path, run: Path) -> None:
    path, other = (write(tmp_path / name, as_fasta(some_records(9))) for name in ("a.fa", "b.fa"))
    await planned(path, run=run)
    for inputs, difference in (((path, other), "was added"), ((other,), "the same files by other paths")):
        with pytest.raises(RunMismatchError, match=difference):
            await planned(*inputs, run=run)
    write(path, as_fasta(some_records(9, seed=2)))
    with pytest.raises(RunMismatchError, match=r"inputs: .*a\.fa has changed"):
        await planned(path, run=run)


async def test_a_plan_whose_shards_have_begun(tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", as_fasta(some_records(9)))
    plan = await planned(path, run=run)
    (run / SHARDS / "00000-of-00002").mkdir(parents=True)
    assert await planned(path, run=run, settings=Settings(overwrite=True)) == plan
    with pytest.raises(RunMismatchError) as caught:
        await planned(path, run=run, settings=Settings(overwrite=True), segment_bases=9)
    assert str(caught.value).endswith("Use another directory: 1 shard of that run began already")
    assert read_plan(run) == plan


async def test_a_plan_of_another_version_is_another_one(tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    write_plan(replace(await planned(path, run=run), version="0.0.1"), run)
    with pytest.raises(RunMismatchError, match=rf"version: 0\.0\.1 -> {__version__}"):
        await planned(path, run=run)


async def test_a_damaged_plan_is_replaced_on_request(tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", as_fasta(some_records(9)))
    plan = await planned(path, run=run)
    write(run / "plan.json", "{")
    with pytest.raises(NoPlan, match="damaged"):
        await planned(path, run=run)
    assert await planned(path, run=run, settings=Settings(overwrite=True)) == plan == read_plan(run)


async def test_directories_that_are_taken(tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    run.mkdir()
    write(run / "job.log", "")
    write(run / STORE, "")
    with pytest.raises(ForeignDirectoryError, match=r"has a run of one machine \(run\.sqlite3\)"):
        await planned(path, run=run)
    (run / STORE).rename(run / "contigs.tsv")
    with pytest.raises(ForeignDirectoryError, match=r"contains 'contigs\.tsv' and no run"):
        await planned(path, run=run)
    (run / "contigs.tsv").unlink()
    assert await planned(path, run=run) == read_plan(run)
    assert sorted(os.listdir(run)) == ["job.log", "plan.json"]


async def test_a_file_that_is_written_to_meanwhile(tmp_path: Path, run: Path) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")

    def append(progress: PlanProgress) -> None:
        if progress.files_done == progress.files:
            write(path, path.read_bytes() + b">b\nACGT\n")

    with pytest.raises(InputChanged):
        await planned(path, run=run, on_progress=append)
    assert not run.exists()


async def test_plain_gzip_is_said_to_be_read_from_its_beginning(
    tmp_path: Path, run: Path, logged: list[str]
) -> None:
    pysam = pytest.importorskip("pysam")
    text = as_fastq(some_records(300))
    plain, blocks = write(tmp_path / "a.fq.gz", gzip.compress(text)), tmp_path / "b.fq.gz"
    with pysam.BGZFile(str(blocks), "wb") as file:
        file.write(text)
    few = write(tmp_path / "c.fq.gz", gzip.compress(as_fastq(some_records(20))))
    assert [is_plain_gzip(str(path)) for path in (plain, blocks, few, tmp_path)] == [True, False, True, False]
    await planned(plain, blocks, few, run=run)
    (line,) = (line for line in logged if "bgzip -@" in line)
    assert line.startswith(
        f"WARNING: {plain}: of plain gzip, each shard reads all that is before its own records"
    )


async def test_several_files_are_read_at_the_same_time(tmp_path: Path) -> None:
    one, two = tmp_path / "1.fa", tmp_path / "2.fa"
    os.mkfifo(one)
    os.mkfifo(two)

    def feed() -> None:
        # The second one first: with one thread, nobody would open it.
        with open(two, "wb") as second, open(one, "wb") as first:
            first.write(b">a\nACGT\n")
            second.write(b">b\nAC\n")

    writer = threading.Thread(target=feed)
    writer.start()
    with Directory(tmp_path) as scratch, Spill(scratch) as spill:
        scans = await Scanning([(str(one), 0), (str(two), 0)], spill, 2).run(lambda _: None)
    writer.join()
    assert [(scan.path, scan.bases) for scan in scans] == [(str(one), 4), (str(two), 2)]


@pytest.mark.parametrize("threads", [1, 3])
async def test_as_many_threads_as_are_asked_for(threads: int, tmp_path: Path, run: Path) -> None:
    paths = [write(tmp_path / f"{n}.fa", b">a\n" + b"ACGT" * 20_000 + b"\n") for n in range(9)]
    workers: list[int] = []

    def count(_: PlanProgress) -> None:
        workers.append(sum("AnyIO worker" in thread.name for thread in threading.enumerate()))

    await planned(*paths, run=run, settings=Settings(threads=threads), on_progress=count)
    assert workers[-1] == threads


async def test_a_scan_that_is_cancelled_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", b">a\n" + b"ACGTACGTACGTACGTACGTACGTACGTACGT\n" * 300_000)
    size = path.stat().st_size
    with Directory(tmp_path) as scratch, Spill(scratch) as spill, anyio.CancelScope() as scope:
        scanning = Scanning([(str(path), size)] * 5, spill, 1)
        await scanning.run(lambda _: scope.cancel())
    assert scope.cancelled_caught
    assert scanning.progress.bytes_done < size
    assert scanning.progress.files_done <= 1


def test_a_plan_for_a_known_card_needs_no_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fa", ">a\nACGT\n")
    script = f"""
import sys, anyio
from virnuc_async import Settings, make_plan
async def plan():
    print((await make_plan({str(path)!r}, {str(tmp_path / "run")!r}, Settings(), for_device="H200")).records)
anyio.run(plan)
print("torch" in sys.modules)
"""
    assert python(script).split() == ["1", "False"]


async def test_a_plan_in_an_object_store(bucket: Bucket, tmp_path: Path, logged: list[str]) -> None:
    path, url = write(tmp_path / "a.fa", as_fasta(some_records(30))), f"{bucket.root}/my/run"
    settings = Settings(temporary_dir=tmp_path / "here")
    plan = await make_plan(path, f"{url}/", settings, for_device="T4", segment_bases=SMALL)
    elsewhere = RemoteRun(url, tmp_path / "there")
    assert elsewhere.require_plan().plan == plan
    assert await make_plan(path, url, settings, for_device="T4", segment_bases=SMALL) == plan
    assert f"INFO: {url} has this plan already" in logged
    # Another machine, which has no part of the run.
    settings = replace(settings, temporary_dir=tmp_path / "there")
    with pytest.raises(RunMismatchError, match="bases per segment: 2000 -> 999") as caught:
        await make_plan(path, url, settings, for_device="T4", segment_bases=999)
    assert caught.value.path == url
    settings = replace(settings, overwrite=True)
    other = await make_plan(path, url, settings, for_device="T4", segment_bases=999)
    fetched = elsewhere.require_plan()
    assert fetched.plan == other
    fetched.directory.joinpath(SHARDS, "00000-of-00002").mkdir(parents=True)
    elsewhere.publish(fetched, "00000-of-00002")
    with pytest.raises(RunMismatchError, match="1 shard of that run began already"):
        await make_plan(path, url, settings, for_device="T4", segment_bases=SMALL)


async def test_two_machines_plan_at_once(bucket: Bucket, tmp_path: Path) -> None:
    path, url = write(tmp_path / "a.fa", as_fasta(some_records(30))), f"{bucket.root}/run"

    def plan_elsewhere(size: int) -> RunPlan:
        return anyio.run(
            partial(
                make_plan,
                path,
                url,
                Settings(temporary_dir=tmp_path / "2"),
                for_device="T4",
                segment_bases=size,
            )
        )

    async def plan_late(size: int) -> RunPlan:
        def other_is_first(progress: PlanProgress) -> None:
            if progress.files_done == progress.files:
                with ThreadPoolExecutor(1) as pool:
                    firsts.append(pool.submit(plan_elsewhere, size).result())

        settings = Settings(temporary_dir=tmp_path / "1")
        return await make_plan(
            path, url, settings, for_device="T4", segment_bases=SMALL, on_progress=other_is_first
        )

    firsts: list[RunPlan] = []
    with pytest.raises(RunMismatchError, match="bases per segment: 999 -> 2000"):
        await plan_late(999)
    url = f"{bucket.root}/another"
    assert await plan_late(SMALL) == firsts[-1]
