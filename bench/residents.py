"""What users at home in a cell cost a relay in memory while nothing waits for them: `python -m bench.residents`.

Home records of users with one device each go through the fold, block by block; what the disk writer's residency check
keeps of them is given to that, as when a node starts. Then the fold's checkpoint is made, and loaded again. Memory is
what is resident (VmRSS). Signatures are random bytes: neither looks at them.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import click
import trio
from nacl.signing import SigningKey

from bench import lodgers
from bench.machine import describe_machine, rss_mib
from bench.registrar import make_root
from relay.core import records
from relay.core.block import GENESIS, make_block
from relay.core.codec import digest, encode, pack
from relay.core.mailroom import Mailroom
from relay.core.trust import Device, HomePayload, join_home, read_home
from relay.journal.guard import ResidencyGuard
from relay.journal.scratch import open_shelf
from relay.journal.shelf import SealedShelf
from relay.limits import DAY, MIB

REGION: Final = "norden"
CELL: Final = f"{REGION}/1"
_BLOCK: Final = 500  # records of a block, facts of one lesson
_LOG_ID: Final = bytes(16)


@dataclass
class Report:
    """Figures, told as they come."""

    users: int
    figures: dict[str, float] = field(default_factory=dict)
    _rss: float = 0.0
    _cpu: float = 0.0

    def begin(self) -> None:
        gc.collect()
        self._rss, self._cpu = rss_mib(os.getpid()), time.process_time()

    def end(self, what: str) -> None:
        """Memory that is there now and was not, and CPU that went, since `begin`; a user."""
        spent = time.process_time() - self._cpu
        gc.collect()
        grown = (rss_mib(os.getpid()) - self._rss) * MIB
        self.tell(f"{what}: memory, bytes a user", grown / self.users)
        self.tell(f"{what}: CPU, µs a user", spent / self.users * 1e6)

    def tell(self, what: str, value: float) -> None:
        self.figures[what] = round(value, 1)
        click.echo(f"{what:60}{value:12,.1f}")


def signed_home(number: int, now_ms: int) -> bytes:
    """A home record such as user `number` has, but for its signatures."""
    user, device, encryption, one, two = (digest(pack([number, what]), b"posthouse.bench") for what in range(5))
    devices = (Device(device, encryption, 1, b"", one + two),)
    payload = HomePayload(1, b"", 1, b"", REGION, CELL, user, devices, 0, now_ms, now_ms + 365 * DAY, b"")
    return join_home(encode(payload), one + two, two + one)


def _fact(signed: bytes) -> tuple[bytes, bytes]:
    """What the residency check teaches itself of a new user (relay.journal.guard)."""
    home = read_home(signed)
    return digest(home.user, b"posthouse.user"), pack([1, signed, [device.id for device in home.devices]])


def measure(users: int, shelf: SealedShelf) -> dict[str, float]:
    """Memory and CPU of the fold and of the residency check for so many users, and of the fold's checkpoint."""
    now_ms = time.time_ns() // 1_000_000
    guard = ResidencyGuard(REGION, CELL, make_root(SigningKey(bytes(32)), now_ms), shelf)
    report, room = Report(users), Mailroom(CELL, _LOG_ID, shelf)
    report.tell("a signed home record, bytes", len(signed_home(0, now_ms)))
    lots = [range(start, min(start + _BLOCK, users)) for start in range(0, users, _BLOCK)]
    report.begin()
    for index, lot in enumerate(lots, 1):
        items = [records.encode_record(records.Home(signed_home(number, now_ms))) for number in lot]
        room.apply(make_block(_LOG_ID, index, GENESIS, now_ms, items))
    report.end("fold (CPU: with making the records)")
    report.begin()
    for lot in lots:
        guard.learn([_fact(signed_home(number, now_ms)) for number in lot])
    report.end("residency check (CPU: with making its facts)")
    report.tell("both: memory, bytes a user", sum(value for name, value in report.figures.items() if "memory" in name))
    begun = time.process_time()
    rows = list(room.checkpoint())
    report.tell("checkpoint made: CPU, µs a user", (time.process_time() - begun) / users * 1e6)
    report.tell("checkpoint: bytes a user", sum(map(len, rows)) / users)
    begun = time.process_time()
    digest_before = room.digest()
    report.tell("digest: CPU, µs a user", (time.process_time() - begun) / users * 1e6)
    report.tell("scratch file, bytes a user", shelf.file_bytes / users)
    del room
    begun = time.process_time()
    room = Mailroom.from_checkpoint(rows, shelf)
    report.tell("checkpoint loaded: CPU, µs a user", (time.process_time() - begun) / users * 1e6)
    assert room.digest() == digest_before, "the state is another one after a restart"
    return report.figures


def measure_node(users: int, directory: Path) -> dict[str, float]:
    """Memory of the process of a node with so many users."""
    now_ms, report = time.time_ns() // 1_000_000, Report(users)
    signed = partial(signed_home, now_ms=now_ms)
    trio.run(lodgers.measure, directory / "run", REGION, users, signed, _fact, report.tell)
    return report.figures


@click.command()
@click.option("--users", default=100_000, show_default=True)
@click.option("--node", "as_node", is_flag=True, help="Of a real node process, above that of one without users.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to a file.")
def main(users: int, as_node: bool, json_path: Path | None) -> None:
    """Memory of a relay for users at home in its cell."""
    with tempfile.TemporaryDirectory(prefix="posthouse-residents-") as scratch:
        directory = Path(scratch)
        if as_node:
            figures = measure_node(users, directory)
        else:
            with open_shelf(directory, os.urandom(32)) as shelf:
                figures = measure(users, shelf)
        found = {"users": users, "figures": figures, "machine": describe_machine(directory)}
    if json_path is not None:
        json_path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
