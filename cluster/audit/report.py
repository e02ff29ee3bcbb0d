"""What `posthouse audit residency` has to say: what was looked at, whose it is and by what right, and what is wrong."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from cluster.audit.register import short
from cluster.audit.residency import MAX_PIECES, NodeReport, Proof, Report, since
from cluster.audit.shelf import Found, Role, Shelf, Verdict
from cluster.audit.table import MAX_SHOWN, shelf_table, show_findings

NO_STORE: Final = "no store here: it was never started, or its disk was emptied"


def show(console: Console, report: Report) -> None:
    """A table, a line for each user or group and each outbox of a region, what is wrong, and the verdict."""
    payload = report.root.payload
    console.print(f"federation {payload.federation}, root version {payload.version} ({short(report.root.digest)})")
    for node in report.nodes:
        console.print(f"{node.shelf.label} ({node.site.cell}): {', '.join(node.files) or NO_STORE}", highlight=False)
    console.print(shelf_table("What rests where", [node.shelf for node in report.nodes], sizes=False))
    for region in dict.fromkeys(node.site.region for node in report.nodes):
        _show_proofs(console, region, [node for node in report.nodes if node.site.region == region])
    findings = [f"{node.shelf.label}: {text}" for node in report.nodes for text in node.shelf.findings]
    show_findings(console, [*report.findings, *findings])
    console.print(f"[bold {'green' if report.clean else 'red'}]{verdict(report)}[/]", highlight=False)


def verdict(report: Report) -> str:
    """One line: what was looked at, and what that shows."""
    shelves = [node.shelf for node in report.nodes]
    at_rest = sum(shelf.home.total() + shelf.transit.total() for shelf in shelves)
    foreign = sum(shelf.foreign for shelf in shelves)
    of = " (those with the lowest ids)" if report.pieces == MAX_PIECES else ""
    looked = (
        f"{sum(shelf.stores for shelf in shelves)} stores of {len(shelves)} nodes, "
        f"{sum(shelf.blocks for shelf in shelves)} blocks, {sum(shelf.records for shelf in shelves)} records, "
        f"{sum(shelf.rows for shelf in shelves)} checkpoint rows; {sum(shelf.files for shelf in shelves)} files "
        f"scanned for pieces of {report.pieces} envelopes{of}"
    )
    if not report.clean:
        open_ = sum(shelf.in_the_open for shelf in shelves)
        return f"Not proven: {foreign} foreign, {open_} in the open; --json has all findings. Looked at: {looked}"
    if not at_rest:
        return f"No envelope rests here, so that nothing was there to prove. Looked at: {looked}"
    proven = f"All {at_rest} envelopes at rest (each node's copy counts) belong there, by signed records"
    return f"{proven}. Looked at: {looked}"


def _show_proofs(console: Console, region: str, nodes: list[NodeReport]) -> None:
    proofs: Counter[Proof] = Counter()
    oldest: dict[Proof, int] = {}
    for node in nodes:  # they have the same, more or less
        proofs |= node.proofs
        oldest |= {proof: min(at, oldest.get(proof, at)) for proof, at in node.since.items()}
    for proof, count in sorted(proofs.items(), key=_order)[:MAX_SHOWN]:
        console.print(f"  {region}: {count} {_said(proof, oldest[proof])}", highlight=False, soft_wrap=True)
    if len(proofs) > MAX_SHOWN:
        console.print(f"  {region}: … and {len(proofs) - MAX_SHOWN} more lines; --json has all")


def _order(item: tuple[Proof, int]) -> tuple[str, str, str]:
    proof, _ = item
    return proof.role.value, proof.whose, proof.why


def _said(proof: Proof, at: int) -> str:
    if proof.role is Role.TRANSIT:
        return f"in the outbox for {proof.whose} since {_time(at)}: {proof.why}"
    return f"at home, for {proof.whose}: {proof.why}"


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def line(shelf: Shelf, found: Found, verdict: Verdict) -> str:
    """One envelope, for --each."""
    what = f"{shelf.label}: {found.place}: envelope {short(found.id)}, {len(found.envelope)} bytes, "
    if verdict.role is Role.FOREIGN:
        return f"{what}foreign: {verdict.why}"
    return what + _said(Proof(verdict.role, verdict.whose[0], verdict.why), since(found))


def write_json(path: Path, report: Report) -> None:
    """The whole report as one object."""
    plain = {
        "clean": report.clean,
        "verdict": verdict(report),
        "federation": report.root.payload.federation,
        "root": {"version": report.root.payload.version, "digest": report.root.digest.hex()},
        "pieces": report.pieces,
        "nodes": [_plain(node) for node in report.nodes],
        "findings": report.findings,
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plain)) + b"\n")


def _plain(node: NodeReport) -> dict[str, Any]:
    shelf = node.shelf
    return {
        "region": node.site.region, "cell": node.site.cell, "node": node.site.node, "stores": node.files,
        "blocks": shelf.blocks, "records": shelf.records, "checkpoint_rows": shelf.rows,
        "at_home": shelf.home.total(), "at_home_bytes": shelf.home_bytes,
        "in_outbox": shelf.transit.total(), "in_outbox_bytes": shelf.transit_bytes,
        "foreign": shelf.foreign, "foreign_bytes": shelf.foreign_bytes, "in_the_open": shelf.in_the_open,
        "files": shelf.files, "file_bytes": shelf.file_bytes,
        "envelopes": [
            {
                "why_here": proof.role.value, "whose": proof.whose, "by": proof.why, "count": count,
                "since_ms": node.since[proof],
            }
            for proof, count in sorted(node.proofs.items(), key=_order)
        ],
        "foreign_envelopes": [
            {
                "file": one.place.file, "block": one.place.block, "record": one.place.record,
                "staged": one.place.staged, "envelope": one.envelope.hex(), "bytes": one.size, "whose": one.whose,
                "home_region": one.home or None, "why": one.why,
            }
            for one in node.foreign
        ],
        "findings": shelf.findings,
    }  # fmt: skip
