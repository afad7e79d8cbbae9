"""
Checks: ``nox`` runs lint, types and tests.

``nox -s gpu_tests`` needs a GPU, ``nox -s audit`` the network; ``nox -s bench`` measures and ``nox -s fuzz``
looks for inputs that break a promise.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

CODE = ("virnuc_async", "tests", "scripts", "noxfile.py")
_SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "8")
TESTED = ("-c", "constraints.txt")  # the versions that the tests are known to pass with


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and rules."""
    session.install(*TESTED, "ruff")
    session.run("ruff", "format", "--check", *CODE)
    session.run("ruff", "check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Strict types in the package."""
    session.install(*TESTED, "-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The fast suite on all cores, up to eight, with its coverage; arguments go to pytest."""
    session.install(*TESTED, "-e", ".[test]")
    session.run("pytest", *_SIDE_BY_SIDE, "--cov", "--cov-fail-under=90", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """What is known of weaknesses in the versions of constraints.txt; asks PyPI's service."""
    session.install("pip-audit")
    # Strict: a package that could not be asked about is no package without a weakness.
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", "constraints.txt")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Ten minutes of fuzzing for each target; arguments name others, as in ``-- readers --seconds 60``."""
    session.install(*TESTED, "-e", ".[fuzz]")
    each = (
        [session.posargs]
        if session.posargs
        else [[name] for name in ("readers", "import", "bundles", "references", "windows", "features")]
    )
    for arguments in each:
        session.run("python", "tests/adversity/fuzz.py", *arguments)


@nox.session(venv_backend="none")
def gpu_tests(session: nox.Session) -> None:
    """The tests that need a GPU, with the interpreter that has torch: no network, no environment."""
    if not _gpus(session):
        session.skip("no GPU here that torch can use")
    session.run("python3", "-m", "pytest", "-m", "gpu", *session.posargs, external=True)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """
    Every benchmark, into docs/benchmarks or the directory that is named; with the interpreter that has torch.

    On a GPU with all shapes up to ESM-2 3B, and the pipeline with random weights of that shape, which
    take 6 GB of disk. On a CPU with the two smallest shapes: more than an hour on two cores.
    """
    place = Path(session.posargs[0] if session.posargs else "docs/benchmarks")
    gpus = _gpus(session)
    kind, shapes = ("gpu", "8M,35M,150M,650M,3B") if gpus else ("cpu", "8M,35M")
    run = partial(session.run, "python3", external=True, env={"OMP_WAIT_POLICY": "PASSIVE"})
    run("scripts/bench_encoders.py", "--shapes", shapes, "--output", str(place / f"encoders-{kind}.json"))
    with TemporaryDirectory() as scratch:
        model = "tiny-500"
        if gpus:
            model = str(Path(scratch) / "random-3B")
            run("scripts/random_bundle.py", "3B", model)
        output = str(place / f"pipeline-{kind}.json")
        run("scripts/bench_pipeline.py", "--model", model, "--work", scratch, "--output", output)
    run("scripts/simulate.py", "--output", str(place / "simulated.json"))


def _gpus(session: nox.Session) -> int:
    """Ask the interpreter that has torch for the GPUs that it can use; 0 where it has none."""
    ask = "import torch; print(torch.cuda.device_count())"
    count = str(session.run("python3", "-c", ask, silent=True, external=True, success_codes=[0, 1])).strip()
    return int(count) if count.isdigit() else 0
