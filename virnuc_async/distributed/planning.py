"""How a run of many machines is planned: all that its shards must agree on is decided here, once."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from anyio import to_thread

from virnuc_async._version import __version__
from virnuc_async.engine.cpu_limits import usable_processors
from virnuc_async.errors import NoPlan, NoRecords, RunMismatchError, Stage, UsageError
from virnuc_async.fileio import Directory
from virnuc_async.log import logger
from virnuc_async.models.bundle import find
from virnuc_async.outputs.formats import require_formats
from virnuc_async.outputs.layout import require_free_layout
from virnuc_async.outputs.viral_files import require_place
from virnuc_async.pipeline import require_asyncio
from virnuc_async.runs.failure import Failure
from virnuc_async.runs.identity import describe_differences
from virnuc_async.runs.mate_check import MateCheck
from virnuc_async.runs.messages import RunMessages
from virnuc_async.runs.output_directory import PLAN
from virnuc_async.runs.plan import Plan
from virnuc_async.runs.scratch import temporary_files
from virnuc_async.sequences.files import absolute
from virnuc_async.sequences.inputs import InputVersion, is_stream, read_contigs
from virnuc_async.sequences.listing import is_stdin, list_inputs
from virnuc_async.sequences.scan import FileScan, Spill
from virnuc_async.sequences.segments import SEGMENT_BASES
from virnuc_async.settings import Settings, user_path, user_paths, whole
from virnuc_async.text import is_utf8, plural

from .plan import PlannedFile, RunPlan
from .planned_devices import CPU, PlannedDevices, devices_here, stated_devices
from .planned_settings import planned_settings
from .run_place import RunPlace
from .scanning import PlanProgress, Scanning, is_plain_gzip
from .segmenting import Segmenting

_AT_ONCE = 16  # files that are looked at
_MOST_SKIMMED = 16  # segments of a file that is read from its beginning for each shard
_PLAIN_GZIP = (
    "{}: of plain gzip, each shard reads all that is before its own records. For more than 16 shards, "
    "compress it in blocks first: gzip -dc IN.gz | bgzip -@ 8 > OUT.gz (bgzip is a part of htslib)"
)


async def make_plan(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    run: str | PathLike[str],
    settings: Settings | None = None,
    *,
    for_device: str | None = None,
    segment_bases: int = SEGMENT_BASES,
    on_progress: Callable[[PlanProgress], None] | None = None,
) -> RunPlan:
    """
    Plan a run of *inputs* that many machines share, write ``plan.json`` into *run*, and return the plan.

    *run* is a directory, or a URL in an object store; *inputs* are as for run_pipeline, but no streams. The
    devices are of the kind *for_device*: "cpu" as this machine's, a card such as "H200", or a kind in full;
    by default as this machine's devices. Every file is read once, several at a time. The same plan is not
    made again, and another one is not replaced without ``Settings.overwrite``.

    Raises:
        UsageError: of the arguments, or an input can be read only once
        MissingInputs: inputs cannot be read, found before anything else
        NoRecords: no input holds a record, and some cannot be read
        InputChanged: an input was written to meanwhile
        UnknownBundle, BadBundle, NoThreshold: the model
        UnknownDevice, MixedDevices, UnsuitablePrecision, NoDevicesLeft: the devices
        NoPlan: there is a plan that cannot be read
        RunMismatchError: there is another plan
        ForeignDirectoryError, CannotWrite: the directory
    """
    require_asyncio()
    named, name = user_paths(inputs, "an input"), user_path(run, "the run directory")
    settings = Settings() if settings is None else settings
    _require_plannable(named, settings, for_device)
    whole(1)("segment bases", segment_bases)
    place = await to_thread.run_sync(RunPlace, name, settings.temporary_dir)
    await to_thread.run_sync(place.require_claimable)
    whole_run = await to_thread.run_sync(_whole_run, named, place.directory, settings)
    draft = await to_thread.run_sync(_draft, whole_run, for_device, segment_bases)
    if (found := await to_thread.run_sync(_find_same, place, draft, settings.overwrite)) is not None:
        logger.info("{} has this plan already", place)
        return found
    planner = _Planner(whole_run, draft)
    plan = await planner.plan(place.directory, on_progress or (lambda _: None))
    if not await to_thread.run_sync(place.write_plan, plan, settings.overwrite):
        # Another machine has planned meanwhile: the same, or it is refused.
        return await to_thread.run_sync(_find_same, place, draft, False) or plan
    return plan


def _require_plannable(inputs: Sequence[str], settings: Settings, for_device: str | None) -> None:
    if not isinstance(settings, Settings):
        raise UsageError(f"settings must be Settings, not {settings!r}")
    if settings.reuse_features is not None:
        raise UsageError("embeddings are reused in a run on one machine: plan without --reuse-features")
    if for_device is not None and (settings.devices or settings.gpus):
        raise UsageError("choose the devices of this machine, or --for-device, not both")
    for path in inputs:
        if is_stdin(path) or is_stream(path):
            what = "standard input" if is_stdin(path) else f"the pipe {path}"
            raise UsageError(
                f"{what} can be read only once, and every shard of a run reads its inputs. Write it to a "
                "file first, and name that as the input"
            )
    require_formats(settings.formats)


def _whole_run(inputs: Sequence[str], run: Path, settings: Settings) -> Plan:
    """Return the run of *inputs* that is to be planned, as one machine would do it."""
    listed = list_inputs(
        inputs,
        recursive=settings.recursive,
        allow_duplicates=settings.allow_duplicates,
        skip_missing=settings.skip_missing,
        but_not=run,
    )
    paths = tuple(map(absolute, listed.paths))
    if settings.viral_fasta is not None:
        require_place(settings.viral_fasta, paths, run)
    if settings.layout and not (run / PLAN).exists():
        require_free_layout(run, paths)
    bundle = find(settings.model, settings.cache_dir)
    plan = Plan(paths, settings, bundle, notices=listed.notices, names=listed.paths)
    _ = plan.verdict_rule  # before anything is read: the model may not have the threshold
    return plan


def _draft(run: Plan, for_device: str | None, segment_bases: int) -> RunPlan:
    """Return the plan of *run* as far as it is known before its files are read."""
    devices = _devices(run, for_device)
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # a file behind a URL takes a while
        versions = [*pool.map(InputVersion.of, run.paths)]
    return RunPlan(
        version=__version__,
        model=run.bundle.name,
        fingerprint=run.bundle.fingerprint,
        devices=devices.kind,
        precision=str(devices.precision),
        tokens_per_batch=devices.tokens_per_batch,
        window=run.window,
        segment_bases=segment_bases,
        settings=planned_settings(run.settings),
        flagged=[],
        is_utf8=True,
        files=tuple(map(_unread_file, run.paths, run.named, versions)),
        segments=(),
        notices=[[notice.level, notice.text] for notice in run.notices],
    )


def _unread_file(path: str, name: str, version: InputVersion) -> PlannedFile:
    size = version.fingerprint[0] if version.fingerprint else 0
    return PlannedFile(path, name, version.fingerprint, int(size), 0, 0, None, None)


def _devices(run: Plan, name: str | None) -> PlannedDevices:
    if name is None:
        return devices_here(run)
    if name.casefold() == CPU:
        return devices_here(replace(run, settings=replace(run.settings, devices=(CPU,))))
    return stated_devices(name, run.settings, run.bundle.shapes)


def _find_same(place: RunPlace, draft: RunPlan, overwrite: bool) -> RunPlan | None:
    """
    Return the plan at *place* if it is that of *draft*; None if there is none, or one to be replaced.

    Raises:
        NoPlan: there is one that cannot be read
        RunMismatchError: there is another one, or its shards have begun
    """
    with suppress(NoPlan) if overwrite else nullcontext():
        found = place.find_plan()
        if found is None:
            return None
        old, new = _identity(found), _identity(draft)
        if old == new:
            return found
        differences = [*describe_differences(old, new)] or ["inputs: the same files by other paths"]
        if not overwrite:
            raise RunMismatchError(place.name, differences)
        if begun := place.begun_shards():
            hint = f"Use another directory: {plural(len(begun), 'shard')} of that run began already"
            raise RunMismatchError(place.name, differences, hint)
    return None


def _identity(plan: RunPlan) -> dict[str, Any]:
    """Return what a plan is made of, but for what is read in the files."""
    settings = {key.replace("_", " "): value for key, value in plan.settings.items()}
    return {
        **settings,
        "model": f"{plan.model} ({plan.fingerprint})",
        "directory or name of the model": plan.settings["model"],
        "inputs": [[file.path, file.fingerprint] for file in plan.files],
        "names of inputs": [[file.name] for file in plan.files],
        "version": plan.version,
        "devices": plan.devices,
        "precision": plan.precision,
        "tokens per batch": plan.tokens_per_batch,
        "ORFs per window": plan.window,
        "bases per segment": plan.segment_bases,
    }


class _Planner:
    """Reads the files of *run*, and completes the *draft* of its plan."""

    def __init__(self, run: Plan, draft: RunPlan) -> None:
        self._run = run
        self._draft = draft
        self._messages = RunMessages(run, logger.bind(run=uuid4().hex))

    async def plan(self, directory: Path, on_progress: Callable[[PlanProgress], None]) -> RunPlan:
        """Return the plan, which will be in *directory*."""
        self._log_header()
        await to_thread.run_sync(self._run.bundle.check, abandon_on_cancel=True)
        mates = MateCheck(self._run, self._messages)
        await to_thread.run_sync(mates.log_pairing, read_contigs)
        with ExitStack() as stack:
            scratch = stack.enter_context(_scratch(self._run.settings.temporary_dir, directory))
            stack.enter_context(temporary_files(scratch))
            spill = stack.enter_context(Spill(scratch))
            threads = self._run.settings.threads or usable_processors()
            scanning = Scanning([(file.path, file.size) for file in self._draft.files], spill, threads)
            scans = await scanning.run(on_progress)
            return await to_thread.run_sync(self._complete, scans, mates.flagged)

    def _log_header(self) -> None:
        draft, log, bundle = self._draft, self._messages.log, self._run.bundle
        log.info("virnuc-async {} with {}, fragments of {} bp", __version__, bundle.name, bundle.length)
        if bundle.notice:
            log.warning("{}", bundle.notice)
        self._messages.log_left_out()
        what = f"{draft.precision.upper()}, {draft.tokens_per_batch:,} tokens per batch"
        log.info("planned for devices of the kind {}: {}", draft.devices, what)

    def _complete(self, scans: Sequence[FileScan], flagged: list[int]) -> RunPlan:
        """
        Return the plan of files that were scanned.

        Raises:
            NoRecords: there is no record, and some cannot be read
        """
        segmenting = Segmenting(self._draft.segment_bases)
        for number, scan in enumerate(scans):
            segmenting.add_file(number, scan.lengths(), scan.seek_point)
        segments, files = segmenting.segments(), tuple(map(_planned_file, scans, self._run.named))
        self._report(scans)
        for number, count in Counter(segment.file for segment in segments).items():
            if count > _MOST_SKIMMED and is_plain_gzip(self._run.paths[number]):
                self._messages.log.warning(_PLAIN_GZIP, self._run.paths[number])
        are_utf8 = all(map(is_utf8, map(os.fsencode, self._run.named))) and all(
            scan.is_utf8 for scan in scans
        )
        return replace(self._draft, files=files, segments=segments, flagged=flagged, is_utf8=are_utf8)

    def _report(self, scans: Sequence[FileScan]) -> None:
        """Log what a run will say of these files; raise NoRecords if it would."""
        failures = [scan.failure for scan in scans if scan.failure]
        if not any(scan.records for scan in scans):
            if failures:
                raise NoRecords(self._run.paths, failures)
            self._messages.log.warning(
                "no input holds a record: the tables will have their header lines alone"
            )
        for scan in scans:
            for text in scan.notes:
                self._messages.log.info("{}", text)
            if scan.failure:
                self._messages.log_failure(Failure(scan.path, Stage.INPUT, scan.failure.reason))


def _planned_file(scan: FileScan, name: str) -> PlannedFile:
    failure = None if scan.failure is None else str(scan.failure.reason)
    return PlannedFile(
        scan.path,
        name,
        scan.version.fingerprint,
        scan.size or 0,
        scan.records,
        scan.bases,
        scan.kind,
        failure,
    )


def _scratch(temporary_dir: Path | None, directory: Path) -> Directory:
    """Open *temporary_dir*, else where *directory* is or will be; raises OSError."""
    there = (place for place in (directory.absolute(), *directory.absolute().parents) if place.is_dir())
    return Directory(temporary_dir or next(there))
