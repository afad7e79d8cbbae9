"""Every failure says its facts, keeps them as fields, and stands where the docstring says."""

import inspect
import re

import pytest

from virnuc_async import errors as failures
from virnuc_async.errors import (
    AmbiguousFeatures,
    BadBundle,
    BadCheckpoint,
    BadFeatures,
    BadReference,
    BadTable,
    BrokenInput,
    BundleError,
    CannotWrite,
    ChecksumMismatch,
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
    InputError,
    LabelError,
    LockHeldRemotely,
    MissingClassError,
    MixedDevices,
    NoDevicesLeft,
    NoFeatures,
    NoRecords,
    NoReference,
    NotSequences,
    OutputError,
    RunMismatchError,
    SharedSequences,
    Stage,
    TooFewClusters,
    TooLarge,
    TrainingDiverged,
    UnknownBundle,
    UnknownDevice,
    UnreadableInput,
    UsageError,
    VirnucError,
)

CLASSES = {
    kind.__name__: kind
    for _, kind in inspect.getmembers(failures, inspect.isclass)
    if issubclass(kind, Exception)
}

SAID: list[tuple[VirnucError, str]] = [
    (VirnucError("text"), "text"),
    (UsageError("name an input"), "name an input"),
    (InputError("a.fa", "odd"), "a.fa: odd"),
    (UnreadableInput("a.fa", "Permission denied"), "a.fa: Permission denied"),
    (NotSequences("a.fa", 12345, "saw 'x'"), "a.fa: line 12,345: saw 'x'"),
    (TooLarge("a.fa", 12345, "an endless record"), "a.fa: line 12,345: an endless record"),
    (BrokenInput("a.fa.gz", 1000, "ended early"), "a.fa.gz: breaks after 1,000 records: ended early"),
    (NoRecords(["a.fa"]), "no sequence record in a.fa"),
    (
        NoRecords(["a.fa", "b.fa"], [UnreadableInput("b.fa", "gone")]),
        "no sequence record in the 2 inputs\nb.fa: gone",
    ),
    (BundleError("text"), "text"),
    (UnknownBundle("x", ["tiny-500", "mine"]), "no model 'x' here. Installed: tiny-500, mine."),
    (UnknownBundle("x", ["tiny-500"], "Get it."), "no model 'x' here. Installed: tiny-500. Get it."),
    (BadBundle("/m", "bundle.json: gone"), "/m is not a usable bundle: bundle.json: gone"),
    (BadCheckpoint("/m/x.pt", "too old"), "/m/x.pt cannot be imported: too old"),
    (
        NoReference("mine"),
        "the model 'mine' has no reference to be verified by. Where it is known to be right, "
        "'models verify --record' makes one of what a CPU gives in FP32",
    ),
    (
        BadReference("/m/reference.json", "gone"),
        "/m/reference.json is not a reference to verify a model by: gone",
    ),
    (DownloadError("text"), "text"),
    (
        DownloadRefused("https://h/x", "the server answers 404 Not Found"),
        "https://h/x cannot be had: the server answers 404 Not Found. Behind a proxy, set HTTPS_PROXY; else "
        "name a --mirror, or get the files elsewhere and use 'models import' (docs/how-to/models.md)",
    ),
    (
        DownloadInterrupted("https://h/x", "the server is silent"),
        "https://h/x could not be had to the end: the server is silent. "
        "What has come is kept: the same command goes on",
    ),
    (
        ChecksumMismatch("https://h/x", "its sha256 is a", is_deleted=True),
        "https://h/x is not the file that it should be: its sha256 is a. It was deleted: the same command "
        "gets it again. If that does not help, name a --mirror that has the published one, or get the files "
        "elsewhere and use 'models import' (docs/how-to/models.md)",
    ),
    (
        ChecksumMismatch("https://h/x", "it has 3 bytes"),
        "https://h/x is not the file that it should be: it has 3 bytes. Nothing of it was used. If it stays "
        "so, name a --mirror that has the published one, or get the files elsewhere and use 'models import' "
        "(docs/how-to/models.md)",
    ),
    (
        DownloadBusy("/m/.download"),
        "another process is downloading into /m/.download. "
        "Wait for it: the same command then finds what it got",
    ),
    (FeatureError("text"), "text"),
    (LabelError("text"), "text"),
    (
        MissingClassError("viral", "the ORFs for test"),
        "nothing viral in the ORFs for test: both classes are needed",
    ),
    (
        TooFewClusters("viral", 2, 3),
        "2 clusters of viral records cannot be split into 3 sides. A cluster is what --clusters says, else a "
        "genome= of the headers, else a record",
    ),
    (TrainingDiverged(1, 0.5), "the loss is no number after epoch 1: choose a lower --rate than 0.5"),
    (BadTable("c.tsv", "has no line for x"), "c.tsv: has no line for x"),
    (
        SharedSequences(3, 1000, 31),
        "3 of 1,000 held-out records share stretches of 31 bases with training ones, and figures on them "
        "would flatter. Cluster the sequences and name the table with --clusters, or have them left out with "
        "--leaks drop",
    ),
    (
        NoFeatures("old", "no file there is named *_ESM.pt"),
        "no features to reuse in old: no file there is named *_ESM.pt",
    ),
    (
        BadFeatures("old/a_ESM.pt", "damaged"),
        "old/a_ESM.pt cannot be reused: damaged. Move it elsewhere to have what it holds computed anew",
    ),
    (
        AmbiguousFeatures("x_chunk_1F1", "the input has it twice"),
        "nobody can tell whose features those of x_chunk_1F1 are: the input has it twice. "
        "Ids must be unique where features are reused",
    ),
    (
        FeatureMismatchError("x_chunk_1F1", ["a", "b"], 0.5, 0.999),
        "the features of x_chunk_1F1 in a and b are of another sequence or of another model: the cosine "
        "to what this model gives (less where lengths differ) is 0.50000, not 0.999 or more. "
        "Start anew without them: with another --reuse-features or none, and --overwrite",
    ),
    (DeviceError("text"), "text"),
    (UnknownDevice("cuda:7", ["cuda:0", "cpu"]), "no device 'cuda:7' here. There are: cuda:0, cpu"),
    (DeviceOutOfMemory("cuda:0", 4096), "cuda:0 ran out of memory on a batch of 4,096 tokens"),
    (DeviceLost("cuda:0", "bus error"), "cuda:0 failed: bus error"),
    (
        NoDevicesLeft([DeviceLost("cuda:0", "a"), DeviceLost("cuda:1", "b")]),
        "too many devices failed to go on (cuda:0 failed: a; cuda:1 failed: b). "
        "Finished work is kept: the same command resumes",
    ),
    (
        MixedDevices(["CPU", "GPU with BF16"]),
        "these devices compute differently (CPU, GPU with BF16): "
        "name devices of one kind, or choose --precision fp32 or bf16 to mix them",
    ),
    (OutputError("out", "odd"), "out: odd"),
    (ForeignDirectoryError("out", "holds 'x'"), "out: holds 'x'"),
    (
        RunMismatchError("out", ["threshold was 0.5, is 0.6 now", "model was a, is b now"]),
        "out: holds another run: threshold was 0.5, is 0.6 now; model was a, is b now. "
        "Choose another directory, or --overwrite to start anew",
    ),
    (
        DirectoryLockedError("out", "another process is writing there"),
        "out: another process is writing there",
    ),
    (
        LockHeldRemotely("out", "process 3 on node7"),
        "out: process 3 on node7 holds it, which cannot be seen from this machine",
    ),
    (DamagedStore("out", "its run.sqlite3 is damaged"), "out: its run.sqlite3 is damaged"),
    (CannotWrite("out", "No space left on device"), "out: No space left on device"),
]


