"""What a large queue costs: `python -m bench.weight` fills a cell's log with envelopes that nobody collects, kills a
node and starts it again, and takes a checkpoint. With `--acked` most is collected at once: the store must stay small.

The log is filled beneath the gateway, by the node's own parts: journal, fold, steward. The restarts are of real node
processes, and timed from the outside.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import trio

from bench.enrol import Home, enrol
from bench.envelopes import body
from bench.machine import cpu_s, peak_rss_mib
from bench.session import Enrolled
from cluster.config import load_config
from cluster.core.linkwire import federation_id
from cluster.env import RealClock, RealEnv
from cluster.journal import open_raft
from cluster.links import Links
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.layout import NodeLayout
from cluster.node import load_mailroom
from cluster.pki import NodeCredentials
from cluster.switchboard import Switchboard
from relay.core import records
from relay.core.block import position
from relay.core.codec import encode
from relay.core.envelope import Header, To, join
from relay.core.mailroom.state import FOLD_VERSION
from relay.delivery import Delivery
from relay.intake import Intake
from relay.journal.guard import ResidencyGuard
from relay.journal.portal import Portal, open_portal
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from relay.limits import DAY, DEFAULT_LIFETIME, MIB
from relay.observe.metrics import Metrics
from relay.ports import Journal
from relay.steward import Steward

REGION = "norden"
_READY_S = 600.0
_STAYS = 1_000  # of `--acked`: one envelope in so many stays, as the first hundredth does


@dataclass(frozen=True)
class Load:
    """What goes into the log: `size` bytes an envelope, `batch` of them a block."""

    envelopes: int
    users: int
    size: int
    batch: int
    acked: bool
    speed: int


class FastClock(RealClock):
    """One that started a day ago and goes `speed` times as fast: ids are remembered for ten minutes, and a million
    within ten minutes is more than what a cell sees."""

    def __init__(self, speed: int) -> None:
        self._speed = speed
        self._wall, self._monotonic = super().wall_ms(), super().monotonic_ms()

    def wall_ms(self) -> int:
        return self._wall - DAY + self.monotonic_ms() - self._monotonic

    def monotonic_ms(self) -> int:
        return self._monotonic + (super().monotonic_ms() - self._monotonic) * self._speed


class FastEnv(RealEnv):
    """The world, but for its clock."""

    def __init__(self, portal: Portal, speed: int) -> None:
        super().__init__(portal)
        self._clock = FastClock(speed) if speed > 1 else RealClock()


@dataclass
class Report:
    """Figures, told as they come."""

    figures: dict[str, Any] = field(default_factory=dict)

    def tell(self, name: str, value: Any) -> None:
        self.figures[name] = round(value, 3) if isinstance(value, float) else value
        click.echo(f"{name:40} {self.figures[name]}")

    @asynccontextmanager
    async def timed(self, name: str) -> AsyncIterator[None]:
        began, spent = time.perf_counter(), time.process_time()
        yield
        self.tell(name, time.perf_counter() - began)
        if (cpu := time.process_time() - spent) > 0.05:
            self.tell(f"{name}, of it CPU", cpu)


@dataclass
class Parts:
    """A node without its gateway, in this process."""

    journal: Journal
    delivery: Delivery
    intake: Intake
    steward: Steward

    async def put(self, items: list[bytes]) -> None:
        """One block, applied."""
        index = self.journal.tip
        self.intake.offer(items)
        await self.delivery.wait_for(lambda: self.delivery.room.state.index > index)


@asynccontextmanager
async def open_parts(node: NodeLayout, speed: int, report: Report) -> AsyncIterator[Parts]:
    """The parts of `node`, running; nothing is saved at the end: it is as if the process had been killed."""
    config, metrics = load_config(node.config_path), Metrics()
    ring, root = StorageRing.load(config.paths.storage_key), config.root
    guard = ResidencyGuard(node.region, node.cell, root)
    async with open_portal() as portal, trio.open_nursery() as nursery:
        env = FastEnv(portal, speed)
        common: dict[str, Any] = {
            "env": env, "ring": ring, "residency": guard, "cell": node.cell, "federation": federation_id(root)
        }
        listed = root.cell(node.cell)
        names = [one.name for one in listed.nodes] if listed else []
        async with report.timed("  journal opened, s"):
            if len(names) == 1:
                opening: Any = open_solo(node.data_dir, **common)
                journal: Any = await opening.__aenter__()
            else:
                credentials = NodeCredentials.load(config.paths.certificate, config.paths.private_key, root)
                links, switchboard = Links(env, root, credentials.peer, credentials, metrics), Switchboard()
                await nursery.start(links.run, await env.listen("127.0.0.1", 0), switchboard)
                opening = open_raft(node.data_dir, **common, node=node.name, nodes=names, links=links)
                switchboard.cell = await opening.__aenter__()
                nursery.start_soon(switchboard.cell.run)
                journal = switchboard.cell.journal
        async with report.timed("  checkpoint read and loaded, s"):
            room = await load_mailroom(journal, node.cell)
        delivery = Delivery(journal, room, metrics, env.clock)
        intake = Intake(journal, metrics)
        steward = Steward(journal, delivery, intake, metrics)
        async with report.timed("  log applied, s"):
            report.tell("  blocks to apply", journal.tip - room.state.index)
            nursery.start_soon(delivery.run)
            await delivery.wait_for(lambda: room.state.index >= journal.tip)
        nursery.start_soon(intake.run)
        nursery.start_soon(steward.run)
        try:
            yield Parts(journal, delivery, intake, steward)
        finally:
            with trio.CancelScope(shield=True):
                nursery.cancel_scope.cancel()
                await opening.__aexit__(None, None, None)


async def fill(parts: Parts, users: list[Enrolled], load: Load, data: Path, report: Report) -> None:
    """Envelopes to all users in turn, from the device of the first; up to the worst moment to be killed, the one before
    a checkpoint is due."""
    sender = bytes(users[0].key.verify_key)
    await parts.put([records.encode_record(records.FoldVersion(FOLD_VERSION))])
    for start in range(0, len(users), 100):
        await parts.put([records.encode_record(records.Home(one.record)) for one in users[start : start + 100]])
    done, largest, state = 0, 0, parts.delivery.room.state
    acks: list[bytes] = []
    while done < load.envelopes or state.checkpoint_due - state.log_bytes > load.batch * 2 * load.size:
        now, count = parts.journal.time_ms(), load.batch
        to = [users[_recipient(number, load)] for number in range(done, done + count)]
        items = []
        for number, user in enumerate(to, done):
            header = Header(1, To.MAILBOX, user.user, 1, now, now + DEFAULT_LIFETIME, 0)
            packed = encode(header)
            envelope = join(packed, body(1, number, 0, max(32, load.size - len(packed) - 8)))
            items.append(records.encode_record(records.Submit(sender, state.cell, envelope)))
        await parts.put(acks + items)
        if load.acked:
            upto = position(parts.journal.tip, 0) + len(acks) + len(items)
            acks = [
                records.encode_record(records.Ack(bytes(user.key.verify_key), upto))
                for user in to
                if user is not users[0]
            ]
        done += count
        if done % (100 * load.batch) == 0:
            largest = max(largest, size_of(data))
        if load.acked and done * 10 // load.envelopes > (done - count) * 10 // load.envelopes:
            report.tell(f"size of the store after {done}, MiB", size_of(data) / MIB)
    if acks:
        await parts.put(acks)
    report.tell("largest size of the store, MiB", max(largest, size_of(data)) / MIB)


def _recipient(number: int, load: Load) -> int:
    """User 0 collects nothing."""
    if load.acked and (number < load.envelopes // 100 or number % _STAYS == 0):
        return 0
    return number % load.users


def size_of(data: Path) -> int:
    """Bytes of all files of a node's data."""
    return sum(file.stat().st_size for file in data.rglob("*") if file.is_file())


