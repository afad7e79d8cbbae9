"""Every error has a text, its facts as fields, and its place in the tree of the docstring."""

import inspect
import pickle
import re

import pytest

from virnuc_async import errors
from virnuc_async.errors import (
    AmbiguousFeatures,
    BadBundle,
    BadCheckpoint,
    BadFeatures,
    BadRecord,
    BadReference,
    BadTable,
    BrokenInput,
    BundleError,
    CannotWrite,
    ChecksumMismatch,
    ClusterError,
    DamagedStore,
    DeviceError,
    DeviceLost,
    DeviceOutOfMemory,
    DirectoryLockedError,
    DownloadBusy,
    DownloadError,
    DownloadInterrupted,
    DownloadRefused,
    FeatureError,
    FeatureMismatchError,
    ForeignDirectoryError,
    InputChanged,
    InputError,
    LabelError,
    LockHeldRemotely,
    LostInput,
    MissingClassError,
    MissingInputs,
    MixedDevices,
    NoCacheDirectory,
    NoDevicesLeft,
    NoFeatures,
    NoPlan,
    NoRecords,
    NoReference,
    NoRun,
    NoThreshold,
    NotSequences,
    OutputError,
    PeerUnavailable,
    PlanMismatch,
    RunMismatchError,
    ScorerBusy,
    ScorerClosed,
    ShardsMissing,
    SharedSequences,
    Stage,
    TooFewClusters,
    TooLarge,
    TrainingDiverged,
    UnknownBundle,
    UnknownDevice,
    UnreadableInput,
    UnsuitablePrecision,
    UsageError,
    VirnucError,
)

CLASSES = {
    kind.__name__: kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, Exception) and not kind.__name__.startswith("_")
}

