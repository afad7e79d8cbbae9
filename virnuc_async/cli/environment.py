"""The environment of the process: what is read from it, and what is set for torch."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from secrets import token_hex

from virnuc_async.fileio import Directory
from virnuc_async.settings import user_path

from .parser import PROGRAM

# Of what is set for torch here, or by the user: what processes on other machines need as well.
_FOR_WORKERS = ("OMP_WAIT_POLICY", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
OTHER_PROGRAMS = ("virnucpro_cli.py",)  # that are built on this one


def command_line() -> tuple[str, ...]:
    """Return the words of the command that this process runs."""
    name = os.path.basename(sys.argv[0])
    return (name if name in OTHER_PROGRAMS else PROGRAM, *sys.argv[1:])


def cache_from(options: Namespace) -> Path | None:
    """Return the directory of --cache-dir or VIRNUC_ASYNC_CACHE_DIR; None for the default of this user."""
    if options.cache_dir is not None:
        return Path(options.cache_dir)
    path = os.environ.get("VIRNUC_ASYNC_CACHE_DIR")
    return Path(user_path(path, "VIRNUC_ASYNC_CACHE_DIR")) if path else None


def temporary_dir() -> Path | None:
    """
    Return the directory that TMPDIR names.

    None if it names none, or with a warning one in which no file can be made: then temporary files are
    made where the output is.
    """
    name = os.environ.get("TMPDIR")
    if not name:
        return None
    try:
        with Directory(Path(name)) as directory:
            directory.temporary_file().close()
    except OSError as error:
        instead = "temporary files are made where the output is"
        print(f"WARNING: TMPDIR {name}: {error.strerror or error}: {instead}", file=sys.stderr)
        return None
    return Path(name)


def mirror_from(options: Namespace) -> str:
    """Return the URL of --mirror or VIRNUC_ASYNC_MIRROR, empty if there is none."""
    return options.mirror or os.environ.get("VIRNUC_ASYNC_MIRROR", "")


def hugging_face_server() -> str:
    """Return the server that HF_ENDPOINT names in the place of huggingface.co, empty if there is none."""
    return os.environ.get("HF_ENDPOINT", "")


def prepare_torch(options: Namespace) -> None:
    """Set the environment that torch and Triton read, for the GPUs and the cache that *options* name."""
    # Threads that spin while they wait take half of a machine that others use too, and make a run
    # on busy cores ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    hide_other_gpus(options.gpus)
    place_triton_cache(cache_from(options))
    do_without_compiler_cache()


def prepare_ray(address: str) -> dict[str, str]:
    """Set the environment that Ray reads; return that of the processes that it starts for us."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray does in its next version
    if address == "local":
        # Other users of this machine could have a cluster run what they like as this user.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", token_hex(32)
    return {name: os.environ[name] for name in _FOR_WORKERS if name in os.environ}


def hide_other_gpus(gpus: tuple[int, ...]) -> None:
    """Hide all GPUs but *gpus* from this process, if any are given; call it before torch is imported."""
    # No context is created on the other GPUs, and a CUDA_VISIBLE_DEVICES that an outer script has
    # set does not hide the ones asked for.
    if gpus:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))


def place_triton_cache(cache: Path | None) -> None:
    """Let Triton keep compiled kernels in *cache*, if there is one and the user chose no other place."""
    if cache is not None and not {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys():
        os.environ["TRITON_CACHE_DIR"] = str(cache.absolute() / "triton")


def do_without_compiler_cache() -> None:
    """Keep torch from making a directory for its compiler, which nothing here uses."""
    # Optimizers and transformers import the compiler, which makes a temporary directory at once, and fails
    # where none can be made, as in a container with a read-only root. It takes any directory that exists.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)
