"""The real Env: sockets that can be served, and errors that an operator can act on."""

from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest
import trio

from cluster.env import RealClock, RealEnv, clients_that_fit
from relay.errors import OperatorError
from tests.patience import PATIENCE_S


async def test_dialled_and_accepted_sockets_do_not_wait_for_more_bytes() -> None:
    env = RealEnv()
    (listener,) = await env.listen("127.0.0.1", 0)
    async with listener:
        with trio.fail_after(PATIENCE_S):
            near = await env.dial("127.0.0.1", listener.socket.getsockname()[1])
            far = await listener.accept()
        for stream in (near, far):
            assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await stream.aclose()


async def test_a_port_in_use_is_the_operators_to_mend() -> None:
    env = RealEnv()
    (listener,) = await env.listen("127.0.0.1", 0)
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(OperatorError, match=rf"127\.0\.0\.1:{port}: the port is in use\. Stop what listens"):
            await env.listen("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no-such-host.invalid", 0)])
async def test_an_address_that_cannot_be_listened_on(host: str, port: int) -> None:
    with pytest.raises(OperatorError, match="cannot listen on"):
        await RealEnv().listen(host, port)


async def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    env, path = RealEnv(), tmp_path / "clients.sock"
    (stale,) = await env.listen_unix(path)
    await stale.aclose()
    (listener,) = await env.listen_unix(path)
    async with listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(OperatorError, match="in use by a running process"):
            await env.listen_unix(path)
        async with await trio.open_unix_socket(str(path)):
            pass
    assert os.listdir(tmp_path) == [path.name]


async def test_unix_socket_paths_that_cannot_be(tmp_path: Path) -> None:
    env = RealEnv()
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OperatorError, match="is not a socket"):
        await env.listen_unix(tmp_path / "file")
    with pytest.raises(OperatorError, match="too long"):
        await env.listen_unix(tmp_path / ("x" * 100))
    with pytest.raises(OperatorError, match="Check that the directory exists"):
        await env.listen_unix(tmp_path / "no" / "s")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_data_dir_is_made_for_its_owner_only(tmp_path: Path) -> None:
    env = RealEnv()
    made = env.data_dir(tmp_path / "a" / "data")
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert env.data_dir(made) == made
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match="is not a directory"):
        env.data_dir(tmp_path / "file")
    with pytest.raises(OperatorError, match="cannot make"):
        env.data_dir(tmp_path / "file" / "data")


def test_clocks_and_randomness() -> None:
    env = RealEnv()
    assert env.clock.wall_ms() > 1_700_000_000_000
    assert env.clock.monotonic_ms() <= env.clock.monotonic_ms()
    assert len(env.random_bytes(16)) == 16 and env.random_bytes(16) != env.random_bytes(16)
    assert 0 <= env.random_float() < 1


@pytest.mark.parametrize(
    ("soft", "hard", "room", "then"),
    [(1024, 20_000, 10_000, 10_256), (1024, 1024, 768, 1024), (64, 64, 1, 64), (50_000, 50_000, 10_000, 50_000)],
)
def test_clients_do_not_take_the_last_files(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, room: int, then: int
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr("resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("resource.setrlimit", lambda _, pair: limits.append(pair))
    assert clients_that_fit(10_000) == room
    assert limits[-1] == (then, hard)


@pytest.mark.parametrize("clock", [getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)])
def test_a_machine_that_slept_is_no_clock_that_jumped(monkeypatch: pytest.MonkeyPatch, clock: int) -> None:
    """On Linux the usual monotonic clock stands still meanwhile; this one does not."""
    monkeypatch.setattr("time.clock_gettime_ns", lambda asked: 5_000_000 if asked == clock else 0)
    assert RealClock().monotonic_ms() == 5


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".example", "\u0378.example", "\ud800"])
async def test_what_is_no_host_name_cannot_be_dialled_and_ends_nobody(host: str) -> None:
    """Other regions write such names into the root document, and each node dials them."""
    with pytest.raises(OSError):
        await RealEnv().dial(host, 1)
