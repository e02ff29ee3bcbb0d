"""Where received messages go: byte for byte into pipes, safely onto terminals and into files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli.received import Files, JsonLines, Pipe, Terminal, as_text, headline, safe_name, save, visible
from relay.client import Message
from relay.errors import OperatorError

USER, GROUP = bytes([1]) * 32, bytes([2]) * 32
TEXT = "Zażółć gęślą jaźń\nСъешь же ещё\nTiếng Việt\n안녕하세요"


class Known:
    def user(self, user: bytes) -> str | None:
        return "alice" if user == USER else None

    def group(self, group: bytes) -> str:
        return "friends"


def message(content: bytes, name: str = "", *, user: bytes = USER, group: bytes | None = None, gap: int = 0) -> Message:
    return Message(bytes(16), user, bytes(32), group, bytes(32), 7, content, name, 1_700_000_000_000, gap, gap > 0)


Capture = pytest.CaptureFixture[bytes]


@pytest.mark.parametrize("content", [b"", b"hello", b"hello\n", os.urandom(100_000), TEXT.encode(), b"\r\n\0\xff"])
def test_a_pipe_gets_the_bytes(capsysbinary: Capture, content: bytes) -> None:
    Pipe().take(message(content))
    assert capsysbinary.readouterr().out == content


def test_texts_in_a_pipe_keep_to_their_lines(capsysbinary: Capture) -> None:
    pipe = Pipe()
    for content in (b"one", b"two\n", b"three", b"", b"\xff", b"\xfe"):
        pipe.take(message(content))
    assert capsysbinary.readouterr().out == b"one\ntwo\nthree\n\xff\xfe"


def test_a_terminal_gets_a_header_and_nothing_that_steers_it(capsysbinary: Capture, tmp_path: Path) -> None:
    terminal = Terminal(Known(), tmp_path / "received")
    terminal.take(message(TEXT.encode()))
    terminal.take(message(b"\x1b]0;owned\x07\x1b[2Jhi\r\n", group=GROUP, gap=2, user=bytes(32)))
    text = capsysbinary.readouterr().out.decode()
    assert f"{TEXT}\n" in text and text.startswith("── alice, 20")
    assert "── user 00000000 → friends, " in text and "2 before it missing, late" in text
    assert "\x1b]" not in text and "\x07" not in text and "␛]0;owned␇␛[2Jhi␍\n" in text
    assert not (tmp_path / "received").exists()


def test_a_terminal_gets_the_place_of_a_file(capsysbinary: Capture, tmp_path: Path) -> None:
    terminal = Terminal(Known(), tmp_path / "received")
    terminal.take(message(b"\xff\0" * 600, "photo.jpg"))
    terminal.take(message(b"\xff\0"))
    assert (tmp_path / "received/photo.jpg").read_bytes() == b"\xff\0" * 600
    assert (tmp_path / "received/20231114T221320Z-00000000.bin").read_bytes() == b"\xff\0"
    assert f"{tmp_path / 'received/photo.jpg'}  (1,200 bytes)\n" in capsysbinary.readouterr().out.decode()


def test_files_are_never_overwritten(capsysbinary: Capture, tmp_path: Path) -> None:
    for content in (b"1", b"2", b"3"):
        Files(tmp_path).take(message(content, "a.tar.gz"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "a.tar.gz": b"1", "a-1.tar.gz": b"2", "a-2.tar.gz": b"3",
    }  # fmt: skip
    assert capsysbinary.readouterr().out.decode().splitlines() == [
        str(tmp_path / name) for name in ("a.tar.gz", "a-1.tar.gz", "a-2.tar.gz")
    ]


def test_links_are_not_followed(capsysbinary: Capture, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/evil").symlink_to(tmp_path / "target")
    save(message(b"x", "evil"), tmp_path / "out")
    assert not (tmp_path / "target").exists() and (tmp_path / "out/evil-1").read_bytes() == b"x"


def test_what_cannot_be_kept_stays_unread(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="stays unread"):
        save(message(b"x", "a"), tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"), ("..\\..\\boot.ini", "boot.ini"), ("/etc/passwd", "passwd"), ("..", ""),
        (".bashrc", "bashrc"), ("-rf", "rf"), ("a\0b\n\x1b[2J.txt", "ab[2J.txt"), ("C:evil.txt", "Cevil.txt"), ("", ""),
        ("letters/", ""), ("zdjęcie z Łodzi.jpg", "zdjęcie z Łodzi.jpg"), ("사진.png", "사진.png"),
        ("\u202egpj.exe", "gpj.exe"), (".tar.gz", "tar.gz"), (".", ""),
    ],
)  # fmt: skip
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=300))
def test_any_name_is_one_file_here(name: str) -> None:
    safe = safe_name(name)
    assert not set(safe) & set("/\\\0\n") and safe not in (".", "..") and not safe.startswith((".", "-"))
    assert len(safe.encode()) <= 180 and safe == safe_name(safe)


@given(st.text(max_size=100))
def test_visible_text_is_harmless_and_scripts_survive(text: str) -> None:
    shown = visible(text)
    assert all(char in "\t\n" or not (ord(char) < 32 or 0x7F <= ord(char) < 0xA0) for char in shown)
    assert visible(TEXT) == TEXT and visible("👩‍🚀 שלום") == "👩‍🚀 שלום"


def test_long_names_keep_their_ending() -> None:
    safe = safe_name("дом" * 200 + ".tar.gz")
    assert safe.endswith(".tar.gz") and 170 < len(safe.encode()) <= 180


def test_json_lines(capsysbinary: Capture, tmp_path: Path) -> None:
    JsonLines(Known(), None).take(message(TEXT.encode(), group=GROUP))
    JsonLines(Known(), None).take(message(b"\xff", user=bytes(32)))
    JsonLines(Known(), tmp_path).take(message(b"\xff", "x.bin"))
    text, binary, file = [json.loads(line) for line in capsysbinary.readouterr().out.decode().splitlines()]
    assert (text["from"], text["title"], text["text"], text["size"]) == ("alice", "friends", TEXT, len(TEXT.encode()))
    assert text["sent"] == "2023-11-14T22:13:20+00:00"
    assert (binary["from"], binary["base64"], binary["group"]) == (None, "/w==", None)
    assert file["file"] == str(tmp_path / "x.bin") and "base64" not in file


def test_what_is_text() -> None:
    assert as_text(TEXT.encode()) == TEXT
    assert as_text(b"a\0b") is None and as_text(b"\xff") is None and as_text(b"") == ""


def test_a_headline_is_one_line() -> None:
    class Odd(Known):
        def group(self, group: bytes) -> str:
            return "a\nb\x1b[31m"

    assert not set(headline(message(b"", group=GROUP), Odd())) & set("\n\x1b")
