"""How far a run is, what is left of it, and until when."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from logged import read, window, working

from virnuc_async.engine.device_state import DeviceState
from virnuc_async.engine.gpu_memory import MemoryUse
from virnuc_async.errors import BrokenInput
from virnuc_async.runs.progress import Counts, DeviceCounts, DeviceStage, State, device_facts
from virnuc_async.runs.work_ahead import Work
from virnuc_async.sequences.reading import Place
from virnuc_async.sequences.windows import FileRow

# The whole, estimated


def begun(*files: tuple[str, int | None]) -> Counts:
    counts = Counts(started=990.0)
    counts.begin(files)
    counts.expect(["cpu:0"])
    counts.ready("cpu:0", now=1000.0)
    return counts


def test_the_whole_is_estimated_from_the_bytes_that_are_read() -> None:
    counts = begun(("a.fa", 1000))
    assert counts.total() is None
    counts.add_window(window(0, 10, 500, Place(0, 100.0)), (10, 500))
    assert counts.total() == Work(100.0, 5000.0)
    counts.add_window(window(1, 10, 900, Place(0, 300.0)), (10, 900))
    assert counts.total() == (pytest.approx(20 / 0.3), pytest.approx(1400 / 0.3))
    counts.all_read()
    assert counts.total() == Work(20, 1400)


def test_files_of_one_kind_have_as_much_a_byte() -> None:
    counts = begun(("a.fa", 1000), ("b.fasta", 3000), ("c.fna", 0))
    counts.add_window(window(0, 10, 500, Place(1, 0.0)), (10, 500))
    assert counts.total() == Work(40, 2000)
    counts.add_window(window(1, 60, 3000, Place(1, 2000.0)), (60, 3000))
    assert counts.total() == (pytest.approx(70 * 4 / 3), pytest.approx(3500 * 4 / 3))


def test_a_kind_that_was_not_read_has_as_much_a_base() -> None:
    counts = begun(("a.fa", 1000), ("b.fq.gz", 1000))
    counts.add_window(window(0, 10, 500, Place(0, 500.0)), (10, 500))
    # Compressed FASTQ is taken to have 1 / (1.9 * 0.27) bases a byte, with twice the work.
    assert counts.total() == Work(pytest.approx(20 + 40 / 0.513), pytest.approx(1000 + 2000 / 0.513))
    counts.add_window(window(1, 20, 1000, Place(1, 100.0)), (20, 1000))
    total = counts.total()
    assert total is not None
    # This window ran over both: by then a byte of the second was taken to have 3.9 times as much.
    first, second = 500, 200 / 0.513
    of_second = 1000 * second / (first + second)
    expected = 1500 + of_second / 100 * 900
    assert total.tokens == pytest.approx(expected)


def test_what_does_not_come_of_a_broken_file_is_not_ahead() -> None:
    counts = begun(("a.fa", 1000), ("b.fa", 1000))
    counts.add_window(window(0, 10, 500, Place(0, 500.0)), (10, 500))
    broken = FileRow(0, "a.fa", 10, BrokenInput("a.fa", 10, "it ends"))
    counts.add_window(window(1, 10, 500, Place(1, 500.0), (broken,)), (10, 500))
    assert counts.total() == Work(30, 1500)


@pytest.mark.parametrize("files", [[("-", None)], [("a.fa", 100), ("-", None)], [("-", None), ("a.fa", 100)]])
def test_a_stream_has_no_end_before_it_ends(files: list[tuple[str, int | None]]) -> None:
    counts = begun(*files)
    stream = next(number for number, (_, size) in enumerate(files) if size is None)
    counts.add_window(window(0, 10, 500, Place(stream, 0.0)), (10, 500))
    counts.finished("cpu:0", 5, 250, 0)
    assert (counts.total(), counts.share, counts.seconds_left(1010.0)) == (None, None, None)
    assert counts.line(1010.0) == (
        "5 ORFs, 10 read so far"
        + (", 0 of 2 files" if len(files) == 2 else "")
        + ", time left unknown: the input has no size (cpu:0, 100%, 0 ORFs/s, 25 tokens/s)"
    )
    counts.all_read()
    assert counts.share == 0.5
    assert counts.seconds_left(1010.0) == 10.0


def test_a_file_behind_a_stream_is_estimated_when_some_of_it_is_read() -> None:
    counts = begun(("-", None), ("a.fa", 100))
    counts.add_window(window(0, 10, 500, Place(1, 0.0)), (10, 500))
    assert counts.total() is None
    counts.add_window(window(1, 10, 500, Place(1, 50.0)), (10, 500))
    assert counts.total() == Work(30, 1500)


# The share of the work


def test_the_share_is_that_of_the_tokens() -> None:
    counts = begun(("a.fa", 1000))
    counts.add_window(window(0, 10, 500, Place(0, 100.0)), (10, 500))
    counts.finished("cpu:0", 2, 250, 0)
    assert counts.share == 0.05
    assert counts.seconds_left(1010.0) == pytest.approx(4750 / 25)


def test_the_share_does_not_become_less_when_more_is_found_to_come() -> None:
    counts = begun(("a.fa", 1000))
    counts.add_window(window(0, 10, 500, Place(0, 500.0)), (10, 500))
    counts.finished("cpu:0", 10, 500, 0)
    assert counts.share == 0.5
    counts.add_window(window(1, 10, 9500, Place(0, 600.0)), (10, 9500))
    assert counts.share == 0.5
    # The time left is what it is.
    assert counts.seconds_left(1010.0) == pytest.approx((10_000 / 0.6 - 500) / 50)


FILES = st.lists(st.sampled_from([None, 0, 10, 1000, 10**9]), min_size=1, max_size=4)
DEVICES = st.sampled_from(["cpu:0", "cpu:1"])
READ = st.tuples(st.integers(0, 9), st.integers(0, 900), st.integers(0, 9), st.floats(0, 2000))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), READ, st.integers(0, 3), st.booleans()),
        st.tuples(st.sampled_from(["score", "ready", "stop"]), DEVICES),
        st.tuples(st.just("wait"), st.floats(0, 400)),
    ),
    max_size=40,
)


class Watched:
    """A run to which anything happens; what is shown of it is checked each time."""

    def __init__(self, sizes: list[int | None]) -> None:
        self.counts, self.now = Counts(started=0.0), 1.0
        files = [(f"{number}.{'fa' if number % 2 else 'fq.gz'}", size) for number, size in enumerate(sizes)]
        self.counts.begin(files)
        self.counts.expect(["cpu:0", "cpu:1"])
        self.left: list[tuple[int, int, int]] = []  # window, ORFs, tokens
        self.shares: list[float] = []
        self.windows = self.files = 0

    def read(self, what: tuple[int, int, int, float], file: int, fails: bool) -> None:
        orfs, tokens, done, offset = what
        tokens, done = (tokens if orfs else 0), min(done, orfs)
        failure = BrokenInput("a", 1, "no") if fails else None
        ends = tuple(FileRow(at, "a", 1, failure) for at in range(self.files, min(file, self.counts.files)))
        self.files += len(ends)
        todo = (orfs - done, tokens - tokens * done // max(1, orfs))
        self.counts.add_window(window(self.windows, orfs, tokens, Place(file, offset), ends), todo)
        self.left += [(self.windows, *todo)] if todo[0] else []
        self.windows += 1

    def score(self, device: str) -> None:
        if self.left and self.counts.devices[device].stage is DeviceStage.SCORING:
            number, orfs, tokens = self.left.pop()
            self.counts.finished(device, orfs, tokens, number)

    def ready(self, device: str) -> None:
        if self.counts.devices[device].stage is DeviceStage.LOADING:
            self.counts.ready(device, self.now)

    def stop(self, device: str) -> None:
        self.counts.stopped(device)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.counts.mark(self.now)

    def check(self) -> None:
        share, seconds = self.counts.share, self.counts.seconds_left(self.now)
        assert seconds is None or seconds >= 0
        assert share is not None or not self.shares
        if share is not None:
            self.shares.append(share)
            assert 0 <= share <= 1
            assert self.shares == sorted(self.shares)
            assert share < 1 or self.counts.is_all_done
        assert self.counts.line(self.now)
        assert 0 <= self.counts.files_done <= self.counts.files


@given(EVENTS, FILES)
def test_the_bar_never_moves_back_whatever_happens(
    events: list[tuple[object, ...]], sizes: list[int | None]
) -> None:
    run = Watched(sizes)
    for name, *facts in events:
        getattr(run, str(name))(*facts)
        run.check()
    run.counts.all_read()
    run.check()
    for number, orfs, tokens in run.left:
        run.counts.finished("cpu:0", orfs, tokens, number)
        run.check()
    assert run.counts.is_all_done
    assert run.counts.share == 1.0
    assert run.counts.done.orfs == run.counts.read


# Speed and time


def test_speed_is_that_of_the_last_minutes() -> None:
    device = DeviceCounts("cpu:0")
    assert device.rate(5.0) == Work()
    device.start(0.0)
    for second in range(0, 3600, 10):
        device.tokens += 100 if second < 1800 else 1000
        device.mark(float(second))
    assert device.rate(3600.0).tokens == pytest.approx(100, rel=0.05)
    device.stage = DeviceStage.STOPPED
    assert device.rate(3600.0) == Work()


def test_time_left_is_by_the_devices_that_work() -> None:
    counts = working(**{"cpu:0": (10, 1000), "cpu:1": (10, 1000)})
    read(counts, 100, 10_000, is_all=True)
    assert counts.seconds_left(1010.0) == pytest.approx(8000 / 200)
    counts.stopped("cpu:1")
    assert counts.seconds_left(1010.0) == pytest.approx(8000 / 100)


def test_what_was_done_before_is_done_and_does_not_make_this_session_faster() -> None:
    counts = working(**{"cpu:0": (100, 1000)})
    counts.begin([("a.fa", 1000)])
    counts.add_window(window(0, 5000, 50_000, Place(0, 500.0)), (0, 0))
    counts.add_window(window(1, 600, 6000, Place(0, 560.0)), (600, 6000))
    assert counts.before == Work(5000, 50_000)
    assert counts.done == Work(5100, 51_000)
    assert counts.seconds_left(1010.0) == pytest.approx((100_000 - 51_000) / 100)
    assert counts.share == pytest.approx(0.51)


def test_time_left_is_not_known_before_something_is_scored() -> None:
    counts = Counts(started=0.0)
    read(counts, 200, 2000, is_all=True)
    assert counts.seconds_left(10.0) is None
    counts.ready("cpu:0", now=0.0)
    assert counts.seconds_left(10.0) is None


# Files


def test_a_file_is_done_when_all_before_its_end_is_scored() -> None:
    counts = begun(("a.fa", 10), ("b.fa", 10), ("c.fa", 10))
    a, b, c = (FileRow(number, name, 1, None) for number, name in enumerate("abc"))
    counts.add_window(window(0, 4, 40), (4, 40))
    counts.add_window(window(1, 4, 40, files=(a, b)), (4, 40))
    counts.add_window(window(2, 0, 0, files=(c,)), (0, 0))
    counts.finished("cpu:0", 4, 40, 1)
    assert counts.files_done == 0
    counts.finished("cpu:0", 3, 30, 0)
    assert counts.files_done == 0
    counts.finished("cpu:0", 1, 10, 0)
    assert counts.files_done == 3
    assert counts.files_text() == "3 of 3 files"


# What is said


def test_the_line_of_a_run() -> None:
    counts = working(**{"cpu:0": (300, 9000), "cuda:1": (900, 60_000)})
    counts.begin([("a.fa", 1000), ("b.fa", 1000)])
    counts.add_window(window(0, 2345, 138_000, Place(0, 500.0)), (2345, 138_000))
    state = DeviceState(MemoryUse(12 << 30, 16 << 30), 97.0, 61.0)
    counts.devices["cuda:1"].state = state
    assert counts.line(1030.0) == (
        "1,200 of about 9,380 ORFs, 12%, 0 of 2 files, 3:30 left "
        "(cpu:0, 13%, 10 ORFs/s, 300 tokens/s; "
        "cuda:1, 87%, 30 ORFs/s, 2,000 tokens/s, 12.0 GiB, 97% busy, 61 C)"
    )
    counts.all_read()
    assert counts.line(1030.0).startswith("1,200 of 2,345 ORFs, 50%, 0 of 2 files, 0:30 left (cpu:0, 13%")


def test_the_line_before_the_first_batch_is_the_status() -> None:
    counts = Counts(started=990.0)
    assert counts.line(1000.4) == "reading (10 s)"
    counts.status = "loading the model"
    assert counts.line(1075.0) == "loading the model (85 s)"
    counts.add_window(window(0, 50, 500), (10, 100))
    assert counts.line(1075.0) == "loading the model (85 s; 40 ORFs are done)"
    counts.ready("cpu:0")
    assert counts.line(1080.0) == "scoring (90 s; 40 ORFs are done)"


def test_the_line_after_the_last_batch_is_the_status() -> None:
    counts = working(**{"cpu:0": (300, 9000)})
    read(counts, 300, 9000, is_all=True)
    counts.status = "writing tables"
    assert counts.line(1000.0) == "writing tables (10 s)"


def test_devices_keep_their_order_whichever_is_ready_first() -> None:
    counts = Counts()
    counts.expect(["cuda:0", "cuda:1"])
    counts.ready("cuda:1", now=0.0)
    assert list(counts.devices) == ["cuda:0", "cuda:1"]
    first, second = counts.devices.values()
    assert device_facts(counts, first, 1.0) == ["loading"]
    assert device_facts(counts, second, 1.0) == ["0%", "0 ORFs/s", "0 tokens/s"]
    counts.stopped("cuda:0")
    assert device_facts(counts, first, 1.0) == ["stopped"]


def test_what_is_kept() -> None:
    counts = begun(("a.fa", 1000))
    assert counts.kept() == "0 ORFs are kept"
    counts.add_window(window(0, 3000, 5000, Place(0, 500.0)), (2999, 4999))
    assert counts.kept() == "1 ORF is kept (0% of the work)"
    counts.finished("cpu:0", 1499, 2499, 0)
    assert counts.kept() == "1,500 ORFs are kept (25% of the work)"


def test_the_state_in_one_word() -> None:
    counts = Counts()
    assert counts.state is State.READING
    counts.is_loading = True
    assert counts.state is State.LOADING
    read(counts, 10, 100)
    counts.ready("cpu:0")
    assert counts.state is State.SCORING
    counts.all_read()
    assert counts.state is State.SCORING
    counts.finished("cpu:0", 10, 100, 0)
    counts.stopped("cpu:0")
    assert counts.state is State.WRITING


def test_a_finished_run_is_done() -> None:
    counts = Counts()
    counts.begin([("a.fa", 10), ("b.fa", 10)])
    counts.finished_before(70)
    assert (counts.done.orfs, counts.read, counts.share, counts.files_done) == (70, 70, 1.0, 2)
    assert counts.state is State.WRITING
