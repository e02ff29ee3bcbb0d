"""The kinds of rounds: what happens to the cell while its load runs. Each returns what it did, in words and counts.

The cell may be broken on return; the round then waits until it is whole again, unaided.
"""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from cluster.provision import make_data
from tests.crash import flips
from tests.crash.cell import Hang, Node
from tests.crash.lines import mount_small, unmount
from tests.crash.powercut import Cut
from tests.crash.site import Site

Tally = Counter[str]
Kind = Callable[[Site], Awaitable[tuple[str, Tally]]]
FLIPS = 50  # a round
STOPPED_S = 35.0  # longer than any deadline of a node's (LINK_DEADLINE_S, DISK_DEADLINE_S: 30 s)
_ROOM = 24 << 20  # bytes that a node has left on the small disk before it is filled up
_SPARE = 256 << 10  # bytes that are left when it is


async def _kill(site: Site, count: int) -> tuple[str, Tally]:
    nodes = site.rng.sample(site.cell.nodes, count)
    await site.cell.kill(nodes)
    await trio.sleep(site.rng.choice((0.0, 0.5, 3.0)))
    for node in nodes:
        node.start()
    return f"killed {_names(nodes)}", Tally(kills=count)


async def kill_one(site: Site) -> tuple[str, Tally]:
    return await _kill(site, 1)


async def kill_two(site: Site) -> tuple[str, Tally]:
    return await _kill(site, 2)


async def kill_all(site: Site) -> tuple[str, Tally]:
    return await _kill(site, 3)


async def power(site: Site) -> tuple[str, Tally]:
    """The power of all nodes at once."""
    nodes, strict = site.cell.nodes, site.rng.random() < 0.3
    await _writing(site)
    await site.cell.kill(nodes)
    total = sum((node.cut(site.rng, strict) for node in nodes), Cut())
    site.cell.start()
    unsynced = total.dropped + total.torn + total.kept
    text = f"{unsynced} unsynced writes: {total.dropped} dropped, {total.torn} torn, {total.kept} kept"
    return text, Tally({"power cuts": 1, "kills": len(nodes), "unsynced writes": unsynced, "dropped": total.dropped})


async def _writing(site: Site) -> None:
    """Wait until some node is in the midst of a commit, which takes a small part of the time."""
    node = site.rng.choice(site.cell.nodes)
    before = node.undo_size()
    with trio.move_on_after(1.0):
        while node.undo_size() == before:  # noqa: ASYNC110 - it is another process
            await trio.sleep(0.0002)
    await trio.sleep(site.rng.uniform(0.0, 0.003))


async def wiped(site: Site) -> tuple[str, Tally]:
    """A disk is replaced by an empty one."""
    node = site.rng.choice(site.cell.nodes)
    await node.killed()
    _replace(node, None)
    node.start()
    return f"emptied {_names([node])}", Tally({"wiped": 1, "kills": 1})


async def rolling(site: Site) -> tuple[str, Tally]:
    """All disks are replaced by empty ones, one after the other, while mail waits: in the end no store is left that was
    there when it came."""
    for node in site.rng.sample(site.cell.nodes, len(site.cell.nodes)):
        await node.killed()
        _replace(node, None)
        node.start()
        await site.whole()
    return "emptied one node after the other", Tally({"wiped": 3, "kills": 3})


async def restored(site: Site) -> tuple[str, Tally]:
    """A store's old copy takes its place, mark and all."""
    node = site.rng.choice(site.cell.nodes)
    copy = node.layout.directory / "old"
    await node.killed()
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(node.data, copy)
    node.start()
    await site.whole()
    await trio.sleep(site.rng.uniform(1.0, 3.0))
    await node.killed()
    _replace(node, copy)
    node.start()
    return f"{_names([node])} got its old store back", Tally({"old copies": 1, "kills": 2})


