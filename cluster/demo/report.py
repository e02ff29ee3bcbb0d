"""What the demo has to say at its end: a table for people, JSON for programs, and an exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.demo.audit import Shelf
from cluster.demo.ledger import Account
from relay.limits import KIB


@dataclass(frozen=True)
class Audit:
    """One look at all nodes: when in the story, and what rested in each region."""

    when: str
    shelves: list[Shelf]


@dataclass(frozen=True)
class Result:
    """Everything that was counted. `failures` are promises of the story itself that did not hold."""

    account: Account
    envelopes: int
    wire_duplicates: int
    audits: Sequence[Audit]
    nodes_killed: int
    seconds: float
    failures: Sequence[str] = ()
    nodes: int = 1
    stores_wiped: int = 0

    @property
    def shelves(self) -> list[Shelf]:
        return [shelf for audit in self.audits for shelf in audit.shelves]

    @property
    def foreign_bytes(self) -> int:
        return sum(shelf.foreign_bytes for shelf in self.shelves)

    @property
    def in_the_open(self) -> int:
        return sum(shelf.in_the_open for shelf in self.shelves)

    @property
    def clean(self) -> bool:
        return self.account.clean and all(shelf.clean for shelf in self.shelves) and not self.failures

    def as_json(self) -> dict[str, int | float]:
        return {
            "sent": self.account.sent,
            "delivered": self.account.delivered,
            "lost": self.account.lost,
            "duplicated": self.account.duplicated,
            "wire_duplicates": self.wire_duplicates,
            "reordered": self.account.reordered,
            "foreign_bytes_at_rest": self.foreign_bytes,
            "plaintext_found": self.in_the_open,
            "nodes_killed": self.nodes_killed,
            "seconds": round(self.seconds, 1),
        }


def write_json(path: Path, result: Result) -> None:
    path.write_text(json.dumps(result.as_json(), indent=2) + "\n", "utf-8")


def show(console: Console, result: Result) -> None:
    """Print where everything rests, what was counted, and the verdict."""
    for audit in result.audits:
        console.print(_resting(audit))
    console.print(_counted(result))
    findings = [*result.failures, *(f"{_place(shelf)}: {text}" for shelf in result.shelves for text in shelf.findings)]
    for text in findings[:MAX_SHOWN]:
        console.print(f"  [red]✗[/red] {text}", highlight=False)
    if len(findings) > MAX_SHOWN:
        console.print(f"  … and {len(findings) - MAX_SHOWN} more findings")
    if result.clean:
        console.print("[bold green]Nothing lost, nothing twice, nothing out of order, nothing where it must not be.[/]")
    else:
        console.print("[bold red]Something went wrong: see above.[/]")


MAX_SHOWN = 20  # findings on the terminal


def _resting(audit: Audit) -> Table:
    """A line for each node; whose it is, below, for each region, since the nodes of a region have the same."""
    table = Table(title=f"What rests where, {audit.when}", title_justify="left", caption_justify="left")
    table.add_column("node", no_wrap=True)
    for column in ("at home", "KiB", "outbox", "KiB", "foreign", "open", "files", "KiB"):
        table.add_column(column, justify="right", no_wrap=True)
    regions: dict[str, str] = {}
    for place, shelf in enumerate(audit.shelves):
        last = place + 1 == len(audit.shelves) or audit.shelves[place + 1].region != shelf.region
        numbers = (
            shelf.home.total(), shelf.home_bytes // KIB, shelf.transit.total(), shelf.transit_bytes // KIB,
            _number(shelf.foreign_bytes), _number(shelf.in_the_open), shelf.files, shelf.file_bytes // KIB,
        )  # fmt: skip
        table.add_row(_place(shelf), *map(str, numbers), end_section=last)
        regions.setdefault(shelf.region, _whose(shelf))
    table.caption = "\n".join(f"{region}: {whose}" for region, whose in regions.items() if whose)
    return table


def _place(shelf: Shelf) -> str:
    return f"{shelf.region}-{shelf.node}" if shelf.node else shelf.region


def _whose(shelf: Shelf) -> str:
    home = [f"{name} {count}" for name, count in sorted(shelf.home.items())]
    return ", ".join(home + [f"for {name} {count}" for name, count in sorted(shelf.transit.items())])


def _counted(result: Result) -> Table:
    account = result.account
    table = Table(title="What was counted", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_row("messages sent", str(account.sent))
    table.add_row("envelopes they took", str(result.envelopes))
    table.add_row("delivered to devices", f"{account.delivered} of {account.expected}")
    table.add_row("lost", _number(account.lost))
    table.add_row("duplicated", _number(account.duplicated))
    table.add_row("reordered", _number(account.reordered))
    table.add_row("strange (never sent, or to another)", _number(account.strange))
    table.add_row("foreign bytes at rest", _number(result.foreign_bytes))
    table.add_row("plaintext, keys or unsealed bytes found", _number(result.in_the_open))
    table.add_row("late, after a marked gap (allowed)", str(account.late))
    table.add_row("seen twice on the wire (allowed)", str(result.wire_duplicates))
    table.add_row("nodes of each region", str(result.nodes))
    table.add_row("nodes killed", str(result.nodes_killed))
    table.add_row("stores wiped", str(result.stores_wiped))
    table.add_row("seconds", f"{result.seconds:.1f}")
    return table


def _number(count: int) -> str:
    return f"[red]{count}[/red]" if count else "[green]0[/green]"
