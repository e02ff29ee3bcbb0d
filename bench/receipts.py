"""What signed receipts cost: how many envelopes a cell takes a second when every sender asks for a receipt of every one
of them, and when nobody does, in turn, in one run on one cell.

    python -m bench.receipts --nodes 3 --rounds 8 --noise     nobody asks: how far two halves of the same are apart
    python -m bench.receipts --nodes 3 --rounds 8

Senders keep so many envelopes in flight that the machine is busy. A round is without and then with receipts, or the
other way round, so that what else the machine does, and how the log grows, meets both. An envelope counts when it was
accepted in its half; all receipts must have come by the end of it, and the first ones of all are verified.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import click
import trio

from bench.enrol import enrol
from bench.machine import cpu_s, describe_machine
from bench.pipes import Endpoint
from bench.session import Enrolled, Session, State
from bench.target import LocalTarget, local_target
from cluster.env import RealEnv
from relay.certificates import certify
from relay.core import wire
from relay.core.codec import encode
from relay.core.envelope import Header, To, envelope_id, join
from relay.core.receipts import verify_block
from relay.core.trust import Root
from relay.errors import PeerError, PosthouseError
from relay.limits import MAX_BATCH, MINUTE

SUITE: Final = 0  # nothing is sealed
SUBMIT: Final = 32  # envelopes in one SUBMIT
_SETTLE_S: Final = 30.0  # seconds for the last answers of a half
_PROVES: Final = 2  # questions of one sender in flight
VERIFIED: Final = 8  # blocks of each sender whose signatures are looked at: before anything is measured


@dataclass(slots=True)
class Half:
    """What one half of a round came to."""

    accepted: int = 0  # within the time
    answered: int = 0  # of those that were sent within the time
    proven: int = 0
    blocks: int = 0  # that they are of, counted for each question
    unproven: int = 0
    seconds: float = 0.0
    node_cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.accepted / self.seconds


class Line:
    """One device's connection, with every frame as cheap as the bench can make it."""

    def __init__(self, stream: trio.SocketStream, device: Enrolled, endpoint: Endpoint) -> None:
        self._stream = stream
        self.session = Session(device, f"{endpoint.host}:{endpoint.port}", RealEnv().random_bytes(16))

    async def receive(self) -> list[wire.ServerMessage]:
        await self.flush()
        data = await self._stream.receive_some(1 << 18)
        if not data:
            raise PeerError("the node closed the connection", "Look at its log")
        messages = [wire.decode_server(message) for message in self.session.feed(bytes(data))]
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
    in_flight: set[bytes] = field(default_factory=set)  # ids; a cell that changes its leader may answer twice
    asking: int = 0
    number: int = 0
    to_prove: deque[wire.Wanted] = field(default_factory=deque)
    salt: bytes = field(default_factory=lambda: RealEnv().random_bytes(16))
    verified: int = 0

    async def play(self, half: Half, seconds: float, prove: bool) -> None:
        """Send for so long; what comes after that does not count, but must come."""
        until = trio.current_time() + seconds
        with trio.fail_after(seconds + _SETTLE_S):
            while trio.current_time() < until or self.in_flight or self.to_prove or self.asking:
                counts = trio.current_time() < until
                if counts:
                    self._submit()
                if prove:
                    self._ask(flush=not counts and not self.in_flight)
                for message in await self.line.receive():
                    self._take(message, half, prove, counts)

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
        while self.asking < _PROVES and (len(self.to_prove) >= MAX_BATCH or (flush and self.to_prove)):
            batch = tuple(self.to_prove.popleft() for _ in range(min(MAX_BATCH, len(self.to_prove))))
            self.line.session.send(wire.Prove(self.number, self.cell, batch))
            self.asking += 1

    def _take(self, message: wire.ServerMessage, half: Half, prove: bool, counts: bool) -> None:
        if isinstance(message, wire.Receipt):
            for item in message.items:
                if item.id not in self.in_flight:
                    continue
                self.in_flight.discard(item.id)
                if item.code >= wire.Code.STALE:
                    raise PeerError(f"an envelope was refused: {wire.Code(item.code).name}")
                half.accepted += counts
                half.answered += 1
                if prove:
                    self.to_prove.append(wire.Wanted(item.id, item.code, item.position))
        elif isinstance(message, wire.Proof):
            self.asking -= 1
            half.unproven += len(message.missing)
            for block in message.blocks:
                half.proven += len(block.items)
                half.blocks += 1
                if self.verified < VERIFIED:
                    self.verified += 1
                    verify_block(block, self.root, certify)