async def flipped(site: Site) -> tuple[str, Tally]:
    """Bits of a stopped node's files; each is looked at by itself first, on a copy."""
    node = site.rng.choice(site.cell.nodes)
    await node.killed()
    chosen = [flips.choose(node.data, site.rng) for _ in range(FLIPS)]
    tally = await flips.judge(node.data, site.cell.layout, chosen)
    for flip in chosen[: site.rng.choice((1, 3, FLIPS))]:  # few may get further before anybody notices
        flip.apply(node.data)
    node.forget()
    node.start()
    text = f"{_names([node])}: " + ", ".join(f"{count} {what}" for what, count in sorted(tally.items()))
    return text, tally + Tally({"bits flipped": len(chosen), "kills": 1})


async def full(site: Site) -> tuple[str, Tally]:
    """A node's disk is full for some seconds, and then has room again."""
    node = site.rng.choice(site.cell.nodes)
    await node.killed()
    node.over_shim = False  # its undo log would lie on another file system
    kept = node.layout.directory / "kept"
    shutil.copytree(node.data, kept)
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    mount_small(node.data, size + _ROOM)
    try:
        shutil.copytree(kept, node.data, dirs_exist_ok=True)
        node.start()
        await site.whole()
        ended = len(node.ended)
        ballast = node.data / "ballast"
        _fill(ballast)
        with trio.move_on_after(15.0):
            while len(node.ended) == ended:  # noqa: ASYNC110 - it is a process
                await trio.sleep(0.1)
        failed = len(node.ended) - ended
        if not failed:
            raise Hang("a node whose disk is full went on")
        await trio.sleep(2.0)
        failed = len(node.ended) - ended
        ballast.unlink()
        await site.whole()
        await node.killed()
        shutil.rmtree(kept)
        shutil.copytree(node.data, kept)
    finally:
        await node.killed()
        unmount(node.data)
    _replace(node, kept)
    node.over_shim = True
    node.start()
    return f"{_names([node])} ended {failed} times while full", Tally({"disks full": 1, "kills": 3})


def _fill(ballast: Path) -> None:
    """Take all room but a little."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            file.truncate(max(0, file.tell() - _SPARE))


async def stopped(site: Site) -> tuple[str, Tally]:
    """A node stands still for longer than every timeout, and goes on as if nothing had been."""
    node = await _leader_or_any(site)
    node.signal(signal.SIGSTOP)
    await trio.sleep(STOPPED_S)
    node.signal(signal.SIGCONT)
    return f"{_names([node])} stood still for {STOPPED_S:.0f} s", Tally(stops=1)


async def links(site: Site) -> tuple[str, Tally]:
    """A node's line to the others is cut, and healed."""
    lines = site.cell.lines
    if lines is None:
        raise Hang("links can be cut only where network namespaces may be made (unshare, nsenter, ip)")
    node, seconds = await _leader_or_any(site), site.rng.uniform(2.0, 12.0)
    lines.cut(node.number)
    await trio.sleep(seconds)
    lines.heal(node.number)
    return f"{_names([node])} cut off for {seconds:.0f} s", Tally({"lines cut": 1})


async def _leader_or_any(site: Site) -> Node:
    leader = await site.cell.leader()
    return leader if leader and site.rng.random() < 0.5 else site.rng.choice(site.cell.nodes)


def _replace(node: Node, by: Path | None) -> None:
    """A stopped node finds something else on its disk."""
    shutil.rmtree(node.data)
    if by is None:
        make_data(node.data, founds=False)
    else:
        shutil.move(by, node.data)
    node.forget()


def _names(nodes: list[Node]) -> str:
    return " ".join(sorted(node.layout.name for node in nodes))


KINDS: dict[str, Kind] = {
    "kill1": kill_one, "kill2": kill_two, "kill3": kill_all, "power": power, "wiped": wiped,
    "rolling": rolling, "old": restored, "flips": flipped, "full": full, "stop": stopped, "links": links,
}  # fmt: skip
