"""The server that the tests of downloads fetch from."""

from collections.abc import Iterator

import pytest
from downloading import CONTENT
from serving import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        server.files["/x.bin"] = CONTENT
        yield server
