"""What users name and write: paths with ~, empty and impossible names, and lists and tables in text files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from virnuc_async.errors import UsageError
from virnuc_async.fileio import read_lines
from virnuc_async.settings import user_path, user_paths


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.fa", "a.fa"),
        ("~", "/home/me"),
        ("~/a~b", "/home/me/a~b"),
        ("a/~/b", "a/~/b"),
        ("./~", "./~"),
        (Path("~/x"), "/home/me/x"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("\udcff", "\udcff"),
        ("-", "-"),
        (" ", " "),
    ],
)
def test_paths(name: Any, path: str) -> None:
    assert user_path(name, "it") == path


def test_a_file_may_begin_with_a_tilde() -> None:
    Path("~nobody-of-this-name").touch()
    assert user_path("~nobody-of-this-name", "it") == "~nobody-of-this-name"


@pytest.mark.parametrize(
    ("home", "name", "user"),
    [("/home/me", "~nobody-of-this-name/x", "~nobody-of-this-name"), ("relative", "~/x", "~")],
)
def test_an_unknown_home(home: str, name: str, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UsageError) as caught:
        user_path(name, "an input")
    reason = f"an input: the home directory {user} of {name!r} is unknown. Write the whole path"
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "an input must be a path, or paths, not None"),
        (7, "an input must be a path, or paths, not 7"),
        (b"a.fa", "an input must be a path, or paths, not b'a.fa'"),
        ((), "an input is missing: there are none"),
        (iter(()), "an input is missing: there are none"),
        (["a.fa", 3], "an input must be a path, not 3"),
        (["a.fa", None], "an input must be a path, not None"),
        (["a.fa", b"b.fa"], "an input must be a path, not b'b.fa'"),
        (["a.fa", ["b.fa"]], "an input must be a path, not ['b.fa']"),
        ("", "an input has an empty name"),
        (["a.fa", ""], "an input has an empty name"),
        (["\ud800"], "an input must be a path, not '\\ud800': no name has half a character"),
    ],
)
def test_what_is_no_path(names: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        user_paths(names, "an input")
    assert caught.value.reason == message


@pytest.mark.parametrize("names", ["val.fa", Path("val.fa"), ["val.fa"], (n for n in ["val.fa"]), {"val.fa"}])
def test_one_path_or_several(names: Iterable[str] | str) -> None:
    assert user_paths(names, "an input") == ("val.fa",)


@pytest.mark.parametrize(
    "content",
    [
        b"a.fa\nb.fa\n",
        b"a.fa\nb.fa",
        b"a.fa\r\nb.fa\r\n",
        b"a.fa\rb.fa\r",
        b"a.fa\r\r\n\n \t\nb.fa\n\n",
        b"\xef\xbb\xbfa.fa\r\nb.fa",
    ],
)
def test_lines_of_a_list(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(content)
    assert [line for _, line in read_lines("list", 100)] == [b"a.fa", b"b.fa"]


def test_comments_numbers_and_names_that_are_no_utf_8(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf#a\n\n\xff\tx \n")
    assert list(read_lines("list", 100)) == [(1, b"#a"), (3, b"\xff\tx ")]
    assert list(read_lines("list", 100, has_comments=True)) == [(3, b"\xff\tx ")]


UTF_16 = "it is UTF-16 text. Save it as UTF-8, for example with: iconv -f UTF-16 -t UTF-8"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a.fa\n".encode("utf-16"), UTF_16),
        (b"\xfe\xff" + "a.fa\n".encode("utf-16-be"), UTF_16),
        ("a.fa\n".encode("utf-16-le"), UTF_16),
        (b"x" * 101, "a list of more than 100 bytes"),
    ],
)
def test_what_is_no_list(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(ValueError, match=f"^{reason}$"):
        list(read_lines("list", 100))


def test_a_list_may_be_a_pipe() -> None:
    read, write = os.pipe()
    os.write(write, b"a.fa\n")
    os.close(write)
    assert list(read_lines(f"/dev/fd/{read}", 100)) == [(1, b"a.fa")]
    os.close(read)
