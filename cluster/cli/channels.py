"""`posthouse channel …`: broadcast channels: make one and post to it, join one by its card and read it."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import click
import trio

from cluster.cli.exits import deadline
from cluster.cli.options import Decorator, as_option, deadline_option, dir_option
from cluster.cli.send import SEND_S, read_source, source_argument, title_option
from cluster.local.home import Home
from relay.client import ChannelCard, ChannelPost, Client, KnownChannel, open_client
from relay.errors import OperatorError
from relay.limits import DAY, MIB

_channel_argument: Decorator = click.argument("channel_name", metavar="CHANNEL")
_deadline: Decorator = deadline_option(SEND_S, "Give up waiting after so long.")


@click.group()
def channel() -> None:
    """Broadcast channels: one record, any number of readers, and no list of them anywhere.

    CHANNEL is a channel's title, or the beginning of its id. Whoever has a channel's card can read it; only the device
    that made it can post.
    """


@channel.command()
@as_option
@click.argument("title")
@click.option("--keep-days", type=click.IntRange(1, 30), default=7, show_default=True, help="Keep posts for so long,")
@click.option("--keep-posts", type=click.IntRange(1, 65_536), default=1_000, show_default=True, help="so many of them,")
@click.option("--keep-mib", type=click.IntRange(1, 64), default=4, show_default=True, help="so many MiB of them.")
@_deadline
@dir_option
def create(
    name: str, title: str, keep_days: int, keep_posts: int, keep_mib: int, seconds: float, directory: Path
) -> None:
    """Make a channel with TITLE, which only its maker sees. Prints its card: hand it to whoever may read.

    A post that is older, or has more newer ones behind it than the channel keeps, is gone, read or not.
    """

    async def act(client: Client) -> None:
        card = await client.channels.create(title, keep_days * DAY, keep_posts, keep_mib * MIB)
        click.echo(str(card))

    _run(directory, name, seconds, act)


@channel.command()
@as_option
@_channel_argument
@title_option
@_deadline
@dir_option
@source_argument
def post(name: str, channel_name: str, title: str | None, seconds: float, directory: Path, source: str) -> None:
    """Post a FILE of at most 96 KiB, or what comes on standard input. Prints its number once it is stored.

    It is sealed once and is one record of the log, however many read it.
    """
    content, file_name = read_source(source, title)

    async def act(client: Client) -> None:
        found = await _find(client, channel_name)
        number = await client.channels.post(found.card.channel, content, file_name)
        click.echo(f"stored: {found.title} #{number}")

    _run(directory, name, seconds, act)


@channel.command()
@as_option
@click.argument("card")
@click.option("--title", default="", help="What it is called here.  [default: the beginning of its id]")
@dir_option
def join(name: str, card: str, title: str, directory: Path) -> None:
    """Keep a channel's CARD (posthouse-channel:…). Nobody is told."""
    parsed = ChannelCard.parse(card)

    async def act(client: Client) -> None:
        await client.channels.join(parsed, title or parsed.channel.hex()[:8])
        click.echo(parsed.channel.hex())

    _run(directory, name, SEND_S, act)


@channel.command()
@as_option
@_channel_argument
@click.option("--follow", is_flag=True, help="Go on and wait for what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with number and time.")
@_deadline
@dir_option
def read(name: str, channel_name: str, follow: bool, as_json: bool, seconds: float, directory: Path) -> None:
    """Print the posts after the last one that was read here, each followed by a newline where it does not end with one.

    Only the channel's maker, and those with its card, can. The place is kept here; the nodes keep nothing of it.
    """

    async def act(client: Client) -> None:
        found = await _find(client, channel_name)
        async for one in client.channels.posts(found.card.channel, follow=follow):
            _show(one, as_json)

    _run(directory, name, None if follow else seconds, act)


@channel.command()
@as_option
@_channel_argument
@_deadline
@dir_option
def renew(name: str, channel_name: str, seconds: float, directory: Path) -> None:
    """Draw a new secret for a channel, and print its new card: who has the old one only does not read from here on."""

    async def act(client: Client) -> None:
        found = await _find(client, channel_name)
        click.echo(str(await client.channels.renew(found.card.channel)))

    _run(directory, name, seconds, act)


@channel.command()
@as_option
@_channel_argument
@_deadline
@dir_option
def close(name: str, channel_name: str, seconds: float, directory: Path) -> None:
    """End a channel: what it kept is gone for everybody."""

    async def act(client: Client) -> None:
        found = await _find(client, channel_name)
        await client.channels.close(found.card.channel)
        click.echo(f"closed: {found.title}")

    _run(directory, name, seconds, act)


@channel.command()
@as_option
@_channel_argument
@dir_option
def leave(name: str, channel_name: str, directory: Path) -> None:
    """Forget a channel, its card and the place in it. Nobody is told."""

    async def act(client: Client) -> None:
        found = await _find(client, channel_name)
        await client.channels.leave(found.card.channel)
        click.echo(f"left: {found.title}")

    _run(directory, name, SEND_S, act)


@channel.command("list")
@as_option
@dir_option
def list_(name: str, directory: Path) -> None:
    """List the channels that a user owns or reads: id, title, cell, number of the last post that was read, whose."""

    async def act(client: Client) -> None:
        for one in await client.channels.list():
            mine = "mine" if one.mine else "reader"
            click.echo(f"{one.card.channel.hex()[:16]}\t{one.title}\t{one.card.cell}\t#{one.place}\t{mine}")

    _run(directory, name, SEND_S, act)


def find_channel(channels: Sequence[KnownChannel], wanted: str) -> KnownChannel:
    """The channel of that title or beginning of id. Raises OperatorError where it is none, or not only one."""
    titled = [one for one in channels if one.title == wanted]
    named = [one for one in channels if len(wanted) >= 4 and one.card.channel.hex().startswith(wanted.lower())]
    found = titled or named
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(one.card.channel.hex()[:16] for one in found)
        raise OperatorError(f"{len(found)} channels are called {wanted!r}", f"Give the beginning of an id: {ids}")
    titles = ", ".join(sorted(one.title for one in channels)) or "none yet; `posthouse channel join` takes a card"
    raise OperatorError(f"no channel {wanted!r} is known here", f"Known: {titles}")


async def _find(client: Client, wanted: str) -> KnownChannel:
    return find_channel(await client.channels.list(), wanted)


def _show(one: ChannelPost, as_json: bool) -> None:
    if as_json:
        shown: dict[str, object] = {"number": one.number, "created": one.created, "gap": one.gap, "name": one.name}
        try:
            shown["text"] = one.content.decode()
        except UnicodeDecodeError:
            shown["base64"] = base64.b64encode(one.content).decode()
        click.echo(json.dumps(shown, ensure_ascii=False))
    else:
        ended = one.content.endswith(b"\n")
        sys.stdout.buffer.write(one.content if ended else one.content + b"\n")
    sys.stdout.flush()


def _run(
    directory: Path, name: str, seconds: float | None, act: Callable[[Client], Awaitable[None]]
) -> None:
    """Open the store of `name`, only to submit: nobody who receives is in the way."""
    store = Home(directory).store(name)

    async def main() -> None:
        limit = nullcontext() if seconds is None else deadline(
            seconds,
            f"no answer within {seconds:g} s",
            "Does the node run? What was begun goes on with the next command. A longer --deadline waits longer",
        )  # fmt: skip
        async with open_client(store, receive=False) as client:
            with limit:
                await act(client)

    trio.run(main)