@pytest.mark.parametrize(("failure", "text"), SAID, ids=lambda value: type(value).__name__)
def test_failure_says_its_facts(failure: VirnucError, text: str) -> None:
    assert str(failure) == text
    assert failure.exit_code == (64 if isinstance(failure, UsageError) else 1)


def test_every_failure_is_tried_here() -> None:
    assert {type(failure) for failure, _ in SAID} == set(CLASSES.values())


def test_facts_are_fields() -> None:
    assert (NotSequences("a", 3, "b").line, BrokenInput("a", 3, "b").records) == (3, 3)
    lost = DeviceLost("cuda:0", "why")
    assert (lost.device, lost.reason, NoDevicesLeft([lost]).lost) == ("cuda:0", "why", (lost,))
    full = DeviceOutOfMemory("cuda:0", 7)
    assert (full.device, full.tokens, full.stage) == ("cuda:0", 7, Stage.PROTEIN)
    assert DeviceOutOfMemory("cuda:0", 7, Stage.NUCLEOTIDE).stage == "DNABERT-S"
    assert UnknownBundle("x", iter("ab")).known == UnknownDevice("x", iter("ab")).known == ("a", "b")
    assert MixedDevices(["a", "b"]).kinds == ("a", "b")
    assert RunMismatchError("out", ["a"]).differences == ("a",)
    assert CannotWrite("out", "why").path == "out"
    gone = UnreadableInput("b", "c")
    assert (NoRecords(["a"], [gone]).paths, NoRecords(["a"], [gone]).failures) == (("a",), (gone,))


def test_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    assert failures.__doc__
    path: list[str] = []
    drawn = {}
    for line in failures.__doc__.splitlines():
        if found := re.match(r"    ([│├└─ ]*)([A-Z][A-Za-z]+)  +\S", line):
            level = len(found[1]) // 4
            path[level:] = [found[2]]
            drawn[found[2]] = path[level - 1] if level else "Exception"
    assert drawn == {name: kind.__base__.__name__ for name, kind in CLASSES.items()}  # type: ignore[union-attr]


def test_exit_codes_are_those_of_the_docstring() -> None:
    assert failures.__doc__
    codes = dict(re.findall(r"([A-Z][A-Za-z]+) +exit code (\d+)", failures.__doc__))
    assert codes == {"VirnucError": "1", "UsageError": "64"}


def test_stages_are_the_words_of_the_file() -> None:
    assert [str(stage) for stage in Stage] == ["Input", "DNABERT-S", "ESM-2", "Classifier", "Output"]
