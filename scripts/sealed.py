"""
Run a command as the strictest container does: any user, no home, a read-only root, no network.

``sealed.py --write out -- python3 -m virnuc_async predict in.fa out``. Root can run it, on Linux. A root
directory is put together of parts of the machine's, all of them read-only but what ``--write`` names, in
namespaces of their own. What the command sees of the machine is Python, the directory of the package, and the
files and directories that ``--read`` and ``--write`` name.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

USER, GROUP = 12345, 54321  # neither has a name
PACKAGE = Path(__file__).resolve().parents[1] / "virnuc_async"
PLACE = Path("/opt/site")  # where the command finds the package
NAMESPACES = ("--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child")


class Mount(NamedTuple):
    """A file or a directory of the machine, and where the command sees it."""

    source: Path
    place: Path
    writable: bool = False


def can_seal() -> bool:
    """Return whether this process may make namespaces, and mount in them."""
    command = ["unshare", *NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def sealed(
    command: Sequence[str],
    *,
    write: Sequence[Path] = (),
    read: Sequence[Path] = (),
    python: str = sys.executable,
) -> list[str]:
    """
    Return the command line that runs *command* sealed.

    *write* are directories of the user's, *read* what else is seen; both at their own places. *python* is the
    interpreter whose libraries are seen; the package of this checkout is on its path.
    """
    own = [Mount(path, path, writable=True) for path in write]
    others = [Mount(path, path) for path in (*_prefixes(python), *read)]
    mounts = [*others, Mount(PACKAGE, PLACE / PACKAGE.name), *own]
    environment = [f"PATH={Path(python).parent}:/usr/bin:/bin", f"PYTHONPATH={PLACE}", "LC_ALL=C.UTF-8"]
    script = "\n".join(_script(mounts, [*environment, *command]))
    return ["unshare", *NAMESPACES, "sh", "-euc", script]


def _prefixes(python: str) -> Iterator[Path]:
    """Yield the directories of an interpreter and its libraries."""
    ask = "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"
    done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    places = {Path(line) for line in done.stdout.splitlines()}
    yield from sorted(place for place in places if not place.is_relative_to("/usr"))


def _script(mounts: Sequence[Mount], command: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a shell script that puts the root together and runs *command* in it."""
    yield "root=/mnt"
    yield "mount --make-rprivate /"
    yield 'PATH="$PATH:/usr/sbin:/sbin"'  # where chroot is, whatever the caller's is
    yield "mount -t tmpfs -o mode=755 sealed $root"
    yield "mkdir $root/proc $root/dev && mount -t proc proc $root/proc"
    for name in ("null", "zero", "random", "urandom"):
        yield from _bind(Mount(Path("/dev", name), Path("/dev", name), writable=True))
    for path in map(Path, ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache")):
        if path.is_symlink():
            yield f"ln -s {os.readlink(path)} $root{path}"
        elif path.exists():
            yield from _bind(Mount(path, path))
    for mount in mounts:
        yield from _bind(mount)
    yield "mount -o remount,ro $root"
    yield f"exec chroot --userspec={USER}:{GROUP} --groups= $root /usr/bin/env -i -C / {shlex.join(command)}"


def _bind(mount: Mount) -> Iterator[str]:
    source, place = shlex.quote(str(mount.source)), f"$root{shlex.quote(str(mount.place))}"
    if mount.source.is_dir():
        yield f"mkdir -p {place}"
    else:
        yield f"mkdir -p $root{shlex.quote(str(mount.place.parent))} && : > {place}"
    yield f"mount --bind {source} {place}"
    if mount.writable:
        yield f"mount -o remount,bind,rw {place}"
    else:
        yield f"mount -o remount,bind,ro {place}"


def main() -> int:
    """Run the command of the command line, and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, action="append", default=[], metavar="DIR")
    parser.add_argument("--read", type=Path, action="append", default=[], metavar="PATH")
    parser.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="the interpreter; default: this one"
    )
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    if not can_seal():
        parser.exit(1, "sealed.py: only root can do that, on a Linux with unshare, mount and chroot\n")
    write, read = ([path.resolve() for path in paths] for paths in (given.write, given.read))
    for path in write:
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, USER, GROUP)
    return subprocess.run(sealed(given.command, write=write, read=read, python=given.python)).returncode


if __name__ == "__main__":
    sys.exit(main())
