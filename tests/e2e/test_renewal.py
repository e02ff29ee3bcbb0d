"""A cell of three outlives the certificates that it was started with: they are renewed one by one while it serves."""

from __future__ import annotations

import re
import time
from pathlib import Path
from urllib.request import urlopen

import trio
from cryptography import x509

from cluster.cli.region import authority_key_of, own_region
from cluster.config_keys import Address
from cluster.core.linkwire import Peer
from cluster.local.border import Crossing
from cluster.local.home import Home
from cluster.local.people import create_user
from cluster.pki import NODE_LIFETIME, renew_node
from relay.client import Card, Client, open_client
from tests.e2e.test_cell import Operator, Servers, whole
from tests.keeping import keeping
from tests.patience import PATIENCE_S
from tests.ports import free_ports

NAMES = ("n1", "n2", "n3")
SHORT_S = 25.0  # until the first certificates end; to start the nodes and to renew all three takes about 8
SHORT = 8  # times what `Town.make` took, where that is more: it takes about a third of it, on any machine


class Town:
    """A region of three on this machine, whose nodes dial each other through crossings that can be cut."""

    def __init__(self, folder: Path) -> None:
        self.region, self.keeper, self.operator = folder / "r", folder / "keeper", Operator(None)
        at = [Address("127.0.0.1", port) for port in free_ports(12)]
        self.clients, self.links, self.admins, gates = at[0:3], at[3:6], at[6:9], at[9:12]
        self.short_s = SHORT_S
        self.gates = dict(zip(NAMES, gates, strict=True))
        self.crossings = [Crossing(gate, link) for gate, link in zip(gates, self.links, strict=True)]

    async def make(self) -> None:
        began = time.monotonic()
        ports = zip(("--clients", "--links", "--admin"), (self.clients, self.links, self.admins), strict=True)
        words = [word for option, at in ports for word in (option, str(at[0].port))]
        words += ["--host", "127.0.0.1", "--listen", "127.0.0.1", "--nodes", "3", "--dir", str(self.region)]
        await self.operator.types("init", "region", "amber", *words)
        for words in keeping(self.keeper, self.region / "amber.region"):
            await self.operator.types(*words)
        await self.operator.types("init", "join", str(self.keeper / "root.bin"), "--dir", str(self.region))
        for name in NAMES:
            routes = (f'"amber/1/{other}" = "{gate}"\n' for other, gate in self.gates.items() if other != name)
            with (self.region / f"server-{name}" / "node.toml").open("a") as config:
                config.write("\n[routes]\n" + "".join(routes))
        self.short_s = max(SHORT_S, SHORT * (time.monotonic() - began))

    def pem(self, name: str) -> Path:
        return self.region / f"server-{name}" / "tls" / "node.pem"

    def end(self, name: str) -> float:
        """Of the certificate in the node's file; Unix seconds."""
        return x509.load_pem_x509_certificate(self.pem(name).read_bytes()).not_valid_after_utc.timestamp()

    def shorten(self, name: str) -> None:
        """A certificate that ends in `short_s`."""
        _, entry = own_region(self.region)
        made_ms = int(time.time() + self.short_s - NODE_LIFETIME.total_seconds()) * 1000
        peer, key = Peer("amber", "amber/1", name), authority_key_of(self.region, entry)
        old = self.pem(name).read_bytes()
        self.pem(name).write_bytes(renew_node(old, entry.authority, key, peer, now_ms=made_ms))

    async def metrics(self, name: str) -> str:
        url = f"http://{self.admins[NAMES.index(name)]}/metrics"
        return await trio.to_thread.run_sync(lambda: urlopen(url, timeout=PATIENCE_S).read().decode())

    async def taken(self, name: str) -> None:
        """The node runs with the certificate that lies in its file, and says until when."""
        wanted = self.end(name)
        with trio.fail_after(PATIENCE_S):
            while True:
                shown = await self.metrics(name)
                (line,) = re.findall(r"^posthouse_certificate_expires_timestamp_seconds (\S+)", shown, re.MULTILINE)
                if float(line) == wanted:
                    return
                await trio.sleep(0.2)

    async def links_are(self, up: bool) -> None:
        """All six links inside the cell."""
        with trio.fail_after(PATIENCE_S):
            for name in NAMES:
                while True:
                    found = re.findall(r"^posthouse_peers_up\{.*\} (\S+)", await self.metrics(name), re.MULTILINE)
                    if [float(value) for value in found] == [float(up)] * 2:
                        break
                    await trio.sleep(0.1)


class Talk:
    """alice writes to bob all the time."""

    def __init__(self, alice: Client, bob: Client, card: Card) -> None:
        self.alice, self.bob, self.card = alice, bob, card
        self.stored = 0
        self.got: list[bytes] = []

    async def write(self) -> None:
        while True:
            await self.alice.send(self.card, str(self.stored).encode(), wait="stored")
            self.stored += 1
            await trio.sleep(0.05)

    async def read(self) -> None:
        async for message in self.bob.messages():
            self.got.append(message.content)

    async def goes_on(self) -> None:
        wanted = self.stored + 5
        with trio.fail_after(PATIENCE_S):
            while self.stored < wanted or len(self.got) < wanted:  # noqa: ASYNC110 - as long as it may take
                await trio.sleep(0.05)


async def test_every_certificate_is_renewed_while_the_cell_serves(tmp_path: Path) -> None:
    town = Town(tmp_path)
    await town.make()
    home, now_ms = Home(town.region), int(time.time() * 1000)
    cards = {name: create_user(home, name, "amber", now_ms) for name in ("alice", "bob", "carol")}
    with trio.fail_after(4 * PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for crossing in town.crossings:
                await nursery.start(crossing.run)
            for name in NAMES:
                town.shorten(name)
            ended = max(town.end(name) for name in NAMES)
            servers = Servers(town.region, nursery)
            await servers.start(*NAMES)
            await whole(*town.admins)
            async with (
                open_client(home.store("bob")) as bob,
                open_client(home.store("alice")) as alice,
                trio.open_nursery() as talking,
            ):
                while not bob.connected:  # noqa: ASYNC110 - the client has no bell for it
                    await trio.sleep(0.05)
                talk = Talk(alice, bob, cards["bob"])
                talking.start_soon(talk.read)
                talking.start_soon(talk.write)
                await talk.goes_on()

                for name in NAMES:  # one by one, as an operator would
                    said = await town.operator.types("init", "certificate", name, "--dir", str(town.region))
                    assert f"{name}  valid until" in said
                    await town.taken(name)
                    await talk.goes_on()

                await trio.sleep(max(0.0, ended + 2 - time.time()))
                for crossing in town.crossings:
                    crossing.shut("test")
                await town.links_are(up=False)  # and with them every connection that began with an old certificate
                for crossing in town.crossings:
                    crossing.open("test")
                await town.links_are(up=True)
                await talk.goes_on()
                async with open_client(home.store("carol")) as carol:  # a new connection of a client
                    await carol.send(cards["bob"], b"carol", wait="stored")
                    stored = talk.stored
                    await talk.goes_on()
                talking.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
    assert b"carol" in talk.got
    written = [number for number in talk.got if number != b"carol"]
    assert written == [str(number).encode() for number in range(len(written))] and len(written) >= stored
    for name in NAMES:
        log = (town.region / f"{name}.log").read_text()
        assert log.count('"certificate_expires"') == 1, "it was about to end when the node started"
        assert log.count('"certificate_renewed"') == 1 and "certificate_not_taken" not in log
