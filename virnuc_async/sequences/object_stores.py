"""
Object stores and web servers behind URLs, as obstore reaches them: their names, and what goes wrong there.

obstore is an optional dependency, imported when there is a URL. Credentials are those that it finds in the
environment: a URL with a password or a signature is refused, since URLs are in logs and tables.
"""

import errno
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from virnuc_async.errors import UsageError

_T = TypeVar("_T")

REQUESTS: Final = 32  # that are waited for at the same time

_WEB = ("http", "https")
_SERVICES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) and AWS_REGION, or "
    "AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or "
    "AZURE_SKIP_SIGNATURE=true for a public container",
}
# A machine of the cloud has credentials at these addresses, which obstore asks when it finds no others.
_NO_CREDENTIALS = re.compile(
    r"://(169\.254\.|metadata\.google)|token request|Missing (AccessKeyId|SecretAccessKey)", re.IGNORECASE
)
_STATUS = re.compile(r"status code: (\d{3}[^:\n]*)")
_CODE, _MESSAGE = (re.compile(rf"<{name}>([^<]+)</{name}>") for name in ("Code", "Message"))
_DETAILS = "\n\nDebug source:"  # begins what is for programmers
_LONGEST_REASON = 300  # letters


class Patience(NamedTuple):
    """How long a server is waited for."""

    seconds: float = 60.0  # of one request, with all of its answer
    connect_seconds: float = 10.0
    retries: int = 8  # of a request that failed or was not answered in time
    retry_seconds: float = 180.0  # from its first attempt on
    pause: float = 0.1  # before the first retry, twice as long before each further one
    longest_pause: float = 15.0


PATIENCE: Final = Patience()
# At the start of a command, when somebody waits to be told of a wrong name.
LITTLE_PATIENCE: Final = Patience(20.0, connect_seconds=5.0, retries=3, retry_seconds=20.0, pause=0.5)


class Location(NamedTuple):
    """What a URL names: an object, or if *key* is empty or ends with / all that begin so."""

    root: str  # URL of the bucket or the server
    key: str

    @property
    def scheme(self) -> str:
        """The kind of server."""
        return self.root.partition(":")[0]

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists no files."""
        return self.scheme in _WEB

    @property
    def is_directory(self) -> bool:
        """Whether it is no single object."""
        return not self.key or self.key.endswith("/")

    def url(self, key: str) -> str:
        """Return the URL of the object *key* beside it."""
        return f"{self.root}/{quote(key) if self.is_web else key}"


def locate(url: str) -> Location:
    """
    Return what *url* names.

    Raises:
        UsageError: no object can have this name, it has a password or a signature, or obstore is missing
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    place, _, key = rest.partition("/")
    if "@" in place:
        hint = f": set {_SERVICES[scheme]}" if scheme in _SERVICES else ""
        raise UsageError(f"{mask(url)}: a password does not belong in a URL, which is written to logs{hint}")
    if scheme in _WEB:
        if "?" in rest or "#" in rest:
            pipe = "curl -s 'URL' | virnuc-async predict - OUT/"
            raise UsageError(f"{mask(url)}: a URL with ? or # is not read. Pipe what it gives: {pipe}")
        key = unquote(key)
    if not place or any(part in ("", ".", "..") for part in key.removesuffix("/").split("/") if key):
        what = f"write it as {scheme}://{'HOST' if scheme in _WEB else 'BUCKET'}/PATH"
        raise UsageError(f"{url}: no object has such a name. {what[0].upper()}{what[1:]}")
    if find_spec("obstore") is None:
        raise UsageError(f"{url}: reading URLs needs obstore: pip install 'virnuc-async[cloud]'")
    return Location(f"{scheme}://{place}", key)


def mask(url: str) -> str:
    """Return *url* without what may be secret in it."""
    return re.sub(r"(\?|#).*", r"\1...", re.sub(r"//[^/@]*@", "//***@", url), flags=re.DOTALL)


@lru_cache(maxsize=32)  # it has the connections
def open_store(root: str, patience: Patience = PATIENCE) -> Any:
    """
    Return obstore's store of the bucket or server *root*, as the environment said at the first call.

    Raises:
        OSError: the environment does not say all that is needed
    """
    store = import_module("obstore.store")
    retries = {
        "max_retries": patience.retries,
        "retry_timeout": timedelta(seconds=patience.retry_seconds),
        "backoff": {
            "init_backoff": timedelta(seconds=patience.pause),
            "max_backoff": timedelta(seconds=patience.longest_pause),
            "base": 2,
        },
    }
    client = {
        "timeout": timedelta(seconds=patience.seconds),
        "connect_timeout": timedelta(seconds=patience.connect_seconds),
        # A store of the cloud is without encryption only where the environment names such an endpoint.
        "allow_http": not root.startswith("https://"),
    }
    # Not by from_url: that takes a web server whose name it knows for a bucket.
    make = store.HTTPStore.from_url if root.startswith(_WEB) else store.from_url
    with translated_errors(root):
        return make(root, client_options=client, retry_config=retries)


@contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Turn what obstore raises inside about *url* into an OSError, whose text is for people."""
    exceptions = import_module("obstore.exceptions")
    try:
        yield
    except (exceptions.BaseError, FileNotFoundError) as error:
        raise translate(url, error) from error


def translate(url: str, error: BaseException) -> OSError:
    """Return the OSError for what obstore raised about *url*: that says what is wrong, and what to do."""
    scheme, kind = url.partition(":")[0], type(error).__name__
    said = _reason(str(error))
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, f"there is no such object: {said}")
    if kind == "PreconditionError":
        return OSError(errno.ESTALE, "it changed while it was being read")
    if kind == "NotSupportedError":
        pipe = "curl -s URL | virnuc-async predict - OUT/"
        return OSError(errno.ENOTSUP, f"the server sends no parts of files. Download it, or pipe it: {pipe}")
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or _NO_CREDENTIALS.search(str(error)):
        has_none = _NO_CREDENTIALS.search(str(error)) is not None
        what = "there are no credentials" if has_none else f"the server refuses it: {said}"
        hint = f". Set in the environment: {_SERVICES[scheme]}" if scheme in _SERVICES else ""
        return PermissionError(errno.EACCES, f"{what}{hint}")
    if "Account must be specified" in said:
        return OSError(errno.EINVAL, f"there is no account. Set in the environment: {_SERVICES['az']}")
    return OSError(errno.EIO, said)


def _reason(text: str) -> str:
    """Return what matters of a text of obstore: what the server says, or why it says nothing."""
    if status := _STATUS.search(text):
        said = [found[1] for pattern in (_CODE, _MESSAGE) if (found := pattern.search(text))]
        return f"{status[1].strip()}{' (' if said else ''}{': '.join(said)}{')' if said else ''}"
    first, _, details = text.partition(_DETAILS)
    for sign, reason in (
        ("TimedOut", "no answer in time"),
        ("ConnectionRefused", "the connection is refused"),
        ("dns error", "the name of the server is unknown"),
        ("kind: Connect", "there is no connection to the server"),
        ("kind: Body", "the connection broke"),
    ):
        if sign in details:
            return reason
    return " ".join(first.split())[:_LONGEST_REASON]


# Not by obstore's functions for an event loop: their threads call Python, and a process that ends meanwhile
# aborts. These threads are waited for, as those of any pool; what is open is closed before.
_threads = ThreadPoolExecutor(REQUESTS, "object stores")


def submit(request: Callable[..., _T], *arguments: Any) -> "Future[_T]":
    """Call *request*, which waits for a server and for nothing else, in a thread of this module."""
    return _threads.submit(request, *arguments)
