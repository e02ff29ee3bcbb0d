"""What `posthouse audit canary look` has to say: where each canary is, whether it may be there, the verdict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from cluster.audit.kit import Canary, Mark
from cluster.audit.shelf import Role
from cluster.audit.sighting import Sighting, Sightings
from cluster.audit.table import show_findings
from relay.core.wire import Code
from relay.limits import KIB

_CODES = {0: "unanswered", **{code.value: code.name.lower() for code in Code}}
_HOME, _WAITS, _FOREIGN = "at home on", "waits in the outbox of", "FOREIGN on"
_GONE = "handed over, and not let go of yet, by"


def show(console: Console, report: Sightings) -> None:
    """A line for each canary, what is wrong, what could not be looked into, and the verdict."""
    wrong = findings(report)
    for canary in report.kit.canaries:
        bad = any(re.search(rf"\b{canary.name}\b", text) for text in wrong)
        sign = "[red]✗[/red]" if bad else "[yellow]·[/yellow]" if report.shut else "[green]✓[/green]"
        console.print(f"{sign} {line(report, canary)}", highlight=False, soft_wrap=True)
    show_findings(console, wrong)
    for text in report.shut:
        console.print(f"  [yellow]not unsealed[/yellow] {text}", highlight=False, soft_wrap=True)
    colour = "red" if not report.clean else "yellow" if report.shut else "green"
    console.print(f"[bold {colour}]{verdict(report)}[/]", highlight=False, soft_wrap=True)


def findings(report: Sightings) -> list[str]:
    """Everything that is wrong, with the node or file where it is."""
    return [*report.findings, *(f"{node.shelf.label}: {text}" for node in report.nodes for text in node.shelf.findings)]


def line(report: Sightings, canary: Canary) -> str:
    """Where a canary is, in words."""
    sightings = [(mark, sighting) for mark in canary.marks for sighting in report.found.get(mark.id, ())]
    states = {_state(mark) for mark in canary.marks}
    state = states.pop() if len(states) == 1 else "stored in part" if states else "never sent"
    unsealed = any(node.unsealed for node in report.nodes)
    said = [state, *(_at_rest(sightings) or ["in no store" if unsealed else "no store was looked into"])]
    if seen := sorted({name for mark in canary.marks for name in mark.seen}):
        said.append(f"delivered to {', '.join(seen)}")
    return f"{canary.name}, {canary.what}: {'; '.join(said)}"


def _at_rest(sightings: list[tuple[Mark, Sighting]]) -> list[str]:
    by: dict[str, dict[tuple[str, int], list[str]]] = {words: {} for words in (_HOME, _WAITS, _GONE, _FOREIGN)}
    for mark, sighting in sightings:
        words = {Role.HOME: _HOME, Role.FOREIGN: _FOREIGN}.get(
            sighting.role, _GONE if mark.code == Code.STORED else _WAITS
        )
        nodes = by[words].setdefault((sighting.node.site.region, sighting.place.block), [])
        if sighting.node.site.node not in nodes:
            nodes.append(sighting.node.site.node)
    return [
        f"{words} " + ", ".join(f"{region}-{'/'.join(nodes)} (block {at})" for (region, at), nodes in where.items())
        for words, where in by.items() if where
    ]  # fmt: skip


def _state(mark: Mark) -> str:
    name = _CODES.get(mark.code, str(mark.code))
    return name if mark.taken or not mark.code else f"refused ({name})"


def verdict(report: Sightings) -> str:
    """One line: what was looked at, and what that shows."""
    shelves, canaries = [node.shelf for node in report.nodes], report.kit.canaries
    pieces = sum(len(canary.marks) for canary in canaries)
    looked = (
        f"{sum(len(node.unsealed) for node in report.nodes)} stores of {len(shelves)} nodes unsealed, "
        f"{sum(shelf.records for shelf in shelves)} records, {sum(shelf.files for shelf in shelves)} files as they lie "
        f"({sum(shelf.file_bytes for shelf in shelves) // KIB} KiB), {sum(node.pages for node in report.nodes)} pages "
        f"of admin ports, {sum(report.borders.values()) // KIB} KiB that crossed borders, {len(report.files)} captures "
        "and other files"
    )
    about = f"{len(canaries)} canaries ({pieces} envelopes)"
    if not report.clean:
        return f"Not proven: {len(findings(report))} findings on {about}; --json has all. Looked at: {looked}"
    if report.shut:
        what = f"not all was looked into: {len(report.shut)} stores were not unsealed; stop their nodes and look again"
        return f"Nothing of {about} was found where it must not be, but {what}. Looked at: {looked}"
    if not report.found:
        what = f"Nothing of {about} is where it must not be, but nothing of them is at rest in these stores either"
        return f"{what}: leave somebody --away, and look before the mail is collected. Looked at: {looked}"
    return f"All {about} are where they may be, and nothing of them anywhere else. Looked at: {looked}"


def write_json(path: Path, report: Sightings) -> None:
    """The whole report as one object."""
    plain = {
        "clean": report.clean and not report.shut,
        "verdict": verdict(report),
        "canaries": [
            {
                "name": canary.name, "what": canary.what, "origin": canary.origin,
                "envelopes": [_plain(report, mark) for mark in canary.marks],
            }
            for canary in report.kit.canaries
        ],
        "nodes": [
            {
                "region": node.site.region, "node": node.site.node, "unsealed": node.unsealed,
                "not_unsealed": node.shut, "blocks": node.shelf.blocks, "records": node.shelf.records,
                "files": node.shelf.files, "file_bytes": node.shelf.file_bytes, "pages": node.pages,
            }
            for node in report.nodes
        ],
        "borders": [{"source": ends[0], "target": ends[1], "bytes": kept} for ends, kept in report.borders.items()],
        "files": dict(report.files),
        "findings": findings(report),
    }  # fmt: skip
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plain)) + b"\n")


def _plain(report: Sightings, mark: Mark) -> dict[str, Any]:
    return {
        "envelope": mark.id.hex(), "state": _state(mark), "belongs_in": mark.homes, "waits_in": mark.waits,
        "delivered_to": mark.seen,
        "at_rest": [
            {
                "node": sighting.node.shelf.label, "file": sighting.place.file, "block": sighting.place.block,
                "record": sighting.place.record, "why_here": sighting.role.value,
            }
            for sighting in report.found.get(mark.id, ())
        ],
    }  # fmt: skip
