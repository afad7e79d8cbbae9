"""
What a machine's Python lacks of the packages that the program and its tests need, taken from wheels.

The machine's own packages are used as they are, and its torch is never replaced: on machines with a GPU
it belongs to the driver.
"""

import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.tags import platform_tags, sys_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parents[1]
# Of the tests for a GPU and what they import; the other tests need more.
TEST_PACKAGES = ("pytest", "hypothesis")
NEVER = "torch"
# pip finds a wheel only by the exact tag; these are the ones in use.
_GLIBC = (1, 5, 12, 17, 24, 26, 27, 28, 31, 34, 35, 39)


class MissingPackages(Exception):
    """Packages that neither the machine nor the folder of wheels has."""

    def __init__(self, missing: Sequence[Requirement], folder: Path | None) -> None:
        super().__init__(missing, folder)
        self.missing, self.folder = missing, folder

    def __str__(self) -> str:
        names = ", ".join(f"{requirement.name}{requirement.specifier}" for requirement in self.missing)
        found = (
            f"neither {sys.executable} nor {self.folder} has" if self.folder else f"{sys.executable} lacks"
        )
        others = [requirement for requirement in self.missing if requirement.name != NEVER]
        if len(others) < len(self.missing):
            return f"{found} {names}; torch must be the machine's own"
        return (
            f"{found} {names}. Fill a folder of wheels on a machine with a network:\n\n"
            f"  {download_command(others, self.folder or Path('wheels'))}\n\nthen name it with --wheels"
        )


def requirements() -> list[Requirement]:
    """Return what the program and the tests for a GPU require on this Python."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["test"]
    needed = [Requirement(text) for text in project["dependencies"]]
    needed += [found for found in map(Requirement, extra) if found.name in TEST_PACKAGES]
    return [requirement for requirement in needed if _applies(requirement)]


def missing(needed: Iterable[Requirement], target: Path | None = None) -> list[Requirement]:
    """Return which of *needed* neither this Python nor the folder *target* has in a fitting version."""
    paths = [str(target)] if target else []
    there = {canonicalize_name(found.name): found for found in _distributions([*sys.path, *paths])}
    return [requirement for requirement in needed if not _fits(requirement, there)]


def install(folder: Path | None, target: Path) -> None:
    """
    Install what is missing from the wheels in *folder* into *target*, with what these wheels need.

    Raises:
        MissingPackages: *folder*, if there is one, does not have all of it
    """
    lacking = missing(requirements())
    while lacking:
        wheels = {requirement: _wheel(requirement, folder) for requirement in lacking}
        if without := [requirement for requirement, wheel in wheels.items() if wheel is None]:
            raise MissingPackages(without, folder)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        command += ["--no-compile", "--disable-pip-version-check", "--target", str(target)]
        subprocess.run([*command, *map(str, wheels.values())], check=True)
        lacking = missing(_requirements_of(target), target)


def download_command(lacking: Iterable[Requirement], folder: Path) -> str:
    """Return the command that fills *folder* for this Python and platform, from any other machine."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    words = ["python3 -m pip download --no-deps --only-binary=:all:", f"--python-version {version}"]
    words += ["--implementation cp", *(f"--platform {tag}" for tag in _platforms()), f"-d {folder}"]
    return " ".join([*words, *(f"'{requirement.name}{requirement.specifier}'" for requirement in lacking)])


def _platforms() -> Iterator[str]:
    known = {f"manylinux_2_{minor}_" for minor in _GLIBC} | {"manylinux1_", "manylinux2014_"}
    tags = list(platform_tags())
    found = [tag for tag in tags if tag.startswith(tuple(known))]
    yield from found or tags


def _applies(requirement: Requirement) -> bool:
    environment = {**default_environment(), "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def _distributions(paths: Sequence[str]) -> Iterator[Distribution]:
    # Reversed, so that of two the one that would be imported remains.
    return (found for path in reversed(paths) for found in distributions(path=[path]))


def _fits(requirement: Requirement, there: dict[str, Distribution]) -> bool:
    found = there.get(canonicalize_name(requirement.name))
    return found is not None and requirement.specifier.contains(found.version, prereleases=True)


def _wheel(requirement: Requirement, folder: Path | None) -> Path | None:
    """Return the newest wheel in *folder* that fits *requirement* and this Python; never one of torch."""
    tags, found = set(sys_tags()), []
    for path in folder.glob("*.whl") if folder and requirement.name != NEVER else ():
        name, version, _, wheel_tags = parse_wheel_filename(path.name)
        if (
            name == canonicalize_name(requirement.name)
            and wheel_tags & tags
            and requirement.specifier.contains(version, prereleases=True)
        ):
            found.append((version, path))
    return max(found)[1] if found else None


def _requirements_of(target: Path) -> list[Requirement]:
    needed = (text for found in distributions(path=[str(target)]) for text in found.requires or ())
    return [requirement for requirement in map(Requirement, needed) if _applies(requirement)]
