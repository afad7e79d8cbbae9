"""``models download``: published models from their official servers."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virnuc_async.cli.console import download_progress, status_lines
from virnuc_async.cli.environment import cache_from, hugging_face_server, mirror_from
from virnuc_async.cli.exit_codes import DONE
from virnuc_async.cli.options import add_cache_option
from virnuc_async.cli.parser import add_command, new_directory, word
from virnuc_async.errors import ANOTHER_CACHE, UsageError
from virnuc_async.fileio import writing_to
from virnuc_async.text import did_you_mean

if TYPE_CHECKING:
    from virnuc_async.models.published import Mirrors, ModelFiles

_EXAMPLES = """\
examples:
  python -m virnuc_async models download virnucpro-500
  python -m virnuc_async models download virnucpro-500 virnucpro-300 --cache-dir /data/models
  python -m virnuc_async models download virnucpro-500 --to virnucpro-500/
  python -m virnuc_async models download --protein esm2_t33_650M_UR50D --to parts/
  HTTPS_PROXY=http://proxy:3128 python -m virnuc_async models download virnucpro-500

Files are verified before they are used. The same command resumes an interrupted download. A directory
made with --to can be copied to a machine without a network and used there: predict --model DIR.

environment:
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY  the proxies to use
  HF_ENDPOINT                        a server to use instead of https://huggingface.co
  VIRNUC_ASYNC_MIRROR                the default of --mirror
  VIRNUC_ASYNC_CACHE_DIR             the default of --cache-dir
"""


def add_parser(actions: Any) -> None:
    """Add the action."""
    parser = add_command(actions, "download", "download published models", _EXAMPLES)
    parser.add_argument("names", nargs="*", metavar="NAME", help="virnucpro-500 or virnucpro-300")
    parser.add_argument(
        "--protein",
        type=word,
        metavar="ESM2",
        help="instead of a model, download this ESM-2 and DNABERT-S, to train a classifier on",
    )
    parser.add_argument(
        "--to", type=new_directory, metavar="DIR", help="a new directory for the model, instead of the cache"
    )
    parser.add_argument(
        "--mirror",
        type=word,
        metavar="URL",
        help="download from URL/HOST/PATH instead of https://HOST/PATH (default: $VIRNUC_ASYNC_MIRROR)",
    )
    add_cache_option(parser)
    parser.add_argument("--quiet", action="store_true", help="print only errors")
    parser.set_defaults(
        run=run, interrupted="Interrupted. The same command resumes the download.", prints_result=False
    )


def run(options: Namespace) -> int:
    """Download models, and print how to use them."""
    from virnuc_async.models.bundle import why_unseen
    from virnuc_async.models.published import Mirrors, download

    if bool(options.names) == bool(options.protein):
        raise UsageError("name models to download, or an ESM-2 with --protein")
    if options.to and len(options.names) > 1:
        raise UsageError("--to takes one model")
    targets = _targets(options, Mirrors(hugging_face_server(), mirror_from(options)))
    # Into a directory of their own, models can be downloaded without a cache.
    cache = None if options.to and why_unseen(cache_from(options)) else _models(options).parent
    hint = "" if options.to else ANOTHER_CACHE
    with (
        writing_to(next(iter(targets)), hint=hint, names_file=True),
        download_progress(options.quiet) as progress,
        status_lines(options.quiet) as report_status,
    ):
        download(targets, cache, progress, report_status)
    for target, files in targets.items():
        print(f"{files.name} is in {target}. {_how_to_use(options, target)}")
    return DONE


def _targets(options: Namespace, mirrors: "Mirrors") -> "dict[Path, ModelFiles]":
    """Return the files of each directory that is to be created."""
    from virnuc_async.models.published import MODELS, published_encoders

    if options.protein:
        files = published_encoders(options.protein, mirrors)
        return {options.to or _models(options).with_name("encoders") / options.protein: files}
    for name in options.names:
        if name not in MODELS:
            known = f"Published models: {', '.join(MODELS)}"
            raise UsageError(f"no published model is called {name!r}.{did_you_mean(name, MODELS)} {known}")
    return {options.to or _models(options) / name: MODELS[name](mirrors) for name in options.names}


def _models(options: Namespace) -> Path:
    from virnuc_async.models.bundle import cache_directory

    return cache_directory(cache_from(options))


def _how_to_use(options: Namespace, target: Path) -> str:
    if options.protein:
        files = f"--protein {target / options.protein}.pt --nucleotide {target / 'DNABERT-S'}"
        return f"Use it with: models import {files}"
    model = target if options.to else target.name
    return f"Use it with --model {model}; verify it with: models verify {model}"
