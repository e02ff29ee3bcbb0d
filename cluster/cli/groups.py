"""`posthouse group …`: make groups, add members, write to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import click
import trio

from cluster.cli.exits import deadline
from cluster.cli.options import Decorator, as_option, deadline_option, dir_option
from cluster.cli.send import SEND_S, read_source, sending_deadline, source_argument, title_option, wait_option
from cluster.local.home import Home
from cluster.local.people import find_card
from relay.client import Card, Client, Group, open_client
from relay.errors import OperatorError

TELL_S = 10.0  # seconds for the news of a group, and its keys, to reach everybody's region
NEWS_S = 2.0  # seconds for news of a group to be understood: its sender's record may still be looked up

_group_argument: Decorator = click.argument("group_name", metavar="GROUP")
_deadline: Decorator = deadline_option(SEND_S, "Give up waiting after so long.")


@click.group()
def group() -> None:
    """Groups: one message, many recipients, in any region.

    GROUP is a group's title, or the beginning of its id where several have the same title.
    """


@group.command()
@as_option
@click.argument("title")
@click.argument("members", nargs=-1, required=True, metavar="NAME|CARD...")
@_deadline
@dir_option
def create(name: str, title: str, members: tuple[str, ...], seconds: float, directory: Path) -> None:
    """Make a group with TITLE, its maker, and the given members. Prints its id."""
    store, cards = _people(directory, name, members)

    async def act(client: Client) -> None:
        with _changing_deadline(seconds):
            made = await client.create_group(title, cards)
        click.echo(made.id.hex())
        await _tell(client)

    trio.run(_with_client, store, act)


@group.command()
@as_option
@_group_argument
@click.argument("members", nargs=-1, required=True, metavar="NAME|CARD...")
@_deadline
@dir_option
def add(name: str, group_name: str, members: tuple[str, ...], seconds: float, directory: Path) -> None:
    """Add members to GROUP. Only the device that made the group can."""
    store, cards = _people(directory, name, members)

    async def act(client: Client) -> None:
        with _changing_deadline(seconds):
            found = await _find(client, group_name)
            await client.add_to_group(found.id, cards)
        click.echo(f"added {len(cards)} to {found.title}")
        await _tell(client)

    trio.run(_with_client, store, act)


@group.command("send")
@as_option
@_group_argument
@wait_option
@title_option
@_deadline
@dir_option
@source_argument
def send_(
    name: str, group_name: str, wait: str, title: str | None, seconds: float, directory: Path, source: str
) -> None:
    """Send a FILE, or what comes on standard input, to all members of GROUP.

    It is sealed once and crosses each border once, however many members there are.
    """
    store = Home(directory).store(name)
    content, file_name = read_source(source, title)

    async def act(client: Client) -> None:
        with _changing_deadline(seconds):
            found = await _find(client, group_name)
        sent = await client.send_group(found.id, content, name=file_name, wait="queued")
        with sending_deadline(seconds):
            await client.outcome(sent, wait)
        click.echo(f"{wait}: {found.title} ({sent.id.hex()[:8]})")
        await _tell(client)

    trio.run(_with_client, store, act)


@group.command("list")
@as_option
@deadline_option(10.0, "Ask the node for news for half of so long; then list what is known here.")
@dir_option
def list_(name: str, seconds: float, directory: Path) -> None:
    """List the groups that a user is a member of, as far as known here: id, title, version, number of members."""
    store = Home(directory).store(name)

    async def act(client: Client) -> None:
        with trio.move_on_after(seconds / 2):
            await _catch_up(client)
            await trio.sleep(NEWS_S / 4)
        for known in await client.groups():
            mine = "mine" if known.mine else "member"
            click.echo(f"{known.id.hex()[:16]}\t{known.title}\tv{known.version}\t{len(known.members)} members\t{mine}")

    trio.run(_with_client, store, act)


def find_group(groups: Sequence[Group], wanted: str) -> Group:
    """The group of that title or beginning of id. Raises OperatorError where it is none, or not only one."""
    found = _matching(groups, wanted)
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(known.id.hex()[:16] for known in found)
        raise OperatorError(f"{len(found)} groups are called {wanted!r}", f"Give the beginning of an id: {ids}")
    titles = ", ".join(sorted(known.title for known in groups)) or "none yet; `posthouse recv` learns of new ones"
    raise OperatorError(f"no group {wanted!r} is known here", f"Known: {titles}")


async def _find(client: Client, wanted: str) -> Group:
    """The group; when it is not known here, asks the node for news first. Raises OperatorError."""
    if not _matching(await client.groups(), wanted):
        await _catch_up(client)
        with trio.move_on_after(NEWS_S):
            while not _matching(await client.groups(), wanted):  # noqa: ASYNC110 - the client has no bell for groups
                await trio.sleep(NEWS_S / 20)
    return find_group(await client.groups(), wanted)


async def _tell(client: Client) -> None:
    """Members learn of a group, and get its keys, by messages of their own: let them get away before this ends."""
    with trio.move_on_after(TELL_S) as scope:
        await client.drained()
    if scope.cancelled_caught:
        click.echo("posthouse: not everybody could be told yet; that goes on with the next command", err=True)


async def _catch_up(client: Client) -> None:
    """Groups are learned from messages: take in what waits (it stays there for `recv`)."""
    if client.receives:
        await client.caught_up()


def _matching(groups: Sequence[Group], wanted: str) -> list[Group]:
    titled = [known for known in groups if known.title == wanted]
    return titled or [known for known in groups if len(wanted) >= 4 and known.id.hex().startswith(wanted.lower())]


def _people(directory: Path, name: str, members: Sequence[str]) -> tuple[Path, list[Card]]:
    home = Home(directory)
    return home.store(name), [find_card(home, member) for member in members]


async def _with_client(store: Path, act: Callable[[Client], Awaitable[None]]) -> None:
    async with open_client(store) as client:
        await act(client)


def _changing_deadline(seconds: float) -> AbstractContextManager[trio.CancelScope]:
    return deadline(
        seconds,
        f"no answer within {seconds:g} s",
        "Does the node run? What was begun may still take effect: look with `posthouse group list` before trying again",
    )