TEXTS: list[tuple[VirnucError, str]] = [
    (VirnucError("text"), "text"),
    (UsageError("name an input"), "name an input"),
    (InputError("a.fa", "odd"), "a.fa: odd"),
    (UnreadableInput("a.fa", "Permission denied"), "a.fa: Permission denied"),
    (
        MissingInputs([UnreadableInput("a.fa", "gone")], ", or skip it"),
        "a.fa: gone. Nothing was begun: correct the name, or skip it",
    ),
    (MissingInputs([UnreadableInput("a.fa", "gone")]), "a.fa: gone"),
    (
        MissingInputs([UnreadableInput("a.fa", "gone"), UnreadableInput("b.fa", "no")]),
        "2 inputs cannot be read. Nothing was begun: correct the names\na.fa: gone\nb.fa: no",
    ),
    (NotSequences("a.fa", 12345, "saw 'x'"), "a.fa: line 12,345: saw 'x'"),
    (TooLarge("a.fa", 12345, "an endless record"), "a.fa: line 12,345: an endless record"),
    (BrokenInput("a.fa.gz", 1000, "ended early"), "a.fa.gz: breaks after 1,000 records: ended early"),
    (BadRecord(2, b"a\x1b", "odd"), "record 2 (a\\x1b): odd"),
    (
        LostInput("a.fa", "it has changed since it was scored"),
        "a.fa: it has changed since it was scored. Viral sequences are read from the inputs again: put this "
        "one back as it was, or go on without --viral-fasta",
    ),
    (
        InputChanged("a.fa"),
        "a.fa has changed since this run began. Rerun the same command when nothing writes to it: what was "
        "scored before the change is kept",
    ),
    (NoRecords(["a.fa"]), "no sequence record in a.fa"),
    (
        NoRecords(["a.fa", "b.fa"], [UnreadableInput("b.fa", "gone")]),
        "no sequence record in the 2 inputs\nb.fa: gone",
    ),
    (BundleError("text"), "text"),
    (UnknownBundle("x", ["tiny-500", "mine"]), "no model 'x' here. Installed: tiny-500, mine."),
    (
        UnknownBundle("x", ["tiny-500"], ["tiny-500", "x"]),
        "no model 'x' here. Installed: tiny-500. Get it with: models download x",
    ),
    (
        UnknownBundle("tiny-50", ["tiny-500"], ["tiny-500", "big-500"]),
        "no model 'tiny-50' here. Did you mean tiny-500? Installed: tiny-500. To download: big-500.",
    ),
    (BadBundle("/m", "bundle.json: gone"), "/m is not a usable bundle: bundle.json: gone"),
    (BadCheckpoint("/m/x.pt", "too old"), "/m/x.pt cannot be imported: too old"),
    (
        NoThreshold("mine", "it has no calibration"),
        "the model 'mine' has no threshold for this false positive rate: it has no calibration. "
        "'calibrate --viral FILE --nonviral FILE --output DIR --model DIR' makes one of labelled "
        "sequences, in a copy of the model if it comes with the program",
    ),
    (
        NoReference("mine"),
        "the model 'mine' has no reference to verify it against. If it is known to be correct, "
        "'models verify --record' records one: its outputs on a CPU in FP32",
    ),
    (
        BadReference("/m/reference.json", "gone"),
        "/m/reference.json is not a usable reference: gone",
    ),
    (
        PeerUnavailable("fair-esm", "No module named 'esm'"),
        "the ESM-2 of fair-esm cannot be used: No module named 'esm'. The installation is broken; repair it "
        "with: pip install --force-reinstall fair-esm==2.0.0 'transformers>=4.50' (and without the "
        "package 'esm', which hides fair-esm)",
    ),
    (
        UnknownBundle("x", ["tiny-500"], ["x"], "/c: Permission denied"),
        "no model 'x' here. Installed: tiny-500. Others cannot be seen: /c: Permission denied",
    ),
    (
        NoCacheDirectory("the home directory is unknown"),
        "there is no directory for models: the home directory is unknown. "
        "Choose another directory for models with --cache-dir, or set VIRNUC_ASYNC_CACHE_DIR",
    ),
    (DownloadError("text"), "text"),
    (
        DownloadRefused("https://h/x", "the server answers 404 Not Found"),
        "https://h/x cannot be downloaded: the server answers 404 Not Found. Behind a proxy, set "
        "HTTPS_PROXY; otherwise use a --mirror, or get the files elsewhere and use 'models import' "
        "(docs/how-to/models.md)",
    ),
    (
        DownloadInterrupted("https://h/x", "the server is silent", 6),
        "https://h/x was not downloaded completely: the server is silent. "
        "No progress in 6 attempts; if it fails again, use a --mirror, or get the files elsewhere and use "
        "'models import' (docs/how-to/models.md). "
        "Received data is kept: rerun the same command to resume",
    ),
    (
        ChecksumMismatch("https://h/x", "its sha256 is a", is_deleted=True),
        "https://h/x is not the published file: its sha256 is a. It was deleted: rerun the same command to "
        "download it again. If that does not help, use a --mirror that has the published one, or get the "
        "files elsewhere and use 'models import' (docs/how-to/models.md)",
    ),
    (
        ChecksumMismatch("https://h/x", "it has 3 bytes"),
        "https://h/x is not the published file: it has 3 bytes. Nothing of it was used. If this happens "
        "again, use a --mirror that has the published one, or get the files elsewhere and use "
        "'models import' (docs/how-to/models.md)",
    ),
    (
        DownloadBusy("/m/.download"),
        "another process is downloading into /m/.download. "
        "Wait for it to end, then rerun the same command: it uses what was downloaded",
    ),
    (FeatureError("text"), "text"),
    (LabelError("text"), "text"),
    (
        MissingClassError("viral", "the ORFs for test"),
        "nothing viral in the ORFs for test: both classes are needed",
    ),
    (
        TooFewClusters("viral", 2, 3),
        "2 clusters of viral records cannot be divided into 3 splits. Clusters are those of --clusters, else "
        "of genome= in the headers, else single records",
    ),
    (
        TrainingDiverged(1, 0.5),
        "the loss is NaN or infinite after epoch 1: choose a lower --rate than 0.5",
    ),
    (BadTable("c.tsv", "has no line for x"), "c.tsv: has no line for x"),
    (
        SharedSequences(3, 1000, 31),
        "3 of 1,000 held-out records share 31-mers with training records, so metrics on them would be "
        "optimistic. Cluster the sequences and give the table with --clusters, or leave these records out "
        "with --leakage drop",
    ),
    (
        NoFeatures("old", "no file there is named *_ESM.pt"),
        "no features to reuse in old: no file there is named *_ESM.pt",
    ),
    (
        BadFeatures("old/a_ESM.pt", "damaged"),
        "old/a_ESM.pt cannot be reused: damaged. Move it elsewhere to compute its embeddings again",
    ),
    (
        AmbiguousFeatures("x_chunk_1F1", "the id occurs twice in the input"),
        "ambiguous features for x_chunk_1F1: the id occurs twice in the input. "
        "Ids must be unique when --reuse-features is given",
    ),
    (
        FeatureMismatchError("x_chunk_1F1", ["a", "b"], 0.5, 0.999),
        "the features of x_chunk_1F1 in a and b are of a different sequence or a different model: their "
        "cosine similarity to what this model computes (lower if lengths differ) is 0.50000, below 0.999. "
        "Use another --reuse-features or none, and --overwrite to start over",
    ),
    (DeviceError("text"), "text"),
    (UnknownDevice("cuda:7", ["cuda:0", "cpu"]), "no device 'cuda:7' here. There are: cuda:0, cpu"),
    (
        UnknownDevice("cuda0", ["cuda:0", "cpu"]),
        "no device 'cuda0' here. Did you mean cuda:0? There are: cuda:0, cpu",
    ),
    (DeviceOutOfMemory("cuda:0", 4096), "cuda:0 ran out of memory on a batch of 4,096 tokens"),
    (DeviceLost("cuda:0", "bus error"), "cuda:0 failed: bus error"),
    (
        NoDevicesLeft([DeviceLost("cuda:0", "a"), DeviceLost("cuda:1", "b")]),
        "too many devices failed (cuda:0 failed: a; cuda:1 failed: b). "
        "Finished work is kept: rerun the same command to resume",
    ),
    (ClusterError("auto", "no node"), "Ray (auto): no node"),
    (ScorerBusy(1), "too much waits already (1 ORF): try again in a moment, or let score() wait"),
    (ScorerClosed(), "the scorer is not open: use it within 'async with Scorer(...) as scorer'"),
    (
        MixedDevices(["CPU", "GPU with BF16"]),
        "these devices compute differently (CPU, GPU with BF16): "
        "name devices of one kind, or choose --precision fp32, bf16 or fp16 to mix them",
    ),
    (
        UnsuitablePrecision("FP16", "a number is too large", "fp32"),
        "cannot compute in FP16: a number is too large. Use --precision fp32",
    ),
    (OutputError("out", "odd"), "out: odd"),
    (ForeignDirectoryError("out", "contains 'x'"), "out: contains 'x'"),
    (NoRun("out", "contains no run"), "out: contains no run"),
    (
        RunMismatchError("out", ["threshold: 0.5 -> 0.6", "model: a -> b"]),
        "out: contains a different run: threshold: 0.5 -> 0.6; model: a -> b. "
        "Use another directory, or --overwrite",
    ),
    (NoPlan("run", "there is no plan.json"), "run: there is no plan.json"),
    (PlanMismatch("run", ["a: 1 -> 2", "b"]), "run: is not as planned: a: 1 -> 2; b"),
    (ShardsMissing("run", ["1/3 is missing", "2/3"]), "run: cannot be merged: 1/3 is missing; 2/3"),
    (
        DirectoryLockedError("out", "another process is writing there"),
        "out: another process is writing there",
    ),
    (
        LockHeldRemotely("out", "process 3 on node7"),
        "out: is locked by process 3 on node7, which cannot be checked from this machine",
    ),
    (DamagedStore("out", "its run.sqlite3 is damaged"), "out: its run.sqlite3 is damaged"),
    (CannotWrite("out", "No space left on device"), "out: No space left on device"),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: type(value).__name__)
