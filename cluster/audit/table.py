"""What audits show on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from cluster.audit.shelf import Shelf
from relay.limits import KIB

MAX_SHOWN: Final = 20  # findings on the terminal


def shelf_table(title: str, shelves: Sequence[Shelf]) -> Table:
    """A line for each node, with a rule between regions."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("node", no_wrap=True)
    for column in ("blocks", "at home", "KiB", "outbox", "KiB", "foreign", "open", "files", "KiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for place, shelf in enumerate(shelves):
        last = place + 1 == len(shelves) or shelves[place + 1].region != shelf.region
        numbers = (
            shelf.blocks, shelf.home.total(), shelf.home_bytes // KIB, shelf.transit.total(),
            shelf.transit_bytes // KIB, number(shelf.foreign), number(shelf.in_the_open), shelf.files,
            shelf.file_bytes // KIB,
        )  # fmt: skip
        table.add_row(shelf.label, *map(str, numbers), end_section=last)
    return table


def show_findings(console: Console, findings: Sequence[str]) -> None:
    """The first of them, and how many more there are."""
    for text in findings[:MAX_SHOWN]:
        console.print(f"  [red]✗[/red] {text}", highlight=False)
    if len(findings) > MAX_SHOWN:
        console.print(f"  … and {len(findings) - MAX_SHOWN} more findings")


def number(count: int) -> str:
    """A count of what should not be."""
    return f"[red]{count}[/red]" if count else "[green]0[/green]"
