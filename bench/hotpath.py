"""What an envelope to a mailbox of the own cell costs a node: `python -m bench.hotpath`, without disk, links, clients.

Envelopes go, block by block, through what every node of a cell does with them: residency check, hash and seal of the
block, the fold with its receipts, and, when the fold asks for it, the rows of a checkpoint, sealed. Nobody collects
them, so that all that grows with a queue grows. CPU is the thread's own, user and system, told for each stretch.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
from nacl.signing import SigningKey

from bench.machine import describe_machine, rss_mib
from bench.registrar import make_root
from bench.residents import CELL, REGION, signed_home
from relay.core import records
from relay.core.block import GENESIS, Block, block_hash, make_block
from relay.core.codec import digest, encode, pack
from relay.core.envelope import Header, To, join
from relay.core.mailroom import Mailroom
from relay.core.trust import read_home
from relay.delivery import Delivery
from relay.gateway.api import Line
from relay.journal.api import Place
from relay.journal.guard import ResidencyGuard
from relay.journal.rows import Sealer
from relay.journal.scratch import open_shelf
from relay.journal.seal import StorageRing
from relay.limits import MINUTE
from relay.observe.metrics import Metrics
from relay.ports import Clock, Journal

_LOG_ID: Final = bytes(16)
_USERS: Final = 20  # recipients
_RATE: Final = 8_000  # envelopes a second of the log's time
T = TypeVar("T")


class _Tip:
    """As much of a journal as applying a block asks for."""

    first = 1
    tip = 1


class _Reader:
    """The line of a sender that reads its receipts at once."""

    live = True

    def __init__(self, device: bytes) -> None:
        self.device, self.user, self.taken = device, device, 0

    def push(self, frames: Any) -> bool:
        self.taken += len(frames)
        return True

    def give(self, data: bytes) -> bool:
        return self.push((data,))

    def flush(self) -> None: ...


@dataclass
class Spent:
    """CPU, s, by what it went for."""

    by: dict[str, float] = field(default_factory=dict)

    def on(self, what: str, do: Callable[[], T]) -> T:
        begun = time.thread_time()
        value = do()
        self.by[what] = self.by.get(what, 0.0) + time.thread_time() - begun
        return value

    def told(self, count: int) -> dict[str, float]:
        """µs an envelope, and all of them together."""
        each = {what: round(spent / count * 1e6, 2) for what, spent in self.by.items()}
        return each | {"all": round(sum(each.values()), 2)}


class Node:
    """The parts of a node that an envelope passes, in one thread."""

    def __init__(self, guard: ResidencyGuard, now_ms: int, shelf: Any) -> None:
        self._guard = guard
        self._now_ms = now_ms
        self._time_ms = float(now_ms)
        self._sealer = Sealer(StorageRing([os.urandom(32)]), _LOG_ID, os.urandom)
        self.room = Mailroom(CELL, _LOG_ID, shelf)
        self._delivery = Delivery(cast(Journal, _Tip()), self.room, Metrics(), cast(Clock, None))
        self._last = (0, GENESIS)
        self._homes = [read_home(signed_home(number, now_ms)) for number in range(_USERS + 1)]
        guard.learn([
            (digest(home.user, b"posthouse.user"), pack([1, home.signed, [home.devices[0].id]])) for home in self._homes
        ])  # fmt: skip
        self._delivery.apply(self._block([records.encode_record(records.Home(home.signed)) for home in self._homes]))
        self._sender = self._homes[0].devices[0].id
        self._delivery.attach(cast(Line, _Reader(self._sender)))
        self._number = 0

    def _block(self, items: list[bytes]) -> Block:
        index, hash_ = self._last
        block = make_block(_LOG_ID, index + 1, hash_, int(self._time_ms), items)
        self._last = block.index, block.hash
        return block

    def _items(self, count: int) -> list[bytes]:
        items, now = [], int(self._time_ms)
        for _ in range(count):
            self._number += 1
            to = self._homes[1 + self._number % _USERS].user
            header = Header(1, To.MAILBOX, to, 1, now, now + 10 * MINUTE, 0)
            envelope = join(encode(header), self._number.to_bytes(8, "big") + bytes(248))
            items.append(records.encode_record(records.Submit(self._sender, CELL, envelope)))
        self._time_ms += count / _RATE * 1_000
        return items

    def stretch(self, envelopes: int, batch: int) -> dict[str, float]:
        """So many envelopes more, `batch` a block."""
        spent, count = Spent(), 0
        while count < envelopes:
            block = self._block(self._items(batch))
            count += batch
            items, due = block.records, self.room.state.checkpoint_due
            spent.on("residency", partial(self._guard.check, items, made=True))
            spent.on("hash", partial(block_hash, block.log_id, block.index, block.prev, block.time, items))
            spent.on("seal", partial(self._sealer.block_row, block, 1))
            spent.on("fold", partial(self._delivery.apply, block))
            if self.room.state.checkpoint_due != due:
                spent.on("checkpoint", self._checkpoint)
        return spent.told(count)

    def _checkpoint(self) -> None:
        for ordinal, row in enumerate(self.room.checkpoint()):
            digest(row)
            self._sealer.checkpoint_row(Place(1, ordinal), row)


def measure(envelopes: int, stretch: int, batch: int, shelf: Any) -> list[dict[str, float]]:
    """CPU of each stretch, µs an envelope, and the process's memory after it."""
    now_ms = time.time_ns() // 1_000_000
    node = Node(ResidencyGuard(REGION, CELL, make_root(SigningKey(bytes(32)), now_ms), shelf), now_ms, shelf)
    gc.collect()
    before, told = rss_mib(os.getpid()), []
    for done in range(0, envelopes, stretch):
        figures = node.stretch(stretch, batch)
        figures["bytes each"] = round((rss_mib(os.getpid()) - before) * (1 << 20) / (done + stretch))
        told.append(figures)
        click.echo(f"{done + stretch:9,}   " + "   ".join(f"{what} {value:6.2f}" for what, value in figures.items()))
    click.echo(f"state digest {node.room.digest().hex()[:16]}", err=True)
    return told


@click.command()
@click.option("--envelopes", default=600_000, show_default=True)
@click.option("--stretch", default=100_000, show_default=True, help="Envelopes that one line of figures is of.")
@click.option("--batch", default=256, show_default=True, help="Envelopes of one block.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to a file.")
def main(envelopes: int, stretch: int, batch: int, json_path: Path | None) -> None:
    """CPU and memory of a node for each envelope to a mailbox, as a queue grows."""
    with tempfile.TemporaryDirectory(prefix="posthouse-hotpath-") as scratch:
        directory = Path(scratch)
        with open_shelf(directory, os.urandom(32)) as shelf:
            told = measure(envelopes, stretch, batch, shelf)
        found = {"stretches": told, "machine": describe_machine(directory)}
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
