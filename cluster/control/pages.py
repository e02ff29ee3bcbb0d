"""A cell over HTTP: GET /cell shows it as JSON; on a control socket POST /cell/transfer and /cell/remove take orders.

Whoever may open the control socket (mode 0600) may give orders; the admin port asks nobody who they are,
and only shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import h11
import msgspec
import trio

from cluster.config_keys import Address
from cluster.control.api import CellControl, CellView, NotLeading
from cluster.core.raft import ChangeRefused
from cluster.trail import Noting, acting, unnoted
from relay.errors import DiskFailed, OperatorError, Overloaded, PosthouseError
from relay.limits import KIB
from relay.observe.admin import Answer, Page

ASK_S = 5.0  # seconds for an answer; a node gives it at once
MAX_ANSWER = 64 * KIB  # bytes; a view takes about 1 KiB
OPERATOR = "operator"  # in the audit log: whoever may open the control socket, or run commands on the node's files
_MAX_NAME = 64  # characters of a node's name; what is longer is none, and refused
_JSON = "application/json"


class _Order(msgspec.Struct, frozen=True):
    """The body of a POST."""

    node: str


class _Refusal(msgspec.Struct, frozen=True):
    """The body of an answer that is no view. `leader`: the node to ask instead, or empty."""

    error: str
    remedy: str = ""
    leader: str = ""


@dataclass
class Erasing:
    """What a node says and does about users who have left; nothing while it has no log."""

    receipts: Callable[[], list[bytes]] = list
    now: Callable[[], None] | None = None


def cell_pages(
    control: Callable[[], CellControl | None], *, orders: bool, erasing: Erasing | None = None, note: Noting = unnoted
) -> dict[str, Page]:
    """Pages for `serve_admin`; with `orders`, for a control socket. `control` gives None while there is no journal.
    `note`: of each order it is noted before that it was given, and what came of it before that is answered."""
    erasing = erasing or Erasing()

    def show() -> Answer:
        cell = control()
        if cell is None:
            return _refusal("the log is not open yet", "Try again soon; /readyz says what is waited for")
        return Answer(HTTPStatus.OK, msgspec.json.encode(cell.view()) + b"\n", _JSON)

    def taking(what: str, act: Callable[[CellControl, str], None]) -> Callable[[bytes], Answer]:
        def noted(cell: CellControl, node: str) -> None:
            with acting(note, what, OPERATOR, node=node[:_MAX_NAME]):
                act(cell, node)

        return lambda body: _obey(control(), body, noted)

    def receipts() -> Answer:
        try:
            return Answer(HTTPStatus.OK, msgspec.json.encode([one.hex() for one in erasing.receipts()]) + b"\n", _JSON)
        except OperatorError as error:
            return _refusal(error.text, error.remedy, waits=False)

    def erase(_: bytes) -> Answer:
        if erasing.now is None:
            return _refusal("the log is not open yet", "Try again soon")
        try:
            with acting(note, "cell.erase", OPERATOR):
                erasing.now()
        except DiskFailed as error:
            return _refusal(error.text, error.remedy, waits=False)
        return Answer(HTTPStatus.ACCEPTED, b"{}\n", _JSON)

    pages = {"/cell": Page(get=show), "/cell/erasures": Page(get=receipts)}
    if orders:
        pages["/cell/erase"] = Page(post=erase)
        pages["/cell/transfer"] = Page(post=taking("cell.transfer-leader", lambda cell, node: cell.transfer(node)))
        pages["/cell/remove"] = Page(post=taking("cell.remove-node", lambda cell, node: cell.remove(node)))
    return pages


def _obey(cell: CellControl | None, body: bytes, act: Callable[[CellControl, str], None]) -> Answer:
    try:
        order = msgspec.json.decode(body, type=_Order)
    except msgspec.DecodeError as error:
        return Answer(HTTPStatus.BAD_REQUEST, f"Not an order: {error}\n".encode())
    if cell is None:
        return _refusal("the log is not open yet", "Try again soon")
    try:
        act(cell, order.node)
    except PosthouseError as error:
        leader = error.leader if isinstance(error, NotLeading) else ""
        passes = error.passes if isinstance(error, ChangeRefused) else isinstance(error, Overloaded)
        return _refusal(error.text, error.remedy, leader, waits=passes)
    return Answer(HTTPStatus.ACCEPTED, b"{}\n", _JSON)


def _refusal(text: str, remedy: str, leader: str = "", waits: bool = True) -> Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if waits and not leader else HTTPStatus.CONFLICT
    return Answer(status, msgspec.json.encode(_Refusal(text, remedy, leader)) + b"\n", _JSON)


# --- asking --------------------------------------------------------------------------------------
async def ask_view(where: Address | Path) -> CellView:
    """The cell as the node that listens there sees it. Raises Unanswered, OperatorError."""
    answer = await _ask(where, "GET", "/cell")
    try:
        return msgspec.json.decode(answer, type=CellView)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _stranger(where, HTTPStatus.OK, answer) from None


async def ask_erasures(where: Address | Path) -> list[bytes]:
    """The erasure receipts of the node that listens there (cluster.erasure). Raises Unanswered, OperatorError."""
    answer = await _ask(where, "GET", "/cell/erasures")
    try:
        return [bytes.fromhex(one) for one in msgspec.json.decode(answer, type=list[str])]
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        raise _stranger(where, HTTPStatus.OK, answer) from None


async def give_order(where: Address | Path, order: str, node: str) -> None:
    """`order` ("transfer", "remove", "erase") about `node`, to the node whose control socket this is. Raises
    NotLeading, Unanswered, NotNow, OperatorError with the node's own words."""
    await _ask(where, "POST", f"/cell/{order}", msgspec.json.encode(_Order(node)))


