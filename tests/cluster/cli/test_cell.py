"""`posthouse cell`, against nodes of straw behind real sockets: who is asked, what is ordered, what is said."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from cluster.cli import cell
from cluster.cli.exits import NoAnswer
from cluster.cli.reach import Door, Reach, reach_of
from cluster.config_keys import Address
from cluster.control import CellView, NotLeading, StoreView, cell_pages
from cluster.control.pages import Unanswered, ask_view, give_order
from cluster.core.raft import ChangeRefused
from cluster.env import RealEnv
from cluster.local import make_federation
from relay.errors import OperatorError
from relay.observe.admin import serve_admin
from relay.observe.metrics import Metrics
from tests.patience import PATIENCE_S


class Straw:
    """A cell of straw: what it is told to do takes one look."""

    def __init__(self, *voters: str, nodes: tuple[str, ...] = ("n1", "n2", "n3")) -> None:
        self.voters = [StoreView(node=node, store=f"{node}-a" * 8, behind=0) for node in voters]
        self.learners: list[StoreView] = []
        self.nodes, self.leader, self.term = nodes, voters[0], 7
        self.orders: list[tuple[str, str, str]] = []
        self.then: Callable[[], None] = lambda: None  # runs at every look
        self.refuse: Exception | None = None

    def control(self, node: str) -> Straws:
        return Straws(self, node)

    def obey(self, by: str, order: str, node: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        if by != self.leader:
            raise NotLeading(self.leader)
        self.orders.append((by, order, node))
        if order == "transfer":
            self.leader, self.term = node, self.term + 1
        else:
            group = self.learners if any(one.node == node for one in self.learners) else self.voters
            group.remove(next(one for one in group if one.node == node))


class Straws:
    """One node of it."""

    def __init__(self, straw: Straw, node: str) -> None:
        self._straw, self._node = straw, node

    def view(self) -> CellView:
        straw = self._straw
        view = CellView(
            cell="norden/1", node=self._node, store="5" * 32, log="1" * 32, leader=straw.leader, term=straw.term,
            tip=90, commit=99, behind=9, voters=tuple(straw.voters), learners=tuple(straw.learners), nodes=straw.nodes,
        )  # fmt: skip
        straw.then()
        return view

    def transfer(self, node: str) -> None:
        self._straw.obey(self._node, "transfer", node)

    def remove(self, node: str) -> None:
        self._straw.obey(self._node, "remove", node)


@asynccontextmanager
async def reaching(straw: Straw, folder: Path, *nodes: str) -> AsyncIterator[Reach]:
    """The nodes, each behind an admin port and a control socket."""
    doors = []
    async with trio.open_nursery() as nursery:
        for node in nodes:
            control = straw.control(node)
            faces = await trio.open_tcp_listeners(0, host="127.0.0.1")
            sockets = await RealEnv().listen_unix(folder / node)
            for listeners, orders in ((faces, False), (sockets, True)):
                pages = cell_pages(lambda control=control: control, orders=orders)  # type: ignore[misc]
                await nursery.start(partial(serve_admin, listeners, Metrics(), lambda: None, pages))
            doors.append(Door(node, Address("127.0.0.1", faces[0].socket.getsockname()[1]), folder / node))
        with trio.fail_after(PATIENCE_S):
            yield Reach(tuple(doors))
        nursery.cancel_scope.cancel()


async def test_a_view_goes_over_the_wire_and_orders_only_over_the_socket(tmp_path: Path) -> None:
    straw = Straw("n1", "n2", "n3")
    async with reaching(straw, tmp_path, "n1", "n2") as reach:
        first, second = reach.doors
        assert first.control is not None and second.control is not None
        view = await ask_view(second.admin)
        assert view == straw.control("n2").view() == await ask_view(second.control)
        assert view.whole() and view.voter("n3") is not None and view.learner("n3") is None
        assert await reach.view() == await ask_view(first.admin), "the leader knows best"
        with pytest.raises(OperatorError, match="answered 404"):
            await give_order(first.admin, "remove", "n2")
        with pytest.raises(OperatorError, match=r"answered 404: No such page. There are: .*/cell/remove"):
            await give_order(first.control, "destroy", "n2")
        with pytest.raises(NotLeading) as caught:
            await give_order(second.control, "transfer", "n3")
        assert caught.value.leader == "n1" and not straw.orders
        straw.refuse = OperatorError("only 1 of 2 voters are up to date", "Add one first")
        with pytest.raises(OperatorError, match="only 1 of 2 voters") as refused:
            await give_order(first.control, "remove", "n2")
        assert refused.value.remedy == "Add one first"
    with pytest.raises(Unanswered, match="no node answers"):
        await ask_view(first.admin)
    with pytest.raises(Unanswered, match="no node answers"):
        await ask_view(tmp_path / "nobody")


@pytest.mark.parametrize(
    ("status", "body"), [("200 OK", "hello"), ("200 OK", '{"cell": 1}'), ("500 Oh", "[]"), ("500 Oh", '{"error": 1}')]
)
async def test_who_is_no_node_is_not_understood_and_named(status: str, body: str) -> None:
    async def stranger(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, stranger, 0, host="127.0.0.1"))
        where = Address("127.0.0.1", listener.socket.getsockname()[1])
        with pytest.raises(OperatorError, match=re.escape(str(where))) as caught:
            await ask_view(where)
        assert "admin" in caught.value.remedy
        nursery.cancel_scope.cancel()


async def test_an_order_is_given_although_a_node_beside_it_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the one that hangs takes longer than a cell may be without a leader."""

    async def hang(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("cluster.cli.reach._AGAIN_S", 0.1)
    monkeypatch.setattr("cluster.control.pages.ASK_S", 0.5)
    straw = Straw("n1", "n2", "n3")
    async with reaching(straw, tmp_path, "n1") as reach, trio.open_nursery() as nursery:
        (hung,) = await nursery.start(partial(trio.serve_tcp, hang, 0, host="127.0.0.1"))
        door = Door("n2", Address("127.0.0.1", hung.socket.getsockname()[1]), None)
        await Reach((*reach.doors, door)).order("remove", "n3")
        assert straw.orders == [("n1", "remove", "n3")]
        nursery.cancel_scope.cancel()


async def test_before_there_is_a_log_it_says_so() -> None:
    faces = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_admin, faces, Metrics(), lambda: None, cell_pages(lambda: None, orders=True)))
        with pytest.raises(Unanswered, match="the log is not open yet"):
            await ask_view(Address("127.0.0.1", faces[0].socket.getsockname()[1]))
        nursery.cancel_scope.cancel()


