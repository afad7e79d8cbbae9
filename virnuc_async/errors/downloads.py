"""Errors of downloads."""

from virnuc_async.text import plural

from .base import VirnucError, _UrlError


class DownloadError(VirnucError):
    """A file could not be downloaded."""


class DownloadRefused(DownloadError, _UrlError):
    """The server refuses *url*, and would refuse it again."""

    def __str__(self) -> str:
        return (
            f"{self.url} cannot be downloaded: {self.reason}. Behind a proxy, set HTTPS_PROXY; otherwise use "
            "a --mirror, or get the files elsewhere and use 'models import' (docs/how-to/models.md)"
        )


class DownloadInterrupted(DownloadError, _UrlError):
    """The download of *url* was tried *attempts* times in a row and came no further."""

    def __init__(self, url: str, reason: str, attempts: int) -> None:
        super().__init__(url, reason)
        self.args = (url, reason, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return (
            f"{self.url} was not downloaded completely: {self.reason}. No progress in "
            f"{plural(self.attempts, 'attempt')}; if it fails again, use a --mirror, or get the files "
            "elsewhere and use 'models import' (docs/how-to/models.md). "
            "Received data is kept: rerun the same command to resume"
        )


class ChecksumMismatch(DownloadError, _UrlError):
    """The file that the server sent for *url* is not the published one."""

    def __init__(self, url: str, reason: str, is_deleted: bool = False) -> None:
        super().__init__(url, reason)
        self.is_deleted = is_deleted

    def __str__(self) -> str:
        what_now = (
            "It was deleted: rerun the same command to download it again. If that does not help"
            if self.is_deleted
            else "Nothing of it was used. If this happens again"
        )
        return (
            f"{self.url} is not the published file: {self.reason}. {what_now}, use a --mirror that has the "
            "published one, or get the files elsewhere and use 'models import' (docs/how-to/models.md)"
        )


class DownloadBusy(DownloadError):
    """Another process is downloading into *directory*."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.directory = directory

    def __str__(self) -> str:
        return (
            f"another process is downloading into {self.directory}. "
            "Wait for it to end, then rerun the same command: it uses what was downloaded"
        )