async def _lateness(worst: list[float]) -> None:
    """How late this event loop comes to what is due."""
    while True:
        due = time.perf_counter() + 0.001
        await trio.sleep(0.001)
        worst[0] = max(worst[0], time.perf_counter() - due)


async def checkpoint(parts: Parts, report: Report) -> None:
    """Take one while blocks go on: what others notice of it."""
    worst, slowest, ticks = [0.0], 0.0, 0
    tick = records.encode_record(records.Tick())
    await parts.put([tick])
    async with trio.open_nursery() as nursery:
        saved = trio.Event()

        async def save() -> None:
            async with report.timed("checkpoint taken and saved, s"):
                await parts.steward.save()
            saved.set()

        nursery.start_soon(_lateness, worst)
        nursery.start_soon(save)
        while not saved.is_set():
            began = time.perf_counter()
            await parts.put([tick])
            slowest, ticks = max(slowest, time.perf_counter() - began), ticks + 1
        nursery.cancel_scope.cancel()
    report.tell("  blocks applied meanwhile", ticks)
    report.tell("  slowest block meanwhile, s", slowest)
    report.tell("  longest stop of the event loop, s", worst[0])


async def restart(federation: LocalFederation, node: NodeLayout, report: Report) -> None:
    """A killed node comes back."""
    async with report.timed("restarted node is ready after, s"):
        await federation.launch(node.region, node.name)
        await federation.ready(node.region, node.name, _READY_S)
    pid = federation.pid(node.region, node.name)
    report.tell("  its CPU, s", cpu_s(pid))
    report.tell("  its peak RSS, MiB", peak_rss_mib(pid))
    await trio.sleep(2)
    report.tell("  its peak RSS 2 s later, MiB", peak_rss_mib(pid))