async def test_a_node_is_seen_coming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straw, looks = Straw("n1", "n2"), iter(range(100))

    def come() -> None:
        match next(looks):
            case 2:
                straw.learners = [StoreView(node="n3", store="c" * 32)]
            case 4:
                straw.learners = [StoreView(node="n3", store="c" * 32, behind=5000)]
            case 6:
                straw.learners = []
                straw.voters.append(StoreView(node="n3", store="c" * 32, behind=3))

    straw.then = come
    async with reaching(straw, tmp_path, "n1") as reach:
        await cell._add(reach, "n3", 10)
        with pytest.raises(OperatorError, match="has no node 'n4', only n1, n2, n3"):
            await cell._add(reach, "n4", 10)
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "n3: has not come yet; is it running, with an empty data directory?",
        "n3: learns, not heard of yet", "n3: learns, 5000 blocks behind",
    ]  # fmt: skip


async def test_a_store_is_seen_being_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straw, looks = Straw("n1", "n2", "n3"), iter(range(100))

    def come() -> None:
        match next(looks):
            case 2:
                straw.learners = [StoreView(node="n3", store="c" * 32, behind=70)]
            case 4:
                straw.voters.append(StoreView(node="n3", store="c" * 32, behind=0))
                straw.learners = []
            case 6:
                del straw.voters[2]

    straw.then = come
    async with reaching(straw, tmp_path, "n1") as reach:
        await cell._renew(reach, "n3", 10)
        assert [store.store[0] for store in straw.voters] == ["n", "n", "c"]
    said = capsys.readouterr().out
    assert "n3 has store n3-an3-a still" in said and "n3: learns, 70 blocks behind" in said
    assert said.splitlines()[-1] == "n3: its old store goes"


async def test_a_leader_hands_over_before_it_is_removed(tmp_path: Path) -> None:
    straw = Straw("n1", "n2", "n3")
    straw.voters.append(StoreView(node="n1", store="f" * 32, behind=0))  # two stores of one node, for a moment
    async with reaching(straw, tmp_path, "n1", "n2", "n3") as reach:
        await cell._remove(reach, "n1", 10)
        await cell._remove(reach, "n1", 10)  # nothing is left to do
        await cell._transfer(reach, "n3", 10)
    assert straw.orders == [("n1", "transfer", "n2"), ("n2", "remove", "n1"), ("n2", "remove", "n1"),
                            ("n2", "transfer", "n3")]  # fmt: skip
    assert [store.node for store in straw.voters] == ["n2", "n3"]


