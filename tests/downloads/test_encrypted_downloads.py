"""Downloads over TLS."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloading import CONTENT, failure, fetch, source
from serving import Server, redirect, serving

from virnuc_async.errors import DownloadRefused


@pytest.fixture
def encrypted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a certificate of its own, trusted unless the test changes that."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    certificate, arguments = tmp_path / "certificate.pem", "req -x509 -newkey rsa:2048 -nodes -days 1"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(certificate), "-out", str(tmp_path / "certificate_only.pem")]
    subprocess.run(["openssl", *arguments.split(), *subject, *files], check=True, capture_output=True)
    with open(certificate, "ab") as file:
        file.write((tmp_path / "certificate_only.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate_only.pem"))
    with serving() as server:
        server.encrypt(certificate)
        server.files["/x.bin"] = CONTENT
        yield server


def test_an_encrypted_connection(encrypted: Server, tmp_path: Path) -> None:
    encrypted.faults["/x.bin"] = [redirect(f"{encrypted.url}/x.bin")]
    fetch(tmp_path / "here", source(encrypted))
    assert (tmp_path / "here" / "x.bin").read_bytes() == CONTENT


def test_a_redirect_without_encryption_is_refused(encrypted: Server, server: Server, tmp_path: Path) -> None:
    encrypted.faults["/x.bin"] = [redirect(f"{server.url}/x.bin")]
    failed = failure(tmp_path, source(encrypted))
    assert isinstance(failed, DownloadRefused)
    assert failed.reason == f"it redirects to {server.url}/x.bin, which is not encrypted"
    assert not server.requests


def test_an_untrusted_certificate(encrypted: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    failed = failure(tmp_path, source(encrypted))
    assert isinstance(failed, DownloadRefused)
    assert failed.reason.startswith("its certificate is not trusted (self")
    assert "SSL_CERT_FILE" in failed.reason
