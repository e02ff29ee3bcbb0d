"""Simulated devices: what an SDK keeps, and how it comes back. The connection is tests.simulation.session's."""

from __future__ import annotations

from collections import OrderedDict, deque
from random import Random

import trio

from relay.core import wire
from relay.core.codec import digest, encode
from relay.core.envelope import Header, To, envelope_id, join
from tests.simulation.channels import SimChannel
from tests.simulation.clock import SimClock
from tests.simulation.frames import Gone
from tests.simulation.keys import public
from tests.simulation.ledger import Ledger, Letter
from tests.simulation.network import Host, Network
from tests.simulation.people import Person, host_of
from tests.simulation.session import Connection, Log, Out


class SimDevice:
    """One device. What it keeps survives its connections; `online` is a switch for the faults."""

    def __init__(
        self, name: str, person: Person, nodes: int, net: Network, ledger: Ledger, random: Random
    ) -> None:  # fmt: skip
        self.name, self.person, self.net, self.ledger, self.random = name, person, net, ledger, random
        self.key = name  # the name of its key
        self.revoked_in = 0  # the version that does not list it any more
        self.host: Host = net.add(name, person.region)
        self.clock = SimClock()
        self.names = [f"n{number + 1}" for number in range(nodes)]
        self.at = person.region  # where it believes to be at home
        self.online = True
        self.slow_until = 0.0
        self.log_id = b""
        self.cursor = 0
        self.logs: dict[bytes, Log] = {}
        self.out: OrderedDict[bytes, Out] = OrderedDict()  # by envelope id or roster digest
        self.counters: dict[bytes, int] = {}
        self.channels: list[SimChannel] = []  # that it owns
        self.intrudes: deque[wire.Terms | wire.Posts] = deque()  # what it sends to channels of others
        self.session: Connection | None = None
        self.connections = 0
        self.confirmed = False  # its home knows the device
        self.ready = False  # served, and told EMPTY, on the present connection
        self.wake = trio.lowlevel.ParkingLot()

    @property
    def id(self) -> bytes:
        return public(self.key)

    @property
    def nodes(self) -> list[str]:
        """Where it may connect."""
        return [host_of(self.at, name) for name in self.names]

    def settle(self, region: str) -> None:
        """It has learned that it is at home there now: cursors begin anew."""
        if region != self.at:
            self.at, self.confirmed, self.logs = region, False, {}
            self.log_id, self.cursor = b"", 0
            self.ledger.trace("follows", self.name, region)
            if self.session is not None:
                self.session.scope.cancel()

    # --- for the authors and the faults ------------------------------------------------------------
    def say(self, letter: Letter) -> None:
        """The user has written something."""
        self.ledger.write(letter)
        self.out[letter.canary] = Out(letter)
        self.wake.unpark_all()

    def publish(self, roster: wire.Roster) -> bytes:
        """Bring a roster version to its home; its digest, under which `out` has it until it is answered."""
        own = digest(roster.head)
        self.out[own] = Out(None, roster=roster)
        self.wake.unpark_all()
        return own

    def switch(self, online: bool) -> None:
        """The device goes away, or comes back."""
        self.online = online
        if not online and self.session is not None:
            self.session.scope.cancel()
        self.wake.unpark_all()

    def leave(self) -> None:
        """It was revoked, and was told so: nothing more is to come from it."""
        self.online = self.ready = False
        self.out.clear()

    def forget_cursor(self) -> None:
        """Restored without its cursor: the fold's own counts then (rule 13)."""
        self.log_id, self.cursor = b"", 0

    # --- running -----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled."""
        failures = 0
        while True:
            while not self.online:
                await self.wake.park()
            self.connections += 1
            began = trio.current_time()
            session = self.session = Connection(self, self.connections)
            try:
                await session.run()
            except (Gone, OSError) as error:
                self.ledger.trace("device left", self.name, type(error).__name__, str(error)[:60])
            finally:
                self.session, self.ready = None, False
            failures = 0 if trio.current_time() - began > 5.0 else failures + 1
            await trio.sleep(min(5.0, 0.1 * 2**failures) * self.random.uniform(0.5, 1.0))

    def seal(self, letter: Letter, time_ms: int) -> bytes:
        """The letter as an envelope, stamped with the server's time."""
        expires = time_ms + letter.lifetime_ms
        kind = To.ROSTER if letter.group else To.MAILBOX
        header = encode(Header(1, kind, letter.target, letter.version, time_ms, expires, 1))
        data = join(header, letter.body)
        self.ledger.sealed(letter, envelope_id(data), expires)
        return data
