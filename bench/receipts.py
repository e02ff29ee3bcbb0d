"""What signed receipts cost: how many envelopes a cell takes a second when every sender asks for a receipt of every one
of them, and when nobody does, in turn, in one run on one cell.

    python -m bench.receipts --nodes 3 --cells 10 --noise     nobody asks: how far two halves of the same are apart
    python -m bench.receipts --nodes 3 --cells 10

Senders keep so many envelopes in flight that the machine is busy, from the first half to the last: nothing is waited
for between halves. A round is without and then with receipts, or the other way round; its halves are short, so that
what else the machine does, and how the log grows, meets both. The beginning of a half, in which the receipts of the one
before still come, is not counted. At the end all receipts must have come; the first ones are verified. After some
rounds a new cell is begun: nobody collects the mail, and what waits makes everything else dearer.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import msgspec
import trio

from bench.enrol import enrol
from bench.machine import cpu_s, describe_machine
from bench.pipes import Endpoint
from bench.session import Enrolled, Session, State
from bench.target import LocalTarget, local_target
from cluster.env import RealEnv
from relay.certificates import certify
from relay.core.codec import encode
from relay.core.envelope import Header, To, envelope_id, join
from relay.core import proven, wire
from relay.core.proven import question, verify_block
from relay.core.trust import Root
from relay.errors import PeerError, PosthouseError
from relay.limits import MAX_WANTED, MINUTE, SLOT_BITS

SUITE: Final = 0  # nothing is sealed
SUBMIT: Final = 32  # envelopes in one SUBMIT
_SETTLE_S: Final = 30.0  # seconds for the last answers of all
_TURN_S: Final = 0.4  # seconds at the beginning of a half that are not counted: four times what a receipt takes
_PROVES: Final = 4  # questions of one sender in flight
VERIFIED: Final = 8  # blocks of each sender whose signatures are looked at: before anything is measured


class _Weighed(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=75):
    """wire.Proof, of which no more is read than how much there is: the load shares the machine with the nodes."""

    request: int
    blocks: tuple[tuple[msgspec.Raw, msgspec.Raw, tuple[int, ...], msgspec.Raw, msgspec.Raw, msgspec.Raw], ...]
    missing: tuple[msgspec.Raw, ...]


_weigh = msgspec.msgpack.Decoder(_Weighed).decode
_PROOF: Final = _Weighed.__struct_config__.tag


@dataclass(slots=True)
class Half:
    """What came in the counted part of one half of a round."""

    accepted: int = 0
    proven: int = 0
    blocks: int = 0  # that they are of, counted for each question
    seconds: float = 0.0
    node_cpu_s: float = 0.0
    load_cpu_s: float = 0.0  # of the senders, who share the machine

    @property
    def rate(self) -> float:
        return self.accepted / self.seconds

    @property
    def cpu_us(self) -> float:
        """The nodes' CPU time an envelope, µs."""
        return self.node_cpu_s / max(1, self.accepted) * 1e6


@dataclass(slots=True)
class Tally:
    """What all senders do now, and what they have done. Envelopes that are `owed` have no receipt yet."""

    sending: bool = True
    prove: bool = False
    half: Half = field(default_factory=Half)
    owed: int = 0
    unproven: int = 0


class Line:
    """One device's connection, with every frame as cheap as the bench can make it."""

    def __init__(self, stream: trio.SocketStream, device: Enrolled, endpoint: Endpoint) -> None:
        self._stream = stream
        self.session = Session(device, f"{endpoint.host}:{endpoint.port}", RealEnv().random_bytes(16))

    async def receive(self) -> list[bytes]:
        """Encoded messages of the server."""
        await self.flush()
        data = await self._stream.receive_some(1 << 18)
        if not data:
            raise PeerError("the node closed the connection", "Look at its log")
        messages = list(self.session.feed(bytes(data)))
        if self.session.error is not None:
            raise PeerError(f"the node said: {self.session.error.text}")
        return messages

    async def flush(self) -> None:
        if self.session.output:
            data, self.session.output = bytes(self.session.output), bytearray()
            await self._stream.send_all(data)

    async def close(self) -> None:
        await self._stream.aclose()

    async def open(self) -> None:
        """Until WELCOME."""
        while self.session.state is not State.LIVE:
            await self.receive()