class Unanswered(PosthouseError):
    """Nobody listens there, or not yet, or no longer: ask another node, or again."""


class NotNow(Unanswered):
    """The node does not do this now, in its own words, and may soon."""


async def _ask(where: Address | Path, method: str, target: str, body: bytes = b"") -> bytes:
    """Raises Unanswered, NotNow, NotLeading, OperatorError."""
    try:
        with trio.fail_after(ASK_S):
            status, answer = await _exchange(where, method, target, body)
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError):
        raise Unanswered(f"no node answers at {where}", "Does it run? Its log says why not") from None
    if status in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
        return answer
    try:
        said = msgspec.json.decode(answer, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _stranger(where, status, answer) from None
    if said.leader:
        raise NotLeading(said.leader)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise NotNow(said.error, said.remedy)
    raise OperatorError(said.error, said.remedy)


def _stranger(where: Address | Path, status: int, answer: bytes) -> OperatorError:
    said = answer[:200].decode("utf-8", "replace").strip()
    remedy = "Is a node's admin port or control socket there, and is it of this release?"
    return OperatorError(f"{where} answered {status}: {said}", remedy)


async def _exchange(where: Address | Path, method: str, target: str, body: bytes) -> tuple[int, bytes]:
    """One request and its answer. Raises OSError, h11.RemoteProtocolError, trio.BrokenResourceError."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
    headers = [("Host", "localhost"), ("Content-Length", str(len(body))), ("Connection", "close")]
    data = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
    data += (connection.send(h11.Data(data=body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    status, answer = 0, b""
    async with await _dial(where) as stream:
        await stream.send_all(data)
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(16 * KIB)))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
                if len(answer) > MAX_ANSWER:
                    raise h11.RemoteProtocolError("an answer without an end")
            elif isinstance(event, h11.EndOfMessage):
                return status, answer


async def _dial(where: Address | Path) -> trio.SocketStream:
    if isinstance(where, Path):
        return await trio.open_unix_socket(where)
    return await trio.open_tcp_stream(*where)
