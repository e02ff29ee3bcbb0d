"""`posthouse audit verify | show | checkpoint`: the audit logs of nodes and registrars."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from cluster.audit.trails import Log, check_key, find_logs, hold_together, read_log, without_log
from cluster.cli.exits import Exit
from cluster.core.auditlog import Entry, whose_log
from relay.core.trust import Root, verify_root
from relay.errors import OperatorError, ProtocolError, TrustError

_PATH: Final = click.Path(path_type=Path)
_paths = click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=_PATH)
_ROOT: Final = "root.bin"
_UP: Final = 5  # directories above a log's own in which the root document is looked for


@click.command()
@_paths
@click.option("--root", "root_path", type=_PATH, metavar="FILE", help="The root document.  [default: root.bin above]")
@click.option(
    "--checkpoint", "checkpoints", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE", help="A checkpoint that was kept (`posthouse audit checkpoint`). May be given more than once.",
)  # fmt: skip
@click.option("--lost", multiple=True, metavar="ID", help="A log that is known to be gone, with a disk say.")
def verify(
    paths: tuple[Path, ...], root_path: Path | None, checkpoints: tuple[Path, ...], lost: tuple[str, ...]
) -> None:
    """Check audit logs: every entry, every signature, and what others keep of them.

    PATH is the directory of a federation, a region, a node or a registrar, a copy of one, or a file of an audit log.
    Nodes may run. Give all nodes of a cell together: each notes the others' signed checkpoints, and so it is found when
    the newest entries of one of them, or its whole log, were taken away.

    Says in words what is wrong, and where. Exit status 0 says that all of it holds; 5, that something does not.
    """
    logs = [read_log(files) for path in dict.fromkeys(paths) for files in find_logs(path)]
    for log in logs:
        root = _root_of(root_path, log)
        if root is not None:
            check_key(log, root)
    bare = without_log(paths, logs)
    judged = hold_together(logs, [(path.name, path.read_bytes()) for path in checkpoints], lost, bare)
    judged.findings += [f"{whose} has its data in {data}, and no audit log" for whose, data in bare.items()]
    for log in logs:
        _tell(log, _root_of(root_path, log) is not None)
    for finding in judged.findings:
        click.echo(f"BAD   {finding}")
    if judged.elsewhere:
        click.echo(f"note  not looked at, though entries here speak of them: {', '.join(sorted(judged.elsewhere))}")
    if judged.findings or any(log.findings for log in logs):
        click.echo("Keep all of it as it is, and compare it with copies and the other nodes.", err=True)
        click.get_current_context().exit(Exit.UNTRUSTED)
    held = f", {judged.held} checkpoint(s) kept elsewhere among them" if judged.held else ""
    click.echo(f"good  {len(logs)} log(s), {sum(len(log.roots) for log in logs)} entries{held}")


@click.command()
@_paths
@click.option("--seen", is_flag=True, help="Also what was seen of other nodes' logs.")
def show(paths: tuple[Path, ...], seen: bool) -> None:
    """List the entries of audit logs: when, who, what, and what came of it.

    As far as they hold: a log is read as `posthouse audit verify` reads it, which says more. Exit status 5 where one
    does not hold.
    """

    def say(entry: Entry) -> None:
        if entry.what != "seen" or seen:
            click.echo(line_of(entry))

    bad = False
    for path in dict.fromkeys(paths):
        for files in find_logs(path):
            click.echo(f"# {files[0].parent}")
            log = read_log(files, say)
            for finding in log.findings:
                click.echo(f"BAD   {finding}")
            bad = bad or bool(log.findings)
    if bad:
        click.get_current_context().exit(Exit.UNTRUSTED)


def line_of(entry: Entry) -> str:
    """An entry for people."""
    about = " ".join(
        f"{name}={','.join(value) if isinstance(value, list) else value}"
        for name, value in entry.about.items()
        if name not in ("tree", "key", "certificate", "checkpoint")
    )
    return f"{entry.n:>6}  {entry.at}  {entry.who:<10} {entry.what:<20} {about}  {entry.outcome}".rstrip()


@click.command()
@click.argument("path", metavar="PATH", type=_PATH)
def checkpoint(path: Path) -> None:
    """Print the newest signed checkpoint of the audit log in PATH, to be kept elsewhere.

    It has the number of entries and the hash of all of them, and nothing that is in them: a signed note in the form of
    c2sp.org/tlog-checkpoint. `posthouse audit verify --checkpoint FILE` holds the log against it later. A running node
    gives it at /audit on its admin port.
    """
    found = find_logs(path)
    if len(found) > 1:
        places = ", ".join(str(files[0].parent) for files in found)
        raise OperatorError(f"{path} has {len(found)} audit logs: {places}", "Name one of them")
    log = read_log(found[0])
    if log.findings or log.place is None:
        raise TrustError(f"{log.directory}: {log.findings[0] if log.findings else 'it is empty'}", "See `audit verify`")
    click.echo(log.place.checkpoint().encode(), nl=False)


def _tell(log: Log, by_root: bool) -> None:
    if log.key is None:
        click.echo(f"{log.directory}:")
    else:
        whose, number = whose_log(log.key.name)
        trust = "" if by_root else " (by its own word: no root document)"
        click.echo(f"{log.directory}: log {number} of {whose}{trust}, entries {log.first} to {log.size - 1}")
    for finding in log.findings:
        click.echo(f"BAD   {finding}")
    if log.torn:
        click.echo("note  its last line is cut short, as by a crash in the middle of an append that was not reported")


def _root_of(path: Path | None, log: Log) -> Root | None:
    """The root document by which a log's key is judged. Raises OperatorError, TrustError."""
    above = [parent / _ROOT for parent in list((log.directory.absolute() / "x").parents)[:_UP]]
    path = path or next((one for one in above if one.is_file()), None)
    if path is None:
        return None
    try:
        return verify_root(path.read_bytes(), 0, None)  # that it has run out is no reason not to look
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Name the root document") from None
    except ProtocolError as error:
        raise OperatorError(f"{path} is no root document: {error.text}", "Name another with --root") from None