@dataclass
class Sender:
    """One device that submits as fast as it gets answers."""

    line: Line
    recipients: list[bytes]
    cell: str
    root: Root
    window: int
    tally: Tally
    in_flight: set[bytes] = field(default_factory=set)  # ids; a cell that changes its leader may answer twice
    asking: int = 0
    number: int = 0
    to_prove: deque[tuple[int, bytes]] = field(default_factory=deque)
    salt: bytes = field(default_factory=lambda: RealEnv().random_bytes(16))
    verified: int = 0

    async def play(self) -> None:
        """Until nothing is to be sent any more, and everything has come."""
        while self.tally.sending or self.in_flight or self.to_prove or self.asking:
            if self.tally.sending:
                self._submit()
            self._ask(flush=not self.tally.prove or not self.tally.sending)
            for message in await self.line.receive():
                self._take(message)

    def _submit(self) -> None:
        now = RealEnv().clock.wall_ms()
        while len(self.in_flight) + SUBMIT <= self.window:
            items = []
            for _ in range(SUBMIT):
                self.number += 1
                to = self.recipients[self.number % len(self.recipients)]
                header = Header(1, To.MAILBOX, to, 1, now, now + 10 * MINUTE, SUITE)
                body = self.number.to_bytes(8, "big") + self.salt + bytes(232)
                envelope = join(encode(header), body)
                items.append(wire.SubmitItem("", envelope))
                self.in_flight.add(envelope_id(envelope))
            self.line.session.send(wire.Submit(tuple(items)))

    def _ask(self, *, flush: bool) -> None:
        while self.asking < _PROVES and (len(self.to_prove) >= MAX_WANTED or (flush and self.to_prove)):
            batch = question(self.to_prove.popleft() for _ in range(min(MAX_WANTED, len(self.to_prove))))
            self.line.session.send(wire.Prove(self.number, self.cell, batch))
            self.asking += 1

    def _take(self, data: bytes) -> None:
        if data[1] == _PROOF and self.verified >= VERIFIED:
            proof = _weigh(data)
            self._proven([len(ordinals) for _, _, ordinals, *_ in proof.blocks], len(proof.missing))
            return
        message = wire.decode_server(data)
        if isinstance(message, wire.Receipt):
            self._accepted(message)
        elif isinstance(message, wire.Proof):
            for block in message.blocks:
                self.verified += 1
                verify_block(block, self.root, certify)
            self._proven([len(block.ordinals) for block in message.blocks], len(message.missing))

    def _accepted(self, message: wire.Receipt) -> None:
        tally = self.tally
        for item in message.items:
            if item.id not in self.in_flight:
                continue
            self.in_flight.discard(item.id)
            if item.code >= wire.Code.STALE:
                raise PeerError(f"an envelope was refused: {wire.Code(item.code).name}")
            tally.half.accepted += 1
            if tally.prove:
                tally.owed += 1
                self.to_prove.append((item.position >> SLOT_BITS, proven.told(item.id, item.code)))

    def _proven(self, blocks: Sequence[int], missing: int) -> None:
        """So many envelopes of each block are proven."""
        tally, proven = self.tally, sum(blocks)
        self.asking -= 1
        tally.unproven += missing
        tally.owed -= proven
        tally.half.proven += proven
        tally.half.blocks += len(blocks)


class Bench:
    """A cell, with senders that never stop."""

    def __init__(self, target: LocalTarget, tally: Tally) -> None:
        self._target = target
        self._tally = tally

    async def half(self, seconds: float, prove: bool) -> Half:
        """What comes in so many seconds, with or without receipts."""
        self._tally.prove = prove
        await trio.sleep(_TURN_S)
        half = self._tally.half = Half()
        nodes, load, begun = self._cpu(), time.process_time(), trio.current_time()
        await trio.sleep(seconds)
        self._tally.half = Half()
        half.seconds = trio.current_time() - begun
        half.node_cpu_s, half.load_cpu_s = self._cpu() - nodes, time.process_time() - load
        return half

    def _cpu(self) -> float:
        return sum(cpu_s(pid) for pid in self._target.pids.values())


async def connect(endpoint: Endpoint, device: Enrolled) -> Line:
    line = Line(await trio.open_tcp_stream(endpoint.host, endpoint.port), device, endpoint)
    await line.open()
    return line


async def measure(
    directory: Path, nodes: int, rounds: int, seconds: float, senders: int, window: int, noise: bool = False
) -> list[tuple[Half, Half]]:
    """Rounds of (without, with); with `noise`, without in both halves: how far two of the same are apart. Raises
    PeerError where a receipt does not come, and as local_target."""
    now = RealEnv().clock.wall_ms()
    async with local_target(directory, False, nodes) as target:
        users = [enrol(target.home, 1, number, now) for number in range(senders + 20)]
        endpoints = target.endpoints
        lines = [await connect(endpoints[at % len(endpoints)], user) for at, user in enumerate(users)]
        for line in lines[senders:]:  # enrolled by that, and away from now on
            await line.close()
        recipients = [user.user for user in users[senders:]]
        root = target.layout.home.root(now)
        tally = Tally()
        played = []
        async with trio.open_nursery() as nursery:
            for line in lines[:senders]:
                sender = Sender(line, recipients, target.home.cell, root, window, tally)
                nursery.start_soon(sender.play)
            bench = Bench(target, tally)
            await bench.half(min(3.0, seconds), prove=True)
            for order in orders(rounds):
                halves = {prove: await bench.half(seconds, prove and not noise) for prove in order}
                played.append((halves[False], halves[True]))
                click.echo(told(*played[-1]))
            tally.sending = False
            nursery.cancel_scope.deadline = trio.current_time() + _SETTLE_S
        if tally.owed or tally.unproven or nursery.cancel_scope.cancelled_caught:
            raise PeerError(
                f"{tally.owed} receipts did not come, {tally.unproven} of them were refused",
                "Look at the logs of the nodes",
            )
        return played


