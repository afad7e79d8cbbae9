"""
Test and measure the program on a machine with a GPU, with the torch that is there and without a network.

The steps, in this order: the tests that need a GPU; a profile of both encoders at a published shape; the
encoders compared with other programs'; the whole pipeline. Each takes ten minutes at most and writes its
results line by line into the output directory. Packages that the machine does not have are taken from a
folder of wheels; without one, the command that fills it is printed.

Exit codes: 0 all steps ended well; 1 something failed, or is missing; 75 nothing failed, but time was up.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from gpu_targets import describe_targets
from json_lines import TIME_IS_UP, Lines
from missing_wheels import MissingPackages, install

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
_GRACE_SECONDS = 30.0  # from the deadline to the end of a part that does not look at it
_KERNEL_TESTS = ("elementwise", "quantize")  # that use the device; attention is in test_gpu.py
# Plugins of pytest, with the first words of the options that pytest does not know without them.
_PLUGINS = {"pytest_asyncio": "asyncio_", "pytest_timeout": "timeout"}


class Outcome(IntEnum):
    """How a part of a step ended; the worst one is the exit code."""

    DONE = 0
    FAILED = 1
    TIME_IS_UP = TIME_IS_UP


@dataclass(frozen=True, slots=True)
class Part:
    """A process of a step: its failure does not keep the next one from running."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """What all steps share."""

    options: argparse.Namespace
    scratch: Path
    environment: dict[str, str]

    def script(self, name: str, *words: object) -> tuple[str, ...]:
        """Return the command that runs one of our scripts."""
        return (sys.executable, str(SCRIPTS / f"{name}.py"), *map(str, words))


def _tests(check: Check, lines: Path, until: float) -> Iterator[Part]:
    settings = check.scratch / "pytest.ini"
    settings.write_text(_pytest_settings(), "utf-8")
    words = ("-c", settings, "--rootdir", ROOT, "-p", "no:cacheprovider", "-p", "report_lines")
    command = (sys.executable, "-m", "pytest", *map(str, words))
    yield Part("tests", (*command, "-m", "gpu", str(ROOT / "tests" / "test_gpu.py")))
    if check.options.device != "cpu":
        # Of any shape that hypothesis tries: in the other tests they run in Triton's interpreter.
        paths = (ROOT / "tests" / "networks" / "kernels" / f"test_{name}.py" for name in _KERNEL_TESTS)
        yield Part("kernels", (*command, "-m", "not slow", *map(str, paths)))


def _profile(check: Check, lines: Path, until: float) -> Iterator[Part]:
    options = check.options
    words = ["--device", options.device, "--shape", options.shape, *_limits(lines, until)]
    if options.tokens:
        words += ["--tokens", options.tokens]
    if options.device == "cpu":
        words += ["--square", 256, "--copied", 1 << 20]
    for name in ("ceilings", "bf16", "fp8", "fp16", "streams", "graphs"):
        yield Part(name, check.script("profile_encoders", name, *words))


def _encoders(check: Check, lines: Path, until: float) -> Iterator[Part]:
    options = check.options
    words = ["--device", options.device, "--shapes", options.shape, "--works", "168,mix"]
    largest = options.tokens.split(",")[0] if options.tokens else "32768"
    words += ["--tokens", largest, "--batch", largest, *_limits(lines, until)]
    yield Part("peers", check.script("bench_encoders", *words))


def _pipeline(check: Check, lines: Path, until: float) -> Iterator[Part]:
    options = check.options
    words = ["--device", options.device, "--shape", options.shape]
    yield Part("answers", check.script("compare_devices", *words, *_limits(lines, until)))
    model = check.scratch / f"random-{options.shape}"
    yield Part("model", check.script("random_bundle", options.shape, model, "--device", options.device))
    words = ["--model", model, "--parts", "start,predict", "--kinds", "mixed", "--repeats", "1"]
    words += ["--seconds", options.seconds, "--work", check.scratch, *_limits(lines, until)]
    yield Part("predict", check.script("bench_pipeline", *words))


def _limits(lines: Path, until: float) -> tuple[object, ...]:
    return "--lines", lines, "--until", until


def _pytest_settings() -> str:
    """Return the project's settings for pytest, without what belongs to plugins that are not here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    settings: dict[str, Any] = project["tool"]["pytest"]["ini_options"]
    settings |= {"pythonpath": [str(ROOT / name) for name in (*settings["pythonpath"], ".")]}
    # Kernels are compiled when they are first used.
    settings |= {"addopts": ["--strict-markers", "--strict-config", "-ra"], "timeout": 180}
    for plugin, prefix in _PLUGINS.items():
        if find_spec(plugin) is None:
            settings = {name: value for name, value in settings.items() if not name.startswith(prefix)}
    del settings["testpaths"]
    return "\n".join(["[pytest]", *(f"{name} = {_ini(value)}" for name, value in settings.items()), ""])