def test_text_and_exit_code(error: VirnucError, text: str) -> None:
    assert str(error) == text
    assert error.exit_code == (64 if isinstance(error, UsageError) else 1)


def test_every_class_is_tested_here() -> None:
    assert {type(error) for error, _ in TEXTS} == set(CLASSES.values())


def test_facts_are_fields() -> None:
    assert (NotSequences("a", 3, "b").line, BrokenInput("a", 3, "b").records) == (3, 3)
    lost = DeviceLost("cuda:0", "why")
    assert (lost.device, lost.reason, NoDevicesLeft([lost]).lost) == ("cuda:0", "why", (lost,))
    assert (ClusterError("auto", "why").address, ClusterError("auto", "why").reason) == ("auto", "why")
    full = DeviceOutOfMemory("cuda:0", 7)
    assert (full.device, full.tokens, full.stage) == ("cuda:0", 7, Stage.PROTEIN)
    assert DeviceOutOfMemory("cuda:0", 7, Stage.NUCLEOTIDE).stage == "DNABERT-S"
    assert UnknownBundle("x", iter("ab")).known == UnknownDevice("x", iter("ab")).known == ("a", "b")
    assert MixedDevices(["a", "b"]).kinds == ("a", "b")
    assert RunMismatchError("out", ["a"]).differences == ("a",)
    assert PlanMismatch("run", ["a"]).differences == ShardsMissing("run", ["a"]).problems == ("a",)
    assert CannotWrite("out", "why").path == "out"
    gone = UnreadableInput("b", "c")
    assert (MissingInputs([gone]).path, MissingInputs([gone], "h").hint) == ("b", "h")
    assert (NoRecords(["a"], [gone]).paths, NoRecords(["a"], [gone]).failures) == (("a",), (gone,))


def test_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert errors.__doc__
    path: list[str] = []
    drawn = {}
    for line in errors.__doc__.splitlines():
        if found := re.match(r"    ([│├└─ ]*)([A-Z][A-Za-z]+)  +\S", line):
            level = len(found[1]) // 4
            path[level:] = [found[2]]
            drawn[found[2]] = path[level - 1] if level else "Exception"
    assert drawn == {name: parent(kind) for name, kind in CLASSES.items()}


def parent(kind: type[Exception]) -> str:
    """Return the name of the first public base class."""
    return next(base.__name__ for base in kind.__mro__[1:] if not base.__name__.startswith("_"))


def test_exit_codes_are_those_of_the_docstring() -> None:
    assert errors.__doc__
    codes = dict(re.findall(r"([A-Z][A-Za-z]+) +exit code (\d+)", errors.__doc__))
    assert codes == {"VirnucError": "1", "UsageError": "64"}


def test_stages_are_those_of_the_file() -> None:
    assert [str(stage) for stage in Stage] == ["Input", "DNABERT-S", "ESM-2", "Classifier", "Output"]


@pytest.mark.parametrize("error", [error for error, _ in TEXTS])
def test_errors_are_the_same_in_another_process(error: VirnucError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert repr((again.args, vars(again))) == repr((error.args, vars(error)))
