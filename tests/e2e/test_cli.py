"""`posthouse up` in one terminal, everything else in others: real processes, real bytes."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.local import Layout
from cluster.local.capture import captured
from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]
TEXT = "Zażółć gęślą jaźń\nСъешь же ещё этих мягких французских булок\nTiếng Việt có dấu\n안녕하세요 세계"


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "POSTHOUSE_DIR": str(directory)}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "cluster.cli", *args]


class Town:
    """A running `posthouse up`, and what one types beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def run(self, *args: str, stdin: bytes = b"", status: int = 0) -> bytes:
        variables = environment(self.directory)
        done = subprocess.run(
            command(*args), input=stdin, capture_output=True, env=variables, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == status, (args, done.returncode, done.stderr.decode())
        assert b"Traceback" not in done.stderr
        return done.stderr if status else done.stdout


@contextmanager
def up(directory: Path, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command("up", *args), env=environment(directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, b"")
        assert any(b"card --as alice" in line for line in lines), process.stderr and process.stderr.read().decode()
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("e2e") / "town"
    with up(directory):
        yield Town(directory)


def nodes_of(directory: Path) -> list[int]:
    """Process ids of nodes that run from a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if str(directory).encode() in words and b"--with-parent" in words:
            found.append(int(path.parent.name))
    return found


def everything(terminal: int) -> bytes:
    """What was written at the other end, which is closed."""
    parts: list[bytes] = []
    with open(terminal, "rb", buffering=0) as file, suppress(OSError):  # EIO is the end of a terminal, on Linux
        while part := file.read(65_536):
            parts.append(part)
    return b"".join(parts)


# --- bytes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("to", "mebibytes"), [("bob", 1), ("dave", 5)], ids=["within a region", "across a border"])
def test_mebibytes_byte_for_byte(town: Town, tmp_path: Path, to: str, mebibytes: int) -> None:
    content = os.urandom(mebibytes * 1024 * 1024)
    path = tmp_path / "random.bin"
    path.write_bytes(content)
    assert b"stored: " in town.run("send", "--as", "alice", "--to", to, "--wait", "stored", str(path))
    assert town.run("recv", "--as", to, "--out", str(tmp_path / "out")) == f"{tmp_path}/out/random.bin\n".encode()
    assert (tmp_path / "out/random.bin").read_bytes() == content
    assert town.run("recv", "--as", to) == b"", "nothing comes twice"


@pytest.mark.parametrize("to", ["bob", "carol"], ids=["within a region", "across a border"])
@pytest.mark.parametrize("content", [TEXT.encode(), b"\0\r\n\xff\x1b[31m\n"], ids=["text", "binary"])
def test_a_pipe_byte_for_byte(town: Town, to: str, content: bytes) -> None:
    town.run("send", "--as", "alice", "--to", to, "--wait", "stored", stdin=content)
    assert town.run("recv", "--as", to) == content


def test_several_recipients_and_an_address_card(town: Town) -> None:
    card = town.run("card", "--as", "carol").decode().strip()
    sent = town.run("send", "--as", "dave", "--to", "bob", "--to", card, "--wait", "stored", stdin=b"for two")
    assert sent.count(b"stored: ") == 2
    assert town.run("recv", "--as", "bob") == b"for two" == town.run("recv", "--as", "carol")


def test_json(town: Town) -> None:
    town.run("send", "--as", "alice", "--to", "bob", stdin=TEXT.encode())
    (line,) = town.run("recv", "--as", "bob", "--json").splitlines()
    message = json.loads(line)
    assert (message["from"], message["text"], message["gap"], message["late"]) == ("alice", TEXT, 0, False)


def test_a_terminal_gets_a_header(town: Town) -> None:
    town.run("send", "--as", "alice", "--to", "bob", stdin=TEXT.encode() + b"\x1b[2J")
    ours, theirs = pty.openpty()
    done = subprocess.run(
        command("recv", "--as", "bob"), stdout=theirs, env=environment(town.directory), timeout=PATIENCE_S, check=False
    )
    os.close(theirs)
    shown = everything(ours).decode().replace("\r\n", "\n")
    assert done.returncode == 0
    assert "── alice, " in shown and TEXT in shown and "\x1b[2J" not in shown


# --- groups and devices --------------------------------------------------------------------------
def test_a_group_across_all_regions(town: Town) -> None:
    group = town.run("group", "create", "--as", "alice", "Przyjaciele 친구들", "bob", "carol").decode().strip()
    assert len(group) == 64
    town.run("group", "send", "--as", "alice", "Przyjaciele 친구들", stdin=TEXT.encode())
    assert town.run("recv", "--as", "bob") == TEXT.encode() == town.run("recv", "--as", "carol")
    assert b"added 1 to" in town.run("group", "add", "--as", "alice", group[:8], "dave")
    town.run("group", "send", "--as", "dave", group[:8], "--wait", "stored", stdin=b"from the north")
    listed = town.run("group", "list", "--as", "dave").decode()
    assert "Przyjaciele 친구들\tv2\t4 members\tmember" in listed
    for name in ("alice", "bob", "carol"):
        (line,) = town.run("recv", "--as", name, "--json").splitlines()
        assert json.loads(line)["title"] == "Przyjaciele 친구들" and json.loads(line)["text"] == "from the north"
    assert b"no group 'enemies'" in town.run("group", "send", "--as", "bob", "enemies", stdin=b"x", status=3)
    assert b"Only that device may change it" in town.run("group", "add", "--as", "bob", group[:8], "dave", status=3)


def test_a_new_user_and_a_second_device(town: Town) -> None:
    town.run("user", "create", "Łukasz", "--region", "taiga")
    town.run("user", "create", "phone", "--device-of", "Łukasz")
    town.run("send", "--as", "alice", "--to", "Łukasz", "--wait", "stored", stdin=b"hello")
    assert town.run("recv", "--as", "Łukasz") == b"hello" == town.run("recv", "--as", "Łukasz+phone")


def test_follow_until_ctrl_c(town: Town) -> None:
    process = subprocess.Popen(
        command("recv", "--as", "carol", "--follow"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(town.directory),
    )  # fmt: skip
    assert process.stdout is not None
    for text in (b"one\n", b"two\n"):
        town.run("send", "--as", "alice", "--to", "carol", stdin=text)
        assert process.stdout.readline() == text
    assert b"another process" in town.run("recv", "--as", "carol", status=3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and b"Traceback" not in errors


def test_the_other_end_of_a_pipe_goes_away(town: Town) -> None:
    town.run("send", "--as", "alice", "--to", "bob", stdin=os.urandom(1_000_000))
    shell = f"'{sys.executable}' -m cluster.cli recv --as bob | head -c 10 | wc -c"
    done = subprocess.run(
        ["/bin/sh", "-c", shell], capture_output=True, env=environment(town.directory), timeout=PATIENCE_S, check=False
    )
    assert (done.stdout.strip(), done.stderr) == (b"10", b"")
    town.run("recv", "--as", "bob")


def test_what_is_wrong_is_said(town: Town) -> None:
    assert b"at most 33554432" in town.run(
        "send", "--as", "alice", "--to", "bob", stdin=bytes(32 * 1024 * 1024 + 1), status=3
    ).lower()
    nobody = "posthouse:taiga:" + "a" * 52
    assert b"UNKNOWN_USER" in town.run("send", "--as", "alice", "--to", nobody, stdin=b"x", status=1)
    assert b"in use by another process" in town.run("up", status=3)


# --- up ------------------------------------------------------------------------------------------
def test_stop_and_resume_lose_nothing(tmp_path: Path) -> None:
    town = Town(tmp_path / "town")
    with up(town.directory, "--regions", "amber,birch", "--nodes", "1", "--capture") as first:
        layout = Layout.load(town.directory)
        running = nodes_of(town.directory)
        town.run("send", "--as", "alice", "--to", "carol", "--wait", "stored", stdin=TEXT.encode())
        for _ in range(3):  # as an impatient Ctrl-C does: the nodes are in sessions of their own
            first.send_signal(signal.SIGINT)
            time.sleep(0.05)
        out, errors = first.communicate(timeout=PATIENCE_S)
        assert first.returncode in (0, -signal.SIGINT)  # which may come when everything is over
        assert b"Stopped. Everything is kept" in errors and b"Traceback" not in out + errors
        assert len(running) == 2 and nodes_of(town.directory) == []
    assert sum(stream.path.stat().st_size for stream in captured(layout.captured_dir)) > len(TEXT)
    late = town.run("send", "--as", "alice", "--to", "carol", "--deadline", "2", stdin=b"late", status=4)
    assert b"is kept" in late
    assert b"Does the node run?" in town.run("recv", "--as", "carol", "--deadline", "1", status=4)
    with up(town.directory) as second:
        assert Layout.load(town.directory) == layout
        town.run("send", "--as", "alice", "--to", "carol", "--wait", "stored", stdin=b"and this takes it along")
        assert town.run("recv", "--as", "carol") == TEXT.encode() + b"\nlate\nand this takes it along"
        second.terminate()
        second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 0 and nodes_of(town.directory) == []


def test_a_port_in_use_and_a_dead_parent(tmp_path: Path) -> None:
    town = Town(tmp_path / "town")
    with up(town.directory, "--regions", "amber", "--plain", "--nodes", "1") as process:
        process.kill()
        process.wait(PATIENCE_S)
        patience = time.monotonic() + PATIENCE_S
        while nodes_of(town.directory) and time.monotonic() < patience:
            time.sleep(0.05)
        assert nodes_of(town.directory) == [], "a node outlived its parent"
    address = Layout.load(town.directory).node("amber").clients_addr
    with socket.create_server(address):
        said = town.run("up", status=3).decode()
    assert f"amber-n1: port {address.port} (clients) is in use" in said and "node.toml" in said


def test_no_client_address_anywhere(tmp_path: Path) -> None:
    """A raw client from 127.0.0.77 that says nothing sensible, and one that says nothing."""
    town = Town(tmp_path / "town")
    with up(town.directory, "--regions", "amber", "--plain", "--nodes", "1"):
        node = Layout.load(town.directory).node("amber")
        for said in (b"", b"\xff" * 64, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
            for address in (node.clients_addr, node.links_addr, node.admin_addr):
                with socket.create_connection(address, 5, ("127.0.0.77", 0)) as client:
                    client.sendall(said)
        with socket.create_connection(node.admin_addr, 5, ("127.0.0.77", 0)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            metrics = b"".join(iter(lambda: client.recv(65_536), b""))
        assert b"posthouse_connections" in metrics and b"127.0.0.77" not in metrics
    files = [path for path in town.directory.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"127.0.0.77" in path.read_bytes()]
