"""`posthouse receipt …`: what a majority of a cell's nodes signed about an envelope."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from cluster.cli.options import dir_option
from cluster.local.home import Home, read_root
from relay.certificates import certify
from relay.core.envelope import envelope_id
from relay.core.receipts import Verified, read_receipt, verify_receipt
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import TrustError
from relay.limits import MAX_ENVELOPE, MAX_RECEIPT, SLOT_BITS

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


@click.group()
def receipt() -> None:
    """Signed receipts of envelopes."""


@receipt.command()
@click.option("--root", "root_path", type=click.Path(path_type=Path), metavar="FILE",
              help="The federation's root document.  [default: root.bin in --dir]")  # fmt: skip
@click.option("--federation-id", "pin", metavar="HEX", help="The federation id that the root document must have.")
@click.option("--log-id", metavar="HEX", help="The log that the receipt must be of: the cell's log of today, say.")
@click.option("--envelope", "envelope_path", type=_FILE, metavar="FILE", help="The envelope that it must be of.")
@dir_option
@click.argument("file", type=_FILE)
def verify(
    file: str, root_path: Path | None, pin: str | None, log_id: str | None, envelope_path: str | None, directory: Path
) -> None:
    """Verify the signed receipt in FILE (-: standard input), offline, by the root document alone.

    Says who stands by it, for what, what that proves, and what it does not. The root document must be one that lists
    the nodes that signed, and that was valid when they did: keep it with the receipt.

    Exit status 0 when it holds; 5, with the reason, when a signature, certificate, path or byte of it does not.
    """
    with click.open_file(file, "rb") as source:
        data = source.read(MAX_RECEIPT + 1)
    own = None
    if envelope_path is not None:
        with click.open_file(envelope_path, "rb") as source:
            own = envelope_id(source.read(MAX_ENVELOPE + 1))
    time = read_receipt(data).time  # not believed yet: a root document that had run out by then is refused
    root = read_root(root_path or Home(directory).root_path, time)
    if pin is not None and root.federation_id != _hex(pin, 32, "--federation-id"):
        raise TrustError("the root document is another federation's", "Get the right one from somebody you trust")
    log = _hex(log_id, 16, "--log-id") if log_id is not None else None
    for line in told(verify_receipt(data, root, certify, envelope_id=own, log_id=log), root):
        click.echo(line)


def told(verified: Verified, root: Root) -> list[str]:
    """A receipt that holds, in words."""
    leaf, statement = verified.leaf, verified.statement
    stored = leaf.code == Code.STORED
    what = f"stored in {leaf.cell}, the recipient's home cell" if stored else f"accepted in {leaf.cell}, the sender's"
    slot = leaf.position - (statement.index << SLOT_BITS)
    newest = f", newest known there {leaf.newest}" if leaf.newest else ""
    return [
        "this receipt holds",
        f"  envelope    {leaf.id.hex()}",
        f"  outcome     {what}",
        f"  at          {_when(leaf.stored_at)}, by the clocks of the cell",
        f"  expires     {_when(leaf.expires)}",
        f"  sealed for  version {leaf.sealed_for} of its address{newest}",
        f"  place       block {statement.index}, slot {slot}, of log {statement.log_id.hex()}",
        f"  signed by   {', '.join(verified.nodes)}: {len(verified.nodes)} of {verified.of}, {verified.needed} needed",
        "it proves that",
        f"  - nodes whose keys the authority of region {leaf.region} certified attest this, and they are a majority of",
        f"    those that the root document lists for {leaf.cell} (federation {root.payload.federation}, root version"
        f" {root.payload.version});",
        "  - each of them signed after the block was committed on its own disk, and its own fold took the envelope.",
        "it does not prove",
        "  - where in the world a disk stands: a certificate says who vouches, not where;",
        "  - that the envelope is still there, was delivered or read, or that nobody else has a copy;",
        "  - anything, if a majority of those nodes, or the region's authority, lies.",
    ]


def _when(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms after 1970"


def _hex(text: str, size: int, option: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != size:
        raise click.BadParameter(f"{2 * size} hex digits", param_hint=option)
    return found