async def test_the_replacement_votes_before_the_old_one_goes(tmp_path: Path) -> None:
    straw = Straw("n1", "n2", "n3", nodes=("n1", "n2", "n3", "n4"))
    straw.learners = [StoreView(node="n4", store="d" * 32, behind=800)]
    looks = iter(range(100))

    def come() -> None:
        if next(looks) == 3:
            straw.voters += straw.learners
            straw.voters[-1] = StoreView(node="n4", store="d" * 32, behind=0)
            straw.learners = []

    straw.then = come
    async with reaching(straw, tmp_path, "n1") as reach:
        await cell._replace(reach, "n2", "n4", 10)
        assert straw.orders == [("n1", "remove", "n2")]
        with pytest.raises(OperatorError, match="n9 cannot be replaced by n4"):
            await cell._replace(reach, "n9", "n4", 10)


async def test_who_leads_elsewhere_takes_no_orders_from_here(tmp_path: Path) -> None:
    straw = Straw("n1", "n2", "n3")
    async with reaching(straw, tmp_path, "n2") as reach:
        with pytest.raises(OperatorError, match="n1 leads the cell, and takes no orders from here") as caught:
            await cell._remove(reach, "n3", 10)
        assert "on the server of n1" in caught.value.remedy
        with pytest.raises(OperatorError, match="n1 leads norden/1") as caught:
            await cell._remove(Reach((Door("n1", reach.doors[0].admin, None),)), "n1", 10)
        assert "transfer-leader n2" in caught.value.remedy
    with pytest.raises(NoAnswer, match=r"no node answers at 127\.0\.0\.1"):
        await reach.view()


async def test_a_cell_without_a_leader_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.cli.reach._AGAIN_S", 0.5)
    straw = Straw("n1", "n2", "n3")
    straw.leader = ""
    async with reaching(straw, tmp_path, "n1", "n2") as reach:
        with pytest.raises(NoAnswer, match="no leader"):
            await reach.order("remove", "n3")
        straw.then = lambda: setattr(straw, "leader", "n2")
        await reach.order("remove", "n3")
    assert straw.orders == [("n2", "remove", "n3")]


async def test_a_refusal_that_passes_is_waited_for_and_what_stays_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after the new node votes the change before may not be committed yet."""
    monkeypatch.setattr("cluster.cli.reach._AGAIN_S", 0.5)
    straw, looks = Straw("n1", "n2", "n3"), iter(range(100))
    straw.refuse = ChangeRefused("the change before is not committed yet", "Try again soon", passes=True)

    def pass_away() -> None:
        if next(looks) == 8:
            straw.refuse = None

    straw.then = pass_away
    async with reaching(straw, tmp_path, "n1") as reach:
        await cell._remove(reach, "n3", 10)
        assert straw.orders == [("n1", "remove", "n3")]
        straw.refuse = ChangeRefused("only 1 of the 2 voters are up to date", "Add one first", passes=True)
        with pytest.raises(NoAnswer, match=r"only 1 of the 2 voters are up to date\. Add one first"):
            await cell._remove(reach, "n2", 1)
        straw.refuse = ChangeRefused("two voters would be left", "Add one first")
        with pytest.raises(OperatorError, match="two voters"):
            await cell._remove(reach, "n2", 60)


def test_what_is_shown() -> None:
    straw = Straw("n1", "n2", "n3")
    assert cell.describe(straw.control("n1").view()).splitlines() == [
        "norden/1  log 11111111  term 7  block 99  (as n1 sees it)",
        "  n1       n1-an1-a  votes, leads", "  n2       n2-an2-a  votes", "  n3       n3-an3-a  votes",
        "Whole: any 1 of 3 may fail.",
    ]  # fmt: skip
    straw.voters[2] = StoreView(node="n3", store="3" * 32, behind=0, silent=12_345)
    assert "  n3       33333333  votes, silent for 12 s\n" in cell.describe(straw.control("n1").view())
    assert not straw.control("n1").view().whole()
    assert "known where the leader runs: n1" in cell.describe(Straw("n1", nodes=("n1",)).control("n2").view())
    straw.voters[1:] = [StoreView(node="n2", store="2" * 32, behind=500)]
    straw.learners, straw.leader = [StoreView(node="n9", store="9" * 32)], ""
    shown = cell.describe(straw.control("n1").view())
    for line in ("votes, 500 blocks behind", "learns, not heard of yet; the root does not list it", "n3       –",
                 "nobody leads", "Not whole: 1 of the 3 nodes"):  # fmt: skip
        assert line in shown, shown


def test_which_nodes_are_here(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["norden", "sauda"], RealEnv(), nodes=3)
    with pytest.raises(OperatorError, match="several regions") as caught:
        reach_of(None, tmp_path / "f", None)
    assert "--region norden | sauda" in caught.value.remedy
    reach = reach_of(None, tmp_path / "f", "sauda")
    assert [(door.node, door.control) for door in reach.doors] == [("n1", None), ("n2", None), ("n3", None)]
    (door,) = reach_of(layout.node("sauda", "n2").config_path, tmp_path, None).doors
    assert (door.node, door.admin) == ("n2", layout.node("sauda", "n2").admin_addr)
