"""Newer root documents, asked for on one live connection: verified as nodes do it, kept, then gone by (ADR 43)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import structlog
import trio

from relay.client.desk import Desk
from relay.core import wire
from relay.core.rootparts import Gathering
from relay.core.trust import Root
from relay.core.wire import Fault
from relay.errors import ProtocolError, TrustError

log = structlog.get_logger("relay.client")

ANSWER_S: Final = 30.0  # seconds for one part
EVERY_S: Final = 3_600.0  # seconds, on average, until a node is asked again: who was there when it had nothing newer
DOUBT_S: Final = 5.0  # seconds between two questions because something did not verify: strangers can cause these
DEAF_S: Final = 86_400.0  # seconds until a node that did not know the question is asked again


class Roots:
    """The questions of one connection to the node at `url`. `say` sends a message."""

    def __init__(self, desk: Desk, say: Callable[[wire.ClientMessage], Awaitable[None]], url: str) -> None:
        self._desk = desk
        self._say = say
        self._url = url
        self._turn = trio.Lock()
        self._waits = False  # for an answer
        self._answer: wire.RootPart | None = None
        self._answered = trio.Event()
        self._knows = False  # the node has answered
        self._lies = False  # what it gave does not hold: only `run` asks it again
        self._asked = -DOUBT_S  # when (trio's clock)

    def answered(self, part: wire.RootPart) -> None:
        """A ROOTPART came."""
        if self._waits:
            self._answer = part
            self._answered.set()

    def ended(self, error: wire.Error) -> None:
        """ERROR came. An older node ends the connection over a question that it does not know: others are asked."""
        if error.code == Fault.PROTOCOL and self._waits and not self._knows:
            self._desk.deaf[self._url] = trio.current_time() + DEAF_S
            log.info("node_knows_no_roots", url=self._url)

    async def run(self) -> None:
        """Ask now, and then every now and again, until cancelled."""
        desk = self._desk
        await trio.sleep_until(desk.deaf.get(self._url, 0.0))
        while True:
            async with self._turn:
                await self._ask()
            await trio.sleep(EVERY_S * (0.5 + desk.seams.random_float()))
            payload = desk.own.root.payload
            if desk.now >= payload.fresh_until:
                remedy = "The keepers publish one; where other clients have it, this node keeps it back"
                log.warning("root_stale", version=payload.version, remedy=remedy)

    async def newer(self, than: Root) -> bool:
        """Something did not verify by `than`: is there a newer root document? Asks, where that was not just done."""
        async with self._turn:
            due = trio.current_time() - self._asked >= DOUBT_S and self._desk.own.root.rank == than.rank
            if due and self._knows and not self._lies:
                await self._ask()
        return self._desk.own.root.rank > than.rank

    async def _ask(self) -> None:
        """Take what the node has, if it is newer and holds."""
        desk = self._desk
        await desk.look_root()
        gathering, signed = Gathering(desk.own.root.rank), None
        try:
            while signed is None:
                answer = await self._part(gathering.question)
                if answer is None:
                    return
                signed = gathering.take(answer)
            self._lies = False
            if signed:
                root = await desk.take_root(signed)
                log.info("root_taken", version=root.payload.version)
        except (TrustError, ProtocolError) as error:
            self._lies = True
            log.error("root_refused", url=self._url, version=desk.own.root.payload.version, reason=error.text)
        finally:
            self._asked = trio.current_time()

    async def _part(self, question: wire.AskRoot) -> wire.RootPart | None:
        """None: no answer."""
        self._answer, self._answered, self._waits = None, trio.Event(), True
        await self._say(question)
        with trio.move_on_after(ANSWER_S):
            await self._answered.wait()
            self._knows = True
        self._waits = False
        return self._answer
