"""`posthouse send`: one message to one or several users."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import click
import trio

from cluster.cli.exits import deadline
from cluster.cli.options import Decorator, as_option, deadline_option, dir_option, result_file
from cluster.local.home import Home
from cluster.local.people import find_card
from relay.client import MAX_CONTENT, Card, Sent, open_client
from relay.errors import PosthouseError

SEND_S = 60.0  # seconds; a large file over a slow line may need more, and says so

wait_option: Decorator = click.option(
    "--wait",
    type=click.Choice(["accepted", "stored"]),
    default="accepted",
    show_default=True,
    help="Until it is durable in the sender's region (accepted), or in the recipient's (stored).",
)
title_option: Decorator = click.option("--name", "title", help="The file name that recipients see.  [default: FILE's]")
source_argument: Decorator = click.argument(
    "source", metavar="[FILE|-]", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)


@click.command()
@as_option
@click.option("--to", "recipients", multiple=True, required=True, metavar="NAME|CARD", help="May be given repeatedly.")
@wait_option
@title_option
@deadline_option(SEND_S, "Give up waiting after so long; what was to be sent is kept and goes out later.")
@click.option(
    "--receipt", "receipt_path", type=click.Path(path_type=Path), callback=result_file, metavar="FILE",
    help="Write a signed receipt of that to FILE; of more than one envelope also to FILE.2, FILE.3, …",
)
@dir_option
@source_argument
def send(
    name: str, recipients: tuple[str, ...], wait: str, title: str | None, seconds: float, receipt_path: Path | None,
    directory: Path, source: str,
) -> None:
    """Send a FILE, or what comes on standard input, end-to-end encrypted.

    Any bytes are taken as they are, up to 32 MiB. A recipient is the NAME of a user in --dir, or an address card
    (posthouse:region:…). A FILE travels with its name; standard input is a text without one.

    A signed receipt (--receipt) is the word of a majority of the cell's nodes, and holds offline: see
    `posthouse receipt verify`. There is one for each recipient, and for each 96 KiB of a larger message.
    """
    home = Home(directory)
    store, cards = home.store(name), {recipient: find_card(home, recipient) for recipient in recipients}
    content, file_name = read_source(source, title)
    trio.run(_send, store, cards, content, file_name, wait, seconds, receipt_path)


async def _send(
    store: Path, cards: dict[str, Card], content: bytes, title: str, wait: str, seconds: float, path: Path | None
) -> None:
    """Queue for everybody first: what the deadline then cuts short is the waiting, and what was said is kept."""
    failures: list[PosthouseError] = []
    receipts: dict[str, list[bytes]] = {}
    wanted = wait if path is not None else ""

    async def follow(recipient: str, sent: Sent) -> None:
        try:
            await client.outcome(sent, wait)
            click.echo(f"{wait}: {recipient} ({sent.id.hex()[:8]})")
            receipts[recipient] = await client.receipts(sent)
        except PosthouseError as error:
            failures.append(error)

    async with open_client(store) as client:
        queued = [
            (name, await client.send(card, content, name=title, wait="queued", receipt=wanted))
            for name, card in cards.items()
        ]
        with sending_deadline(seconds):
            async with trio.open_nursery() as nursery:
                for recipient, sent in queued:
                    nursery.start_soon(follow, recipient, sent)
    if path is not None:
        in_order = [receipt for name in cards for receipt in receipts.get(name, ())]
        for number, receipt in enumerate(in_order, 1):
            target = path if number == 1 else path.with_name(f"{path.name}.{number}")
            target.write_bytes(receipt)
            click.echo(f"receipt: {target}")
    if failures:
        raise ExceptionGroup("not everything was sent", failures)


def sending_deadline(seconds: float) -> AbstractContextManager[trio.CancelScope]:
    """NoAnswer after `seconds`."""
    return deadline(
        seconds,
        f"no answer within {seconds:g} s",
        "What was to be sent is kept in the sender's store and goes out with the next command. "
        "Does the node run? A longer --deadline waits longer",
    )


def read_source(source: str, title: str | None) -> tuple[bytes, str]:
    """The content, and the name that travels with it. Reads one byte more than may be sent, never without end."""
    if source != "-":
        path = Path(source)
        with path.open("rb") as file:
            content = file.read(MAX_CONTENT + 1)
        return content, os.fsencode(path.name).decode("utf-8", "replace") if title is None else title
    if sys.stdin.isatty():
        click.echo("Write the message; Ctrl-D on a line of its own ends it.", err=True)
    return sys.stdin.buffer.read(MAX_CONTENT + 1), title or ""
