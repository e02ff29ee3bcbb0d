"""Node processes are started, watched and never left behind. The node is a stand-in of a few lines."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from cluster.config import load_config
from cluster.config_keys import Address
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, NodeLayout, make_federation, processes
from relay.errors import OperatorError
from tests.patience import PATIENCE_S

STAND_IN = """
import http.server, os, signal, sys, threading
port, mode = int(sys.argv[1]), sys.argv[2]
print("my last words", file=sys.stderr, flush=True)
if mode == "dies":
    sys.exit(7)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if mode == "never ready" else 200)
        self.end_headers()
        self.wfile.write(b"not ready: replaying\\n")
    def log_message(self, *args): pass
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = http.server.HTTPServer(("127.0.0.1", port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(3)
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(mode: str) -> None:
        def command(node: NodeLayout) -> list[str]:
            return [sys.executable, "-S", "-c", STAND_IN, str(node.admin_addr.port), mode]

        monkeypatch.setattr(processes, "node_command", command)

    use("works")
    return use


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_federation(tmp_path / "fed", ["norden", "sauda"], RealEnv(), borders=True)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.usefixtures("stand_in")
async def test_start_stop_kill_and_start_again(layout: Layout) -> None:
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        first = fed.pid("norden")
        assert os.getsid(first) == first != os.getsid(0), "a session of its own"
        fed.kill("norden")
        await fed.ended()
        assert not alive(first)
        await fed.start("norden")
        assert fed.pid("norden") != first and not alive(first)
        assert await fed.stop("norden") == 0
        await fed.start("norden")
        await fed.ready("sauda")
        pids = [fed.pid("norden"), fed.pid("sauda")]
        with pytest.raises(OperatorError, match="runs already"):
            await fed.start("norden")
    assert not any(map(alive, pids))
    async with LocalFederation(layout) as fed:  # resumed on the same ports
        await fed.start_all()


@pytest.mark.usefixtures("stand_in")
async def test_nobody_is_left_behind_by_an_error_or_a_cancel(layout: Layout) -> None:
    pids = []
    with pytest.raises(LookupError):
        async with LocalFederation(layout) as fed:
            await fed.start("norden")
            pids.append(fed.pid("norden"))
            raise LookupError
    with trio.CancelScope() as scope:
        async with LocalFederation(layout) as fed:
            await fed.start("norden")
            pids.append(fed.pid("norden"))
            scope.cancel()
            await trio.sleep_forever()
    assert len(pids) == 2 and not any(map(alive, pids))


async def test_a_stubborn_node_is_killed(
    layout: Layout, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in("stubborn")
    monkeypatch.setattr(processes, "STOP_S", 0.2)
    async with LocalFederation(layout) as fed:
        await fed.start("norden")
        assert await fed.stop("norden") == -signal.SIGKILL


async def test_a_node_that_dies_says_why(layout: Layout, stand_in: Callable[[str], None]) -> None:
    stand_in("dies")
    async with LocalFederation(layout) as fed:
        with pytest.raises(OperatorError, match="ended with status 7") as caught:
            await fed.start("norden")
    assert "my last words" in caught.value.remedy and str(layout.node("norden").log_path) in caught.value.remedy


async def test_a_node_that_is_never_ready_says_why(layout: Layout, stand_in: Callable[[str], None]) -> None:
    stand_in("never ready")
    async with LocalFederation(layout) as fed:
        await fed.launch("norden")
        with trio.fail_after(PATIENCE_S):
            while await processes._ask_ready(layout.node("norden").admin_addr) != "not ready: replaying":  # noqa: ASYNC110
                await trio.sleep(0.02)
        with pytest.raises(OperatorError, match="not ready after 1 s: not ready: replaying") as caught:
            await fed.ready("norden", deadline_s=1.0)
    assert "my last words" in caught.value.remedy


@pytest.mark.usefixtures("stand_in")
async def test_an_unexpected_death_is_noticed(layout: Layout) -> None:
    async with LocalFederation(layout) as fed:
        await fed.start("norden")
        os.kill(fed.pid("norden"), signal.SIGKILL)
        with trio.fail_after(PATIENCE_S), pytest.raises(OperatorError, match="norden-n1 ended with status -9"):
            await fed.died()


@pytest.mark.usefixtures("stand_in")
async def test_one_of_three_may_end_and_two_may_not(tmp_path: Path) -> None:
    async with LocalFederation(make_federation(tmp_path / "fed", ["norden"], RealEnv(), nodes=3)) as fed:
        await fed.start_all()
        for name, carries_on in (("n2", True), ("n1", False)):
            os.kill(fed.pid("norden", name), signal.SIGKILL)
            with trio.fail_after(PATIENCE_S):
                node, error = await fed.next_death()
            assert node.name == name and f"norden-{name} ended with status -9" in error.text
            assert fed.carries_on("norden") is carries_on


@pytest.mark.usefixtures("stand_in")
async def test_a_port_in_use_is_named(layout: Layout) -> None:
    port = layout.node("sauda").clients_addr.port
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    async with LocalFederation(layout) as fed, listeners[0]:
        with pytest.raises(OperatorError, match=rf"sauda-n1: port {port} \(clients\) is in use"):
            await fed.start("sauda")


@pytest.mark.usefixtures("stand_in")
async def test_a_directory_is_used_by_one(layout: Layout) -> None:
    async with LocalFederation(layout):
        with pytest.raises(OperatorError, match="in use by another process"):
            async with LocalFederation(layout):
                raise AssertionError("two of them")
    async with LocalFederation(layout):
        pass


@pytest.mark.usefixtures("stand_in")
async def test_nodes_notice_that_their_parent_is_gone(layout: Layout) -> None:
    async with LocalFederation(layout) as fed:
        await fed.start("norden")
        running = fed._running["norden", "n1"]
        assert running.process.stdin is not None
        await running.process.stdin.aclose()
        with trio.fail_after(PATIENCE_S):
            await running.exited.wait()
        assert running.process.returncode == 3


@pytest.mark.usefixtures("stand_in")
async def test_a_process_that_does_not_end_is_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    async with LocalFederation(layout) as fed:
        await fed.start("norden")
        monkeypatch.setattr(processes, "GONE_S", 0.01)
        fed._running["norden", "n1"].stopping = True  # told to stop, and a disk that hangs holds it
        for waiting in (fed.ended, partial(fed.wipe, "norden"), partial(fed.launch, "norden")):
            with pytest.raises(OperatorError, match=f"norden-n1 .process {fed.pid('norden')}. has not ended"):
                await waiting()
        monkeypatch.undo()
        await fed.stop("norden")


@pytest.mark.usefixtures("stand_in")
async def test_each_node_of_a_region_is_started_killed_and_wiped_by_itself(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", ["norden", "sauda"], RealEnv(), nodes=3, borders=True)
    async with LocalFederation(layout) as fed:
        await fed.start_region("norden")
        assert [node.name for node in fed.running()] == ["n1", "n2", "n3"] and not fed.running("sauda")
        pids = {name: fed.pid("norden", name) for name in ("n1", "n2", "n3")}
        assert len(set(pids.values())) == 3
        node = layout.node("norden", "n2")
        (node.data_dir / "log.sqlite").write_bytes(b"x")
        (node.data_dir / "quarantine").mkdir()
        with pytest.raises(OperatorError, match="norden-n2 runs"):
            await fed.wipe("norden", "n2")
        fed.kill("norden", "n2")
        assert [node.name for node in fed.running("norden")] == ["n1", "n3"]
        await fed.wipe("norden", "n2")
        assert not list(node.data_dir.iterdir()) and node.data_dir.stat().st_mode & 0o777 == 0o700
        fed.kill("norden")
        await fed.wipe("norden")
        assert not list(layout.node("norden").data_dir.iterdir()), "a wiped founder does not found again"
        await fed.start("norden", "n2")
        assert fed.pid("norden", "n2") != pids["n2"] and fed.pid("norden", "n3") == pids["n3"]
        assert {node.name for node in fed.running("norden")} == {"n2", "n3"}
        await fed.stop_all()
        assert not fed.running() and not any(map(alive, pids.values()))


@pytest.mark.usefixtures("stand_in")
async def test_a_border_cuts_a_region_off_and_not_its_nodes_from_each_other(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", ["norden", "sauda"], RealEnv(), nodes=3, borders=True)
    async with LocalFederation(layout) as fed:
        fed.border("sauda").cut()
        for border in layout.file.borders:
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", border.port)
        for node in layout.nodes("sauda"):
            config = load_config(node.config_path)
            own = {entry.link for entry in config.root.region("sauda").cells[0].nodes}
            assert own == {str(other.links_addr) for other in layout.nodes("sauda")}, "dialled without a crossing"


@pytest.mark.usefixtures("stand_in")
async def test_borders_are_cut_by_region(layout: Layout, tmp_path: Path) -> None:
    ports = {(border.source, border.target): border.port for border in layout.file.borders}
    async with LocalFederation(layout) as fed:
        await (await trio.open_tcp_stream(*Address("127.0.0.1", ports["norden", "sauda"]))).aclose()
        fed.border("sauda").cut()
        for port in ports.values():
            with pytest.raises(OSError):
                await trio.open_tcp_stream("127.0.0.1", port)
        fed.border("sauda").heal()
    async with LocalFederation(make_federation(tmp_path / "plain", ["norden"], RealEnv())) as fed:
        with pytest.raises(OperatorError, match="no border"):
            fed.border("norden")
