"""What a run logs: its header, its progress, its failures."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import anyio

from virnuc_async import engine
from virnuc_async._version import __version__
from virnuc_async.engine.events import EngineEvents
from virnuc_async.errors import VirnucError, first_error
from virnuc_async.log import PROGRESS, why_cancelled
from virnuc_async.settings import Precision
from virnuc_async.text import plural

from .device_watch import DeviceWatch
from .failure import Failure, failure_line
from .hardware import Hardware
from .output_directory import DAMAGED, STORE
from .plan import Plan
from .progress import Counts
from .run_progress import RunProgress
from .saved_embeddings import EmbeddingCheck
from .store import Store
from .totals import Totals

if TYPE_CHECKING:
    from loguru import Logger

    from virnuc_async.engine.devices import Device


class RunMessages(EngineEvents):
    """
    Logs what a run does, and counts it.

    *log* is bound to the run, so that its lines reach the run's own files; *counts* is what bars show.
    """

    def __init__(self, plan: Plan, log: "Logger") -> None:
        self.log = log
        self.counts = Counts()
        self.watch = DeviceWatch(plan, self.counts, log)
        self.started = time.monotonic()
        self.load_seconds = 0.0  # until the last device was ready
        self.peak_memory: dict[str, int] = {}  # device -> bytes
        self.has_recomputed = False  # whether it is logged that ORFs were computed again in FP32
        self._plan = plan
        self._notices = plan.notices

    @contextmanager
    def end_logged(self) -> Iterator[None]:
        """Log what ends the body early; the record is marked with *is_end*, since the error says the same."""
        with ExitStack() as stack:
            stack.push(self._log_end)
            yield

    def _log_end(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        cause = first_error(error)
        log = self.log.bind(is_end=True)
        if isinstance(cause, anyio.get_cancelled_exc_class()):
            log.warning("{}; {}, and the same command resumes", why_cancelled.get()(), self.counts.kept())
        elif isinstance(cause, VirnucError):
            log.error("{}", "; ".join(str(cause).splitlines()))
        else:
            log.error("{}: {}", type(cause).__name__, "; ".join(str(cause).splitlines()))

    async def report_progress(self) -> None:
        """Log the progress until cancelled."""
        while True:
            now = time.monotonic()
            self.counts.mark(now)
            self.log.bind(counts=self.counts).log(PROGRESS, "{}", self.counts.line(now))
            self.tell_progress()
            await anyio.sleep(self._plan.intervals.progress)

    def tell_progress(self) -> None:
        """Call the function that a program wants to be called with how far the run is."""
        if self._plan.on_progress is not None:
            self._plan.on_progress(RunProgress.of(self.counts, time.monotonic()))

    def device_ready(self, device: str) -> None:
        """Count the time that loading took, and begin to count what *device* does."""
        self.load_seconds = max(self.load_seconds, time.monotonic() - self.started)
        self.counts.ready(device)
        self.watch.device_ready(device)

    def device_closed(self, device: str, peak_memory: int) -> None:
        """Remember the peak memory of *device*."""
        self.peak_memory[device] = peak_memory
        self.counts.stopped(device)

    def log_header(self, store: Store, hardware: Hardware, embeddings: EmbeddingCheck) -> None:
        """Log version, model, what is left out or had to be recovered, and the devices."""
        bundle = self._plan.bundle
        self.log.info("virnuc-async {} with {}, fragments of {} bp", __version__, bundle.name, bundle.length)
        if bundle.notice:
            self.log.warning(bundle.notice)
        if self._plan.settings.has_verdict_rule:
            self.log.info("verdicts by {}", self._plan.verdict_rule)
        if self._plan.settings.compile is not None:
            self.log.warning("compile has no effect: kernels are no longer compiled before the first batch")
        self.log_left_out()
        if store.lock.previous_owner:
            self.log.info("taking over from {}, which has ended", store.lock.previous_owner)
        kept = store.recovered
        if kept and kept.is_all:
            self.log.info("{} is intact: there is nothing to repair", STORE)
        elif kept:
            self.log.warning(
                "repaired: kept {} of {}; the damaged store is in {}",
                plural(kept.batches, "batch", "es"),
                plural(kept.windows, "window"),
                store.directory.path / DAMAGED,
            )
        if text := embeddings.text():
            self.log.log("WARNING" if embeddings.lost else "INFO", "{}", text)
        for failed in hardware.left_out:
            self.log.warning("{}; it is left out", failed)
        for device in hardware.devices:
            self.log.info("{}", format_device(device, hardware))

    def log_resumption(self, totals: Totals) -> None:
        """Log what of a run earlier sessions have done, as *totals* say."""
        if totals.batches:
            self.log.info("resuming after {:,} ORFs of an earlier session", totals.scores)
        self.has_recomputed = bool(totals.recomputed)

    def log_left_out(self) -> None:
        """Log what is left out of the inputs, once."""
        for level, text in self._notices:
            self.log.log(level, "{}", text)
        self._notices = ()

    def log_recomputed(self, orfs: int, precision: Precision) -> None:
        """Log that some *orfs* were computed again, once in a run."""
        if orfs and not self.has_recomputed:
            self.log.info(
                "ORFs with numbers that {} cannot hold are computed again in FP32; summary.json counts them",
                precision.upper(),
            )
            self.has_recomputed = True

    def log_failure(self, failure: Failure) -> None:
        """Log an input or an ORF that failed; the line is written to failed_files.txt as well."""
        self.log.bind(failure=failure_line(failure)).error("{}: {}", failure.path, failure.message)


def format_device(device: "Device", hardware: Hardware) -> str:
    """Format what a run does on *device*: its name, its facts, and the tokens of a batch."""
    facts = [device.model, f"{device.memory / 2**30:.0f} GiB"]
    if device.capability is None:
        facts.append(plural(device.threads, "thread"))
    else:
        facts.append("capability {}.{}".format(*device.capability))
    if hardware.precision is Precision.FP8:
        facts.append("FP8 enabled if it gives the model's reference")
    elif hardware.precision is not Precision.FP32:
        facts.append(f"{hardware.precision.upper()} enabled")
    else:
        facts.append(_format_fp32(device))
    base, budget = engine.BASE_BUDGET[hardware.precision], hardware.budget
    scaled = "" if budget == base else f" ({base:,} before scaling by memory or settings)"
    return f"{device.name}: {', '.join(facts)}, {budget:,} tokens per batch{scaled}"


def _format_fp32(device: "Device") -> str:
    """Format FP32, with what the device could do instead or why it cannot."""
    if device.has_native_bf16:
        return "FP32 (BF16 is native here: faster with large models, by --precision bf16)"
    if device.capability is None or device.native_precision is not Precision.FP32:
        return "FP32"
    return "FP32 (FP16 needs a GPU of capability 7.0 or higher, BF16 one of 8.0)"
