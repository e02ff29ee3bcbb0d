"""What the demo has to say at its end: a table for people, JSON for programs, and an exit status."""

from __future__ import annotations

import json
from collections import Counter
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
    shelves: Sequence[Shelf]


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
    findings = [*result.failures, *(f"{shelf.region}: {text}" for shelf in result.shelves for text in shelf.findings)]
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
    table = Table(title=f"What rests where, {audit.when}", title_justify="left")
    table.add_column("region")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("KiB", justify="right")
    table.add_column("whose")
    for shelf in audit.shelves:
        table.add_row(shelf.region, "envelopes, at home", *_counts(shelf.home, shelf.home_bytes, ""))
        table.add_row("", "outbox copies of own senders", *_counts(shelf.transit, shelf.transit_bytes, "for "))
        table.add_row("", "foreign bytes", _number(shelf.foreign_bytes))
        scanned = f"scanned: {shelf.files} files, {shelf.file_bytes // KIB} KiB"
        table.add_row("", "found in the open", _number(shelf.in_the_open), "", scanned, end_section=True)
    return table


def _counts(counts: Counter[str], size: int, word: str) -> tuple[str, str, str]:
    whose = ", ".join(f"{word}{name} {count}" for name, count in sorted(counts.items()))
    return str(counts.total()), str(size // KIB), whose


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
    table.add_row("nodes killed", str(result.nodes_killed))
    table.add_row("seconds", f"{result.seconds:.1f}")
    return table


def _number(count: int) -> str:
    return f"[red]{count}[/red]" if count else "[green]0[/green]"