def _ini(value: object) -> str:
    return "".join(f"\n    {word}" for word in value) if isinstance(value, list) else str(value)


_Step = Callable[[Check, Path, float], Iterator[Part]]
STEPS: dict[str, _Step] = {
    "tests": _tests,
    "profile": _profile,
    "encoders": _encoders,
    "pipeline": _pipeline,
}


def run_step(check: Check, step: str) -> list[tuple[str, Outcome]]:
    """Run the parts of *step*, each as a process, until its time is up; replace an earlier run's lines."""
    path = check.options.output / f"{step}.jsonl"
    path.unlink(missing_ok=True)
    until = time.time() + check.options.minutes * 60
    environment = check.environment | {"REPORT_LINES": str(path), "REPORT_UNTIL": str(until)}
    found = []
    for part in STEPS[step](check, path, until):
        print(f"\n== {step}: {part.name}", flush=True)
        began = time.time()
        with (check.scratch / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
            outcome = _run(part, environment, until, errors)
            errors.seek(0)
            said = errors.read()
        print(said, file=sys.stderr, end="", flush=True)
        row = {"part": part.name, "outcome": outcome.name, "seconds": round(time.time() - began, 1)}
        if outcome is not Outcome.DONE:
            row["errors"] = said[-4000:]
        Lines(path).write(row)
        found.append((f"{step}: {part.name}", outcome))
    return found


def _run(part: Part, environment: dict[str, str], until: float, errors: TextIO) -> Outcome:
    """Run *part*; interrupt it if it does not end by itself, and end it if that does not help."""
    if time.time() >= until:
        return Outcome.TIME_IS_UP
    with subprocess.Popen(part.command, cwd=ROOT, env=environment, stderr=errors) as process:
        try:
            code = process.wait(until - time.time() + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            return Outcome.TIME_IS_UP
    return Outcome(code) if code in (0, TIME_IS_UP) else Outcome.FAILED


def _device_problem(device: str, environment: dict[str, str]) -> str | None:
    """Return why torch cannot compute on *device*, or None."""
    ask = f"import torch; torch.ones(1, device={device!r}).sum().item()"
    done = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--wheels", type=Path, help="a folder of wheels of what the machine does not have")
    add("--step", action="append", choices=list(STEPS), help="only this one; may be repeated")
    add("--output", type=Path, default=Path("gpu-check"), help="where the results are written")
    add("--minutes", type=float, default=10.0, help="at most, for each step")
    add("--device", default="cuda", help="cuda, cuda:1, or cpu to see that this script works")
    add("--shape", default="3B", help="of ESM-2 in what is measured: 8M, 35M, 150M, 650M, 3B, or tiny")
    add("--tokens", help="of a batch, largest first (default: 32768,16384)")
    add("--seconds", type=float, default=60.0, help="approximate duration of the measured run")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the requested steps; return the exit code."""
    options = _arguments(words)
    options.output = options.output.absolute()
    scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    try:
        return _main(options, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _main(options: argparse.Namespace, scratch: Path) -> int:
    target = scratch / "packages"
    try:
        install(options.wheels, target)
    except MissingPackages as problem:
        print(problem, file=sys.stderr)
        return Outcome.FAILED
    paths = [str(target), str(ROOT), str(SCRIPTS), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if problem := _device_problem(options.device, environment):
        print(f"torch cannot use {options.device} here: {problem}", file=sys.stderr)
        return Outcome.FAILED
    options.output.mkdir(parents=True, exist_ok=True)
    check = Check(options, scratch, environment)
    found = [result for step in options.step or STEPS for result in run_step(check, step)]
    print("\n".join(["", *describe_targets(options.output)]))
    for name, outcome in found:
        print(f"{name}: {outcome.name.lower().replace('_', ' ')}")
    outcomes = {outcome for _, outcome in found}
    return Outcome.FAILED if Outcome.FAILED in outcomes else max(outcomes)


if __name__ == "__main__":
    sys.exit(main())
