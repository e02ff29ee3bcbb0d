"""What audits show on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from cluster.audit.shelf import Shelf
from relay.limits import KIB

MAX_SHOWN: Final = 20  # findings on the terminal


def shelf_table(title: str, shelves: Sequence[Shelf], *, sizes: bool) -> Table:
    """A line for each node, with a rule between regions. `sizes` in KiB, or how many blocks: both are too wide for a
    terminal of 80 columns."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("node", no_wrap=True)
    for column in [name for name, _ in _cells(Shelf(""), sizes)]:
        table.add_column(column, justify="right", no_wrap=True)
    for place, shelf in enumerate(shelves):
        last = place + 1 == len(shelves) or shelves[place + 1].region != shelf.region
        table.add_row(shelf.label, *(text for _, text in _cells(shelf, sizes)), end_section=last)
    return table


def _cells(shelf: Shelf, sizes: bool) -> list[tuple[str, str]]:
    """(column, text) of a node's line."""
    cells: list[tuple[str, int | str]] = [
        ("blocks", shelf.blocks),
        ("at home", shelf.home.total()), ("KiB", shelf.home_bytes // KIB),
        ("outbox", shelf.transit.total()), ("KiB", shelf.transit_bytes // KIB),
        ("foreign", number(shelf.foreign)), ("open", number(shelf.in_the_open)),
        ("files", shelf.files), ("KiB", shelf.file_bytes // KIB),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in cells if name != ("blocks" if sizes else "KiB")]


def show_findings(console: Console, findings: Sequence[str]) -> None:
    """The first of them, and how many more there are."""
    for text in findings[:MAX_SHOWN]:
        console.print(f"  [red]✗[/red] {text}", highlight=False)
    if len(findings) > MAX_SHOWN:
        console.print(f"  … and {len(findings) - MAX_SHOWN} more findings")


def number(count: int) -> str:
    """A count of what should not be."""
    return f"[red]{count}[/red]" if count else "[green]0[/green]"
