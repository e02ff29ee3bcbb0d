"""`posthouse recv`: collect what waits for a user, and what comes."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click
import trio

from cluster.cli.exits import deadline
from cluster.cli.options import as_option, deadline_option, dir_option
from cluster.cli.received import Files, JsonLines, Pipe, Sink, Terminal
from cluster.local.home import Home
from cluster.local.people import card_of
from relay.client import Client, Message, open_client

RECV_S = 60.0  # seconds in which nothing comes
PATIENCE_S = 8.0  # seconds for what cannot be read yet; the SDK holds a message back for its predecessor for 5


@click.command()
@as_option
@click.option("--follow", is_flag=True, help="Go on and wait for what comes, until Ctrl-C.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Each message a file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; with --out the contents go to files.")
@deadline_option(RECV_S, "Give up when the node cannot be reached, or nothing comes any more, for so long.")
@dir_option
def recv(name: str, follow: bool, out: Path | None, as_json: bool, seconds: float, directory: Path) -> None:
    """Collect everything that waits for a user, decrypt it, and end; or stay, with --follow.

    Into a pipe or file go the bytes of the messages and nothing else. On a terminal each message has a line that says
    who sent it and when; files, and what is no text, are saved in clients/NAME/received. With --out every message
    becomes a file, named as its sender named it where that is safe; nothing is overwritten.

    A message counts as collected when it has been written out. It is yielded once, in its sender's order.
    """
    home = Home(directory)
    store = home.store(name)
    trio.run(_recv, home, store, follow, out, as_json, seconds)


async def _recv(home: Home, store: Path, follow: bool, out: Path | None, as_json: bool, seconds: float) -> None:
    with deadline(
        math.inf if follow else seconds,
        f"nothing came for {seconds:g} s, and not everything that waits was collected",
        "Does the node run? What waits there is kept. A longer --deadline waits longer",
    ) as scope:
        async with open_client(store, receive=True) as client, trio.open_nursery() as nursery:
            names = People(home, client)
            sink = choose_sink(names, out, as_json, store.parent / "received")
            if not follow:
                nursery.start_soon(_end_when_empty, client, nursery.cancel_scope)
            async for message in client.messages():
                await names.learn(message)
                sink.take(message)
                if not follow:
                    scope.deadline = trio.current_time() + seconds


async def _end_when_empty(client: Client, scope: trio.CancelScope) -> None:
    """End when everything that waited at the node has been written out and settled. What cannot be read yet is waited
    for as long as the client holds messages back, and then stays for the next time."""
    await client.caught_up()
    patience = trio.current_time() + PATIENCE_S
    while True:
        messages, waiting = await client.unread()
        if not messages and (not waiting or trio.current_time() > patience):
            break
        await trio.sleep(0.02 if messages else 0.1)
    if waiting:
        click.echo(
            f"posthouse: {waiting} more cannot be read yet: what comes before them, or their sender's record or key, "
            "has not come. They are kept; try again later",
            err=True,
        )
    scope.cancel()


class People:
    """Names of users and groups, from the stores on this machine."""

    def __init__(self, home: Home, client: Client) -> None:
        self._home = home
        self._client = client
        self._users: dict[bytes, str] = {}
        self._titles: dict[bytes, str] = {}

    async def learn(self, message: Message) -> None:
        """Look up the names that a message needs."""
        if message.user not in self._users:
            for name in reversed(self._home.names()):
                self._users[card_of(self._home, name).user] = name
        if message.group is not None and message.group not in self._titles:
            self._titles = {known.id: known.title for known in await self._client.groups()}

    def user(self, user: bytes) -> str | None:
        """The first name on this machine that has the user's card."""
        return self._users.get(user)

    def group(self, group: bytes) -> str:
        """The group's title, as this client knows it."""
        return self._titles.get(group, f"group {group.hex()[:8]}")


def choose_sink(names: People, out: Path | None, as_json: bool, received: Path) -> Sink:
    """Where messages go, by the options and by what stdout is."""
    if as_json:
        return JsonLines(names, out)
    if out is not None:
        return Files(out)
    return Terminal(names, received) if sys.stdout.isatty() else Pipe()
