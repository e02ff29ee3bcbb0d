"""What the readers of a broadcast channel cost a node: `python -m bench.channels`.

One channel, so many members, each of whom comes, shows a ticket, reads the newest page and goes, as whoever was away
does; then some of them stay, and posts come live. Everything is the node's own code but the sockets and the disk: lines
count what they are given, and blocks lie in memory. Memory is what is resident (VmRSS), and what Python allocated.
"""

from __future__ import annotations

import gc
import json
import os
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import click
import trio
from nacl.signing import SigningKey

from bench.machine import describe_machine, rss_mib
from relay.channels import Channels
from relay.core import records
from relay.core.block import GENESIS, Block, make_block
from relay.core.codec import digest, encode
from relay.core.mailroom import Mailroom
from relay.core.mailroom.effects import Posted
from relay.core.posts import Content, PostHeader, seal_post
from relay.core.trust import Device, HomePayload, join_home
from relay.core.trust.channels import ChannelTerms, channel_id, make_ticket, reader_of, sign_terms, verify_ticket
from relay.gateway.api import Line
from relay.limits import CHANNEL_BYTES_LEAST, DAY, MIB
from relay.observe.metrics import Metrics
from relay.ports import Journal

CELL: Final = "norden/1"
_NONCE: Final = bytes(32)


class _Log:
    """Blocks in memory, applied as they are made."""

    def __init__(self) -> None:
        self.room = Mailroom(CELL, bytes(16))
        self.blocks: list[Block] = []

    def apply(self, *items: records.Record) -> tuple[Block, list[Posted]]:
        prev = self.blocks[-1].hash if self.blocks else GENESIS
        data = [records.encode_record(item) for item in items]
        block = make_block(bytes(16), len(self.blocks) + 1, prev, 1_800_000_000_000, data)
        self.blocks.append(block)
        return block, [effect for effect in self.room.apply(block) if isinstance(effect, Posted)]

    async def read(self, index: int) -> Block:
        await trio.lowlevel.checkpoint()
        return self.blocks[index - 1]


class _Line:
    """A socket that takes everything."""

    __slots__ = ("device", "frames")

    def __init__(self, device: bytes) -> None:
        self.device = device
        self.frames = 0

    def push(self, frames: Sequence[bytes]) -> bool:
        self.frames += len(frames)
        return True

    def flush(self) -> None:
        """Nothing waits."""


class _Owner:
    """Who posts."""

    def __init__(self) -> None:
        self.key, self.secret, self.number = SigningKey(digest(b"owner")), digest(b"secret"), 0
        self.device = bytes(self.key.verify_key)
        self.channel = channel_id(self.device, bytes(32))

    def home(self) -> records.Home:
        device = Device(self.device, bytes(32), 1, b"", b"")
        far = 4_000_000_000_000
        payload = HomePayload(1, b"", 1, b"", "norden", CELL, self.device, (device,), 0, 0, far, b"")
        return records.Home(join_home(encode(payload), bytes(64), bytes(64)))

    def terms(self) -> records.Channel:
        reader = bytes(reader_of(self.secret).verify_key)
        terms = ChannelTerms(1, bytes(32), 1, b"", self.device, CELL, reader, DAY, 1_000, CHANNEL_BYTES_LEAST * 16)
        return records.Channel(self.device, sign_terms(terms, self.key))

    def post(self, size: int) -> records.Post:
        self.number += 1
        header = PostHeader(1, self.channel, 1, self.number, 0, 1)
        nonce = self.number.to_bytes(24, "big")
        return records.Post(self.device, seal_post(header, Content("", bytes(size)), self.secret, nonce, self.key))


class _Meter:
    """Bytes that are there now and were not, CPU that went."""

    def __init__(self) -> None:
        gc.collect()
        self._rss, self._cpu = rss_mib(os.getpid()), time.process_time()

    def cpu_us(self, count: int) -> float:
        return (time.process_time() - self._cpu) * 1e6 / count

    def rss_bytes(self, count: int) -> float:
        gc.collect()
        return (rss_mib(os.getpid()) - self._rss) * MIB / count


async def measure(members: int, connected: int, posts: int, size: int) -> dict[str, float]:
    """The figures, by what they are of."""
    log, owner, figures = _Log(), _Owner(), dict[str, float]()
    log.apply(owner.home(), owner.terms())
    channels = Channels(log.room.state, cast(Journal, log), Metrics())
    meter = _Meter()
    for _ in range(posts):
        log.apply(owner.post(size))
    figures["fold: CPU a post, with its signature (µs)"] = meter.cpu_us(posts)
    figures["log: bytes a post of that size, whoever reads"] = log.blocks[-1].size
    before = sum(map(len, log.room.checkpoint()))
    ticket = make_ticket(owner.secret, owner.channel, _NONCE, bytes(32))
    state = log.room.state.channels[owner.channel]
    meter = _Meter()
    for _ in range(members):  # each comes, reads, and goes
        line = cast(Line, _Line(bytes(32)))
        verify_ticket(state.terms.terms.reader_key, owner.channel, _NONCE, bytes(32), ticket)
        channels.subscribe(line, state.terms, live=False)
        await channels.page(owner.channel, posts - 20)
        channels.leave(line)
    figures["a member who was away: CPU of ticket and a page of 20 (µs)"] = meter.cpu_us(members)
    figures["a member who is away: resident bytes"] = meter.rss_bytes(members)
    figures["a member who is away: bytes of checkpoint"] = (sum(map(len, log.room.checkpoint())) - before) / members
    lines = [_Line(digest(number.to_bytes(4, "big"))) for number in range(connected)]
    tracemalloc.start()
    for one in lines:
        channels.subscribe(cast(Line, one), state.terms, live=True)
    figures["a member who is connected: bytes of its subscription"] = tracemalloc.get_traced_memory()[0] / connected
    tracemalloc.stop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channels.run)
        meter = _Meter()
        for _ in range(100):
            block, posted = log.apply(owner.post(size))
            for effect in posted:
                channels.posted(effect, block)
            await trio.sleep(0.01)
        await trio.sleep(0.5)
        assert all(one.frames for one in lines), "every connected member was given what was posted"
        figures["a live post to a connected member: CPU, socket not counted (µs)"] = meter.cpu_us(100 * connected)
        nursery.cancel_scope.cancel()
    return figures


@click.command()
@click.option("--members", default=100_000, show_default=True)
@click.option("--connected", default=1_000, show_default=True)
@click.option("--posts", default=1_000, show_default=True)
@click.option("--size", default=256, show_default=True, help="Bytes of each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to a file.")
def main(members: int, connected: int, posts: int, size: int, json_path: Path | None) -> None:
    """What the readers of a channel cost a node."""
    figures = trio.run(measure, members, connected, posts, size)
    for what, value in figures.items():
        click.echo(f"{what:72}{value:12,.1f}")
    if json_path is not None:
        asked: dict[str, Any] = {"members": members, "connected": connected, "posts": posts, "size": size}
        report = {**asked, "figures": figures, "machine": describe_machine(Path.cwd())}
        json_path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
