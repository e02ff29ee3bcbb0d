"""What the demo has to say at its end: a table for people, JSON for programs, and an exit status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.audit.shelf import Shelf
from cluster.audit.table import number, shelf_table, show_findings
from cluster.demo.ledger import Account


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
    users_moved: int = 0

    @property
    def shelves(self) -> list[Shelf]:
        return [shelf for audit in self.audits for shelf in audit.shelves]

    @property
    def foreign_bytes(self) -> int:
        return sum(shelf.foreign_bytes for shelf in self.shelves)

    @property
    def left_behind(self) -> int:
        """Bytes of envelopes of who moved away, found in the region that was left."""
        return sum(shelf.left_behind for shelf in self.shelves)

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
            "left_behind_bytes": self.left_behind,
            "plaintext_found": self.in_the_open,
            "users_moved": self.users_moved,
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
    findings = [*result.failures, *(f"{shelf.label}: {text}" for shelf in result.shelves for text in shelf.findings)]
    show_findings(console, findings)
    if result.clean:
        console.print("[bold green]Nothing lost, nothing twice, nothing out of order, nothing where it must not be.[/]")
    else:
        console.print("[bold red]Something went wrong: see above.[/]")


def _resting(audit: Audit) -> Table:
    """A line for each node; whose it is, below, for each region, since the nodes of a region have the same."""
    table = shelf_table(f"What rests where, {audit.when}", audit.shelves, sizes=True)
    regions: dict[str, str] = {}
    for shelf in audit.shelves:
        regions.setdefault(shelf.region, _whose(shelf))
    table.caption = "\n".join(f"{region}: {whose}" for region, whose in regions.items() if whose)
    return table


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
    table.add_row("lost", number(account.lost))
    table.add_row("duplicated", number(account.duplicated))
    table.add_row("reordered", number(account.reordered))
    table.add_row("strange (never sent, or to another)", number(account.strange))
    table.add_row("foreign bytes at rest", number(result.foreign_bytes))
    table.add_row("of it, left behind by who moved away", number(result.left_behind))
    table.add_row("plaintext, keys or unsealed bytes found", number(result.in_the_open))
    table.add_row("late, after a marked gap (allowed)", str(account.late))
    table.add_row("seen twice on the wire (allowed)", str(result.wire_duplicates))
    table.add_row("users moved to another region", str(result.users_moved))
    table.add_row("nodes of each region", str(result.nodes))
    table.add_row("nodes killed", str(result.nodes_killed))
    table.add_row("stores wiped", str(result.stores_wiped))
    table.add_row("seconds", f"{result.seconds:.1f}")
    return table