class Bench:
    """A cell, with senders that stay connected."""

    def __init__(self, target: LocalTarget, senders: list[Sender]) -> None:
        self._target = target
        self._senders = senders

    async def half(self, seconds: float, prove: bool) -> Half:
        half = Half(seconds=seconds)
        before = self._cpu()
        async with trio.open_nursery() as nursery:
            for sender in self._senders:
                nursery.start_soon(sender.play, half, seconds, prove)
        half.node_cpu_s = self._cpu() - before
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
    """Rounds of (without, with); with `noise`, without in both halves: how far two of the same are apart."""
    now = RealEnv().clock.wall_ms()
    async with local_target(directory, False, nodes) as target:
        users = [enrol(target.home, 1, number, now) for number in range(senders + 20)]
        endpoints = target.endpoints
        lines = [await connect(endpoints[at % len(endpoints)], user) for at, user in enumerate(users)]
        recipients = [user.user for user in users[senders:]]
        root = target.layout.home.root(now)
        bench = Bench(target, [
            Sender(line, recipients, target.home.cell, root, window) for line in lines[:senders]
        ])  # fmt: skip
        for line in lines[senders:]:
            await line.close()
        await bench.half(min(3.0, seconds), prove=True)
        played = []
        orders = [number % 2 == 0 for number in range(rounds)]
        Random(1).shuffle(orders)  # what comes back in turns (a checkpoint, say) meets both
        for number in range(rounds):
            order = (False, True) if orders[number] else (True, False)
            halves = {prove: await bench.half(seconds, prove and not noise) for prove in order}
            played.append((halves[False], halves[True]))
            click.echo(told(*played[-1]))
        return played


def told(without: Half, with_: Half) -> str:
    return (
        f"without {without.rate:7.0f}/s   with {with_.rate:7.0f}/s   ratio {with_.rate / without.rate:.3f}"
        f"   nodes' CPU an envelope {_each(without):.0f} and {_each(with_):.0f} µs"
        f"   proven {with_.proven}, not {with_.unproven}, {with_.proven / max(1, with_.blocks):.0f} a block"
    )


def _each(half: Half) -> float:
    return half.node_cpu_s / max(1, half.answered) * 1e6


def _sum(halves: Iterable[Half]) -> Half:
    halves = list(halves)
    return Half(answered=sum(half.answered for half in halves), node_cpu_s=sum(half.node_cpu_s for half in halves))


def _best(played: Sequence[tuple[Half, Half]], side: int) -> float:
    """The mean rate of the best quarter of a side's halves: other programs only ever slow one down."""
    rates = sorted((pair[side].rate for pair in played), reverse=True)
    return statistics.mean(rates[: -(-len(rates) // 4)])


def _mean(ratios: Sequence[float]) -> tuple[float, float]:
    """The geometric mean of the rounds' ratios, and its standard error: two of it to both sides, and one is sure."""
    logs = [math.log(ratio) for ratio in ratios]
    error = statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    mean = math.exp(statistics.mean(logs))
    return round(mean, 4), round(mean * error, 4)


def summary(played: Iterable[tuple[Half, Half]]) -> dict[str, Any]:
    """Ratios of the rounds, and over all of them."""
    played = list(played)
    ratios = [with_.rate / without.rate for without, with_ in played]
    without, with_ = (sum(pair[side].rate for pair in played) / len(played) for side in (0, 1))
    return {
        "without_per_s": round(without), "with_per_s": round(with_), "ratio": round(with_ / without, 4),
        "ratio_median": round(statistics.median(ratios), 4),
        "ratio_best": round(_best(played, 1) / _best(played, 0), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "proven": sum(with_.proven for _, with_ in played), "unproven": sum(with_.unproven for _, with_ in played),
        "node_cpu_us": [round(_each(_sum(side)), 1) for side in zip(*played, strict=True)],
        "ratio_mean": _mean(ratios),
        "node_cpu_ratio_mean": _mean([_each(with_) / _each(without) for without, with_ in played]),
    }  # fmt: skip


@click.command()
@click.option("--nodes", type=click.Choice(["1", "3"]), default="3", show_default=True)
@click.option("--rounds", default=8, show_default=True)
@click.option("--seconds", default=5.0, show_default=True, help="Of each half of a round.")
@click.option("--senders", default=3, show_default=True)
@click.option("--window", default=512, show_default=True, help="Envelopes in flight, of each sender.")
@click.option("--noise", is_flag=True, help="Ask for no receipts in either half: how far two of the same are apart.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to a file.")
def main(
    nodes: str, rounds: int, seconds: float, senders: int, window: int, noise: bool, json_path: Path | None
) -> None:
    """Send with and without signed receipts, side by side."""
    with tempfile.TemporaryDirectory(prefix="posthouse-receipts-") as scratch:
        directory = Path(scratch)
        try:
            played = trio.run(measure, directory / "run", int(nodes), rounds, seconds, senders, window, noise)
        except* PosthouseError as group:
            raise click.ClickException("\n".join(str(error) for error in group.exceptions)) from None
        found = summary(played) | {"machine": describe_machine(directory)}
    click.echo(f"over all: {found['ratio']:.3f} of the throughput, median of the rounds {found['ratio_median']:.3f},"
               f" best quarter of the halves {found['ratio_best']:.3f};"
               f" nodes' CPU an envelope {found['node_cpu_us'][0]:.0f}"
               f" and {found['node_cpu_us'][1]:.0f} µs")
    for what, name in (("throughput", "ratio_mean"), ("nodes' CPU an envelope", "node_cpu_ratio_mean")):
        click.echo(f"{what}: {found[name][0]:.3f} ± {found[name][1]:.3f} (mean of the rounds, standard error)")
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
