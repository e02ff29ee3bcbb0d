"""Broadcast channels on real processes: a node is killed under the readers, all are restarted, and people type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_user
from relay.client import ChannelPost, Client, SendRefused, open_client
from relay.core.wire import Code

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120


def people(layout: Layout) -> None:
    for name in ("alice", "bob", "carol"):
        create_user(layout.home, name, "amber", int(time.time() * 1000))


@asynccontextmanager
async def opened(layout: Layout, name: str, *nodes: str) -> AsyncIterator[Client]:
    urls = [f"wss://{layout.node('amber', node).clients_addr}" for node in nodes]
    async with open_client(layout.home.store(name), receive=False, connect_to=urls or None) as client:
        yield client


async def follow(client: Client, channel: bytes, seen: list[ChannelPost]) -> None:
    async for post in client.channels.posts(channel):
        seen.append(post)  # noqa: PERF401  a comprehension would lose what came before the end


async def read(client: Client, channel: bytes) -> list[bytes]:
    return [post.content async for post in client.channels.posts(channel, follow=False)]


async def test_a_kill_and_a_restart_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    people(layout)
    with trio.fail_after(PATIENCE_S):
        async with LocalFederation(layout) as fed:
            await fed.start_all()
            seen: list[ChannelPost] = []
            said = [b"post %d" % n for n in range(1, 41)]
            async with opened(layout, "alice", "n1") as alice, opened(layout, "bob", "n2", "n3") as bob:
                card = await alice.channels.create("news")
                await bob.channels.join(card)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(follow, bob, card.channel, seen)
                    for n, text in enumerate(said):
                        if n == 15:
                            fed.kill("amber", "n2")
                        assert await alice.channels.post(card.channel, text) == n + 1
                    while len(seen) < len(said):  # noqa: ASYNC110 - of another process
                        await trio.sleep(0.05)
                    nursery.cancel_scope.cancel()
            assert [post.content for post in seen] == said
            assert [post.number for post in seen] == list(range(1, 41)) and not any(post.gap for post in seen)
            await fed.stop_all()
            await fed.start_all()
            async with opened(layout, "alice") as alice, opened(layout, "bob") as bob, opened(layout, "carol") as carol:
                await carol.channels.join(card)
                assert await read(carol, card.channel) == said
                assert await read(carol, card.channel) == [] == await read(bob, card.channel)
                renewed = await alice.channels.renew(card.channel)
                assert await alice.channels.post(card.channel, b"only for bob") == 41
                await bob.channels.join(renewed)
                assert await read(bob, card.channel) == [b"only for bob"]
                with pytest.raises(SendRefused) as refused:
                    await read(carol, card.channel)
                assert refused.value.code == Code.NOT_SUBSCRIBER


class Typist:
    def __init__(self, layout: Layout) -> None:
        self.directory = layout.directory

    async def types(self, *words: str, stdin: bytes = b"", status: int = 0) -> str:
        done = await trio.run_process(
            [sys.executable, "-m", "cluster.cli", "channel", *words], stdin=stdin, capture_stdout=True,
            stderr=subprocess.STDOUT, check=False, cwd=ROOT, env={**os.environ, "POSTHOUSE_DIR": str(self.directory)},
        )  # fmt: skip
        said = done.stdout.decode()
        assert done.returncode == status and "Traceback" not in said, (words, done.returncode, said)
        return said


async def test_what_people_type(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv())
    people(layout)
    cli = Typist(layout)
    with trio.fail_after(PATIENCE_S):
        async with LocalFederation(layout) as fed:
            await fed.start_all()
            card = (await cli.types("create", "--as", "alice", "news")).strip()
            assert card.startswith("posthouse-channel:amber/1:")
            assert await cli.types("post", "--as", "alice", "news", stdin=b"one") == "stored: news #1\n"
            channel = (await cli.types("join", "--as", "bob", card, "--title", "alice's")).strip()
            assert await cli.types("read", "--as", "bob", "alice's") == "one\n"
            await fed.stop("amber")
            await fed.start_region("amber")
            assert await cli.types("post", "--as", "alice", channel[:8], stdin=b"two\n") == "stored: news #2\n"
            shown = json.loads(await cli.types("read", "--as", "bob", channel[:8], "--json"))
            assert (shown["number"], shown["text"], shown["gap"]) == (2, "two\n", 0)
            assert (await cli.types("list", "--as", "bob")).split("\t")[1:] == ["alice's", "amber/1", "#2", "reader\n"]
            assert "Only that device" in await cli.types(
                "post", "--as", "bob", "alice's", stdin=b"mine", status=Exit.OPERATOR
            )
            assert "no channel" in await cli.types("read", "--as", "carol", "news", status=Exit.OPERATOR)
            changed = card[:-1] + ("a" if card[-1] != "a" else "q")
            await cli.types("join", "--as", "carol", changed, "--title", "x")
            assert "NOT_SUBSCRIBER" in await cli.types("read", "--as", "carol", "x", status=Exit.FAILED)
            assert await cli.types("close", "--as", "alice", "news") == "closed: news\n"
            assert "UNKNOWN_CHANNEL" in await cli.types("read", "--as", "bob", "alice's", status=Exit.FAILED)
            assert await cli.types("leave", "--as", "bob", "alice's") == "left: alice's\n"


def rests(directory: Path, what: bytes) -> list[str]:
    """The files below a directory that hold these bytes."""
    return [str(path) for path in directory.rglob("*") if path.is_file() and what in path.read_bytes()]


async def test_readers_of_another_region_read_and_nothing_rests_there(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber", "basalt"], RealEnv())
    people(layout)
    create_user(layout.home, "dora", "basalt", int(time.time() * 1000))
    cli = Typist(layout)
    with trio.fail_after(PATIENCE_S):
        async with LocalFederation(layout) as fed:
            await fed.start_all()
            card = (await cli.types("create", "--as", "alice", "news")).strip()
            channel = (await cli.types("join", "--as", "dora", card, "--title", "abroad")).strip()
            assert await cli.types("post", "--as", "alice", "news", stdin=b"one") == "stored: news #1\n"
            assert await cli.types("read", "--as", "dora", "abroad") == "one\n"
            seen: list[ChannelPost] = []
            dora_opens = open_client(layout.home.store("dora"), receive=False)
            async with opened(layout, "alice") as alice, dora_opens as dora, trio.open_nursery() as nursery:
                nursery.start_soon(follow, dora, bytes.fromhex(channel), seen)
                for n in range(2, 12):
                    if n == 6:
                        await fed.stop("amber")
                        await fed.start_region("amber")
                    await alice.channels.post(bytes.fromhex(channel), b"post %d" % n)
                while len(seen) < 10:  # noqa: ASYNC110 - of another process
                    await trio.sleep(0.05)
                nursery.cancel_scope.cancel()
            assert [(post.number, post.gap) for post in seen] == [(n, 0) for n in range(2, 12)]
            renewed = await cli.types("renew", "--as", "alice", "news")
            assert "NOT_SUBSCRIBER" in await cli.types("read", "--as", "dora", "abroad", status=Exit.FAILED)
            await cli.types("join", "--as", "dora", renewed.strip())
            await fed.stop("amber")
            assert "UNREACHABLE" in await cli.types("read", "--as", "dora", "abroad", status=Exit.UNREACHABLE)
            await fed.stop_all()
    far = layout.node("basalt").directory
    for trace in (bytes.fromhex(channel), channel.encode(), b"post 7"):
        assert not rests(far, trace)
    audited = await trio.run_process(
        [sys.executable, "-m", "cluster.cli", "audit", "residency", str(layout.directory)], capture_stdout=True,
        stderr=subprocess.STDOUT, check=False, cwd=ROOT,
    )  # fmt: skip
    assert audited.returncode == 0, audited.stdout