async def measure(layout: Layout, load: Load, report: Report) -> None:
    """All of it."""
    first, *others = layout.nodes(REGION)
    home = Home(REGION, first.cell, layout.registrar(REGION))
    users = [enrol(home, 1, number, RealEnv().clock.wall_ms()) for number in range(load.users)]
    async with open_parts(first, load.speed, report) as parts:
        async with report.timed("log filled in, s"):
            await fill(parts, users, load, first.data_dir, report)
        state = parts.delivery.room.state
        report.tell("envelopes that wait", len(state.sources))
        report.tell("blocks kept", parts.journal.tip + 1 - parts.journal.first)
    report.tell("size of the store, MiB", size_of(first.data_dir) / MIB)
    if load.acked:
        return
    async with LocalFederation(layout) as federation:
        if not others:
            await restart(federation, first, report)
        else:
            async with report.timed("all nodes have everything after, s"):
                for node in layout.nodes(REGION):
                    await federation.launch(REGION, node.name)
                for node in layout.nodes(REGION):
                    await federation.ready(REGION, node.name, _READY_S)
            federation.kill(REGION, others[0].name)
            await trio.sleep(2)
            await restart(federation, others[0], report)
        for node in layout.nodes(REGION):
            federation.kill(REGION, node.name)
    if not others:
        async with open_parts(first, load.speed, report) as parts:
            await checkpoint(parts, report)


@click.command()
@click.option("--envelopes", default=1_000_000, show_default=True)
@click.option("--users", default=1_000, show_default=True)
@click.option("--size", default=300, show_default=True, help="Bytes of an envelope.")
@click.option("--batch", default=100, show_default=True, help="Envelopes in a block.")
@click.option("--nodes", type=click.Choice(["1", "3"]), default="1", show_default=True)
@click.option("--acked", is_flag=True, help="All but about one in a hundred are collected at once.")
@click.option("--speed", default=1, show_default=True, help="How many times as fast the log's clock goes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures to a file.")
def main(nodes: str, json_path: Path | None, **options: Any) -> None:
    """Fill a cell's log, and see what that costs."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="posthouse-weight-") as scratch:
        layout = make_federation(Path(scratch) / "run", [REGION], RealEnv(), nodes=int(nodes), tls=False)
        trio.run(measure, layout, Load(**options), report)
    if json_path is not None:
        json_path.write_text(json.dumps(report.figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
