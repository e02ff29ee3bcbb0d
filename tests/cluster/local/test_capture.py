"""What crosses a border is kept, each connection and direction by itself, as far as there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from cluster.local.capture import FULL, Capture, captured
from relay.errors import DiskFailed
from tests.cluster.local.test_border import crossing_to_echo


def kept(directory: Path) -> list[tuple[str, str, str, bytes]]:
    return [(one.source, one.target, one.path.name, one.path.read_bytes()) for one in captured(directory)]


async def test_both_directions_of_each_connection_are_kept(tmp_path: Path) -> None:
    reel = Capture(tmp_path).reel("norden", "sauda", "n1")
    async with crossing_to_echo(reel) as (_, at, _):
        for words in (b"one", b"two"):
            async with await trio.open_tcp_stream(*at) as stream:
                await stream.send_all(words)
                assert await stream.receive_some() == words
    out, back = ("norden", "sauda"), ("sauda", "norden")
    said = [(*out, "n1.1.out", b"one"), (*out, "n1.2.out", b"two")]
    assert kept(tmp_path) == [*said, (*back, "n1.1.in", b"one"), (*back, "n1.2.in", b"two")]
    again, _ = Capture(tmp_path).reel("norden", "sauda", "n1").tapes()  # the next run goes on beside them
    again(b"three")
    assert (*out, "n1.3.out", b"three") in kept(tmp_path)


async def test_what_there_is_no_room_for_is_not_kept_and_that_is_said(tmp_path: Path) -> None:
    capture = Capture(tmp_path, room=5)
    out, back = capture.reel("a", "b", "n1").tapes()
    out(b"abc")
    assert not (tmp_path / FULL).exists()
    back(b"defg")
    out(b"h")
    assert [data for *_, data in kept(tmp_path)] == [b"abc", b"de"] and (tmp_path / FULL).exists()


async def test_a_disk_that_takes_no_more_lets_nothing_cross_unseen(tmp_path: Path) -> None:
    out, _ = Capture(tmp_path).reel("a", "b", "n1").tapes()
    for path in (tmp_path / "a/b").iterdir():
        path.unlink()
    (tmp_path / "a/b").rmdir()
    with pytest.raises(DiskFailed, match="make room"):
        out(b"x")
