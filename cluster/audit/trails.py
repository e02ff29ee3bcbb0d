"""Audit logs as they lie on disks: each read from its first line to its last, held against what others keep of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cluster.audit.scan import files_below
from cluster.audit.sites import CONFIG, read_site
from cluster.core.auditlog import (
    LET_GO, OPENING, REGISTRAR, RUN, SEEN, AuditBroken, Entry, Kept, Place, follow, lines_of, read_opening, verify_kept,
    whose_log,
)  # fmt: skip
from relay.core.tlog import VerifierKey, parse_checkpoint, parse_note
from cluster.trail import DIRECTORY, SUFFIX, files_in
from relay.certificates import certify
from relay.core.trust import Root
from relay.errors import OperatorError, TrustError
from relay.journal.files import STORE_FILE

_SHORT: Final = 8  # hex digits of a root in texts
Say = Callable[[Entry], None]


@dataclass
class Log:
    """One audit log. `roots`: the tree's root after each entry, from entry `first` on; `findings`: what is wrong."""

    directory: Path
    key: VerifierKey | None = None
    certificates: set[bytes] = field(default_factory=set)
    first: int = 0
    roots: list[bytes] = field(default_factory=list)
    seen: list[tuple[int, str]] = field(default_factory=list)  # entries that have checkpoints of others' logs
    let_go: int = 0  # entries below this one may be missing: the log itself says so
    place: Place | None = None
    torn: bool = False
    runs: bool = False  # a process writes it, and not somebody who signs with a registrar's key by hand
    broken: bool = False  # what follows the first line that does not hold was not looked at
    findings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Entries that hold, with those that were let go."""
        return self.first + len(self.roots)

    @property
    def whose(self) -> str:
        """REGION/CELL/NODE or REGION/registrar, by its own word; empty where that cannot be read."""
        return whose_log(self.key.name)[0] if self.key else ""


def find_logs(path: Path) -> list[list[Path]]:
    """The files of each audit log in or below `path`; of one file, that alone. Raises OperatorError where none is."""
    if path.is_file():
        return [[path]]
    directories = sorted({file.parent for file in files_below(path) if file.suffix == SUFFIX}) if path.is_dir() else []
    logs = [files for directory in directories if (files := files_in(directory))]
    if not logs:
        raise OperatorError(f"{path} has no audit log", "Give a node's or a registrar's directory, or several")
    return logs


def read_log(files: list[Path], say: Say | None = None) -> Log:
    """Every line of a log; `say` is told each entry that holds. Raises OperatorError where a file cannot be read."""
    log = Log(files[0].parent)
    for file in files:
        if log.broken:
            break
        try:
            data = file.read_bytes()
        except OSError as error:
            raise OperatorError(f"{file}: {error.strerror}", "Run this as the user that may read it") from None
        _read_file(log, file, data, file is files[-1], say)
    if log.first > log.let_go and files_in(log.directory) == files:
        log.findings.append(f"entries 0 to {log.first - 1} are missing, and no entry says that they were let go")
    return log


def _read_file(log: Log, file: Path, data: bytes, last: bool, say: Say | None) -> None:
    number = 0
    try:
        for number, line in enumerate(lines_of(data), 1):
            if last and not line.endswith(b"\n"):
                log.torn = True  # of an append that did not come to its end
                return
            _read_line(log, line, begins=number == 1, say=say)
        if not data and not last:
            raise AuditBroken("the file is empty")
    except AuditBroken as error:
        log.broken = True
        end = last and number == data.count(b"\n") + (not data.endswith(b"\n"))
        hint = " (the last one: a power cut may leave that, and the next start takes it away)" if end else ""
        log.findings.append(f"{file.name}, line {number}: {error.text}{hint}")


def _read_line(log: Log, line: bytes, *, begins: bool, say: Say | None) -> None:
    if begins:
        place, certificate = read_opening(line)
        if log.place is None:
            log.key, log.place, log.first = place.log, place, place.tree.size
        log.certificates.add(certificate)
    assert log.place is not None, "a file begins with its first line"
    log.place, entry = follow(log.place, line)
    if begins is not (entry.what == OPENING):
        raise AuditBroken(f"entry {entry.n} begins a file, and does not stand at the beginning of one")
    log.roots.append(log.place.tree.root())
    log.runs |= entry.what == RUN or log.whose.rpartition("/")[2] != REGISTRAR
    if entry.what == SEEN:
        log.seen.append((entry.n, str(entry.about.get("checkpoint", ""))))
    elif entry.what == LET_GO:
        below = entry.about.get("below")
        log.let_go = max(log.let_go, below) if isinstance(below, int) else log.let_go
    if say is not None:
        say(entry)


# --- whose it is ---------------------------------------------------------------------------------
def check_key(log: Log, root: Root) -> None:
    """By the root document: the key is that of the node, or of the registrar, whose log it says to be."""
    if log.key is None:
        return
    region, _, rest = log.whose.partition("/")
    try:
        if rest == REGISTRAR:
            own = root.region(region)
            if log.key.public not in {own.registrar_key, *(one.key for one in own.earlier)}:
                log.findings.append(f"it is signed with another key than that of the registrar of {region}")
            return
        for certificate in log.certificates:
            proven = certify(certificate, root)
            if (f"{proven.cell}/{proven.node}", proven.key) != (log.whose, log.key.public):
                log.findings.append(f"its certificate is of {proven.cell}/{proven.node}, or of another key")
    except TrustError as error:
        log.findings.append(f"whose it is does not hold: {error.text}")


# --- what others keep ----------------------------------------------------------------------------
@dataclass
class Judged:
    """What came of holding logs against what was kept elsewhere. `held`: checkpoints that were found in their logs;
    `elsewhere`: names of logs of nodes that were not looked at."""

    held: int = 0
    elsewhere: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)


def without_log(paths: Iterable[Path], logs: list[Log]) -> dict[str, Path]:
    """Nodes whose config and data lie in or below `paths`, and no audit log: whose, and where it should be. Raises
    OperatorError for a config that cannot be read."""
    have = {log.directory.resolve() for log in logs}
    found = {}
    for config in [file for path in paths if path.is_dir() for file in files_below(path) if file.name == CONFIG]:
        site = read_site(config)
        if (site.data / STORE_FILE).exists() and (site.data / DIRECTORY).resolve() not in have:
            found[f"{site.cell}/{site.node}"] = site.data
    return found


def hold_together(
    logs: list[Log], files: Iterable[tuple[str, bytes]], lost: Iterable[str], bare: Iterable[str] = ()
) -> Judged:
    """Every checkpoint that one of the logs has of another, and those of `files` (name, bytes), are of that one
    history. `lost`: ids of logs that are known to be gone; `bare`: whose logs should be there, and are not."""
    judged, gone = Judged(), set(lost)
    here = {one.whose for one in logs if one.runs}.union(bare)
    by_origin = {log.key.name: log for log in logs if log.key is not None}
    if len(by_origin) < len([log for log in logs if log.key is not None]):
        judged.findings.append("one log lies here twice: look at one copy after the other")
    kept = [(f"{log.whose} (entry {n})", note.encode()) for log in logs for n, note in log.seen]
    for by, data in [*kept, *files]:
        try:
            origin = parse_checkpoint(parse_note(data).text).origin
            whose, number = whose_log(origin)
        except TrustError as error:
            judged.findings.append(f"what {by} keeps is no checkpoint of an audit log: {error.text}")
            continue
        if (log := by_origin.get(origin)) is not None:
            _hold(log, data, by, judged)
        elif whose in here and number not in gone:
            text = f"log {number} of {whose} is not here, and {by} keeps a checkpoint of it: it was taken away, or lost"
            if text not in judged.findings:
                judged.findings.append(text)
        elif number not in gone:
            judged.elsewhere.add(whose)
    return judged


def _hold(log: Log, data: bytes, by: str, judged: Judged) -> None:
    assert log.key is not None
    try:
        kept: Kept = verify_kept(data, log.key, by)
    except TrustError as error:
        judged.findings.append(f"what {by} keeps of {log.whose} is not signed by it: {error.text}")
        return
    size, root = kept.checkpoint.size, kept.checkpoint.root
    if size > log.size:
        if not log.broken:
            log.findings.append(
                f"it ends with entry {log.size - 1}, and {by} keeps its signature under {size} entries: "
                f"{size - log.size} at the end were taken away"
            )
    elif size <= log.first:
        pass  # of entries that were let go
    elif log.roots[size - log.first - 1] != root:
        log.findings.append(
            f"of its first {size} entries {by} keeps another signed history ({root.hex()[:_SHORT]}…): it was rewritten "
            "by who has its key"
        )
    else:
        judged.held += 1
