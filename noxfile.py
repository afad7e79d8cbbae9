"""Checks: ``nox`` runs lint, types and tests; ``nox -s gpu_tests`` needs a GPU and nothing else."""

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True

CODE = ("virnuc_async", "virnucpro_async.py", "tests", "scripts", "noxfile.py")
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
    """The fast suite, with its coverage; arguments go to pytest."""
    session.install(*TESTED, "-e", ".[test]")
    session.run("pytest", "--cov", "--cov-fail-under=90", *session.posargs)


@nox.session(venv_backend="none")
def gpu_tests(session: nox.Session) -> None:
    """The tests that need a GPU, with the interpreter that has torch: no network, no environment."""
    ask = "import torch; print(torch.cuda.device_count())"
    count = session.run("python3", "-c", ask, silent=True, external=True, success_codes=[0, 1])
    if not str(count).strip().isdigit() or not int(str(count)):
        session.skip("no GPU here that torch can use")
    session.run("python3", "-m", "pytest", "-m", "gpu", *session.posargs, external=True)