def orders(rounds: int) -> list[tuple[bool, bool]]:
    """Which half of each round comes first, either as often: what comes in turns (a checkpoint, say) meets both."""
    first = [number % 2 == 0 for number in range(rounds)]
    Random(1).shuffle(first)
    return [(not prove, prove) for prove in first]


def told(without: Half, with_: Half) -> str:
    return (
        f"without {without.rate:7.0f}/s   with {with_.rate:7.0f}/s   ratio {_ratio(with_.rate, without.rate):.3f}"
        f"   nodes' CPU an envelope {without.cpu_us:.0f} and {with_.cpu_us:.0f} µs"
        f"   proven {with_.proven}, {with_.proven / max(1, with_.blocks):.0f} a block"
    )


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf


def _mean(ratios: Sequence[float]) -> tuple[float, float]:
    """The geometric mean of the rounds' ratios, and its standard error: two of it to both sides, and one is sure."""
    logs = [math.log(ratio) for ratio in ratios]
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    mean = math.exp(statistics.mean(logs))
    return round(mean, 4), round(mean * error, 4)


def summary(played: Iterable[tuple[Half, Half]]) -> dict[str, Any]:
    """Rates, CPU an envelope, and ratios of with to without: over all, and the mean of those rounds in both halves of
    which something was accepted (`empty`: how many others). Raises PeerError where there is none."""
    played = list(played)
    whole = [pair for pair in played if all(half.accepted for half in pair)]
    if not whole:
        raise PeerError("no round passed in which something was accepted in both halves", "Give longer ones: --seconds")
    sides = [
        {
            "per_s": round(sum(half.accepted for half in side) / sum(half.seconds for half in side)),
            "node_cpu_us": round(sum(half.node_cpu_s for half in side) / sum(half.accepted for half in side) * 1e6, 1),
            "load_cpu_us": round(sum(half.load_cpu_s for half in side) / sum(half.accepted for half in side) * 1e6, 1),
        }
        for side in zip(*played, strict=True)
    ]
    return {
        "without": sides[0], "with": sides[1],
        "ratio": round(sides[1]["per_s"] / sides[0]["per_s"], 4),
        "ratio_mean": _mean([with_.rate / without.rate for without, with_ in whole]),
        "node_cpu_ratio": round(sides[1]["node_cpu_us"] / sides[0]["node_cpu_us"], 4),
        "node_cpu_ratio_mean": _mean([with_.cpu_us / without.cpu_us for without, with_ in whole]),
        "empty": len(played) - len(whole),
        "proven": sum(with_.proven for _, with_ in played),
        "rounds": [[round(half.rate) for half in pair] for pair in played],
    }  # fmt: skip


@click.command()
@click.option("--nodes", type=click.Choice(["1", "3"]), default="3", show_default=True)
@click.option("--cells", default=10, show_default=True, help="One after the other.")
@click.option("--rounds", default=12, show_default=True, help="With each cell.")
@click.option("--seconds", default=0.8, show_default=True, help="That are counted of each half of a round.")
@click.option("--senders", default=3, show_default=True)
@click.option("--window", default=512, show_default=True, help="Envelopes in flight, of each sender.")
@click.option("--noise", is_flag=True, help="Ask for no receipts in either half: how far two of the same are apart.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to a file.")
def main(
    nodes: str, cells: int, rounds: int, seconds: float, senders: int, window: int, noise: bool, json_path: Path | None
) -> None:
    """Send with and without signed receipts, side by side."""
    with tempfile.TemporaryDirectory(prefix="posthouse-receipts-") as scratch:
        directory = Path(scratch)
        try:
            played = []
            for cell in range(cells):
                run = directory / str(cell)
                played += trio.run(measure, run, int(nodes), rounds, seconds, senders, window, noise)
                shutil.rmtree(run)
            found = summary(played) | {"machine": describe_machine(directory)}
        except* PosthouseError as group:
            raise click.ClickException("\n".join(str(error) for error in group.exceptions)) from None
    for name in ("without", "with"):
        side = found[name]
        cpu = f"CPU an envelope: nodes {side['node_cpu_us']} µs, load {side['load_cpu_us']} µs"
        click.echo(f"{name:8}{side['per_s']}/s, {cpu}")
    for what, name in (("throughput", "ratio"), ("nodes' CPU an envelope", "node_cpu_ratio")):
        mean, error = found[f"{name}_mean"]
        click.echo(f"{what}: {found[name]:.3f} over all, {mean:.3f} ± {error:.3f} (mean of the rounds, standard error)")
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
