"""`posthouse journal …`: look into the store of a stopped node, and start over after damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
import trio

from cluster.audit.sites import read_site
from cluster.cli.exits import Exit
from cluster.cli.options import Decorator
from cluster.config import NodeConfig, load_config
from cluster.control.pages import OPERATOR
from cluster.stopped import Examination, examine, known_store
from cluster.trail import Noting, acting
from relay.errors import OperatorError, PosthouseError, StoreDamaged, StoreLocked
from relay.journal.files import REMOVED, REPAIRED, check_repaired, put_in_place, store_exists
from relay.journal.inspect import open_stopped
from relay.journal.seal import StorageRing

_MIB: Final = 1024 * 1024
_directory_argument: Decorator = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
_key_option: Decorator = click.option(
    "--storage-key", "key", type=click.Path(path_type=Path), metavar="FILE",
    help="The region's storage key.  [default: as the node.toml beside DIR says]",
)  # fmt: skip


@click.group()
def journal() -> None:
    """The store of a stopped node: is it whole, what is in it, and what to do when it is damaged.

    DIR is the directory with the node's node.toml, or a data directory: the node's own, or a copy, which has its key
    named by the node.toml beside it or by --storage-key. No node may run on it.
    """


@journal.command()
@_key_option
@_directory_argument
def verify(directory: Path, key: Path | None) -> None:
    """Check everything in the store in DIR: each block and its place in the chain, the checkpoint, what the blocks
    after it do to it, and whether the log reaches as far as the mark beside it says.

    Says in words what is wrong, and exits with status 1 then. Nothing is changed.
    """
    seen = _examine(directory, key)
    click.echo(f"{seen.directory}: {seen.cell}, log {seen.log[:8]}, blocks {seen.first} to {seen.tip}")
    for finding in seen.findings:
        click.echo(f"BAD   {finding}")
    if seen.findings:
        click.echo("Keep the directory, and look at the disk. Then: posthouse journal repair", err=True)
        click.get_current_context().exit(Exit.FAILED)
    checkpoint = f", and the checkpoint after block {seen.checkpoint}" if seen.checkpoint else ""
    click.echo(f"good  {sum(seen.records.values())} records in a whole chain{checkpoint}")


@journal.command("inspect")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@_key_option
@_directory_argument
def inspect_(directory: Path, key: Path | None, as_json: bool) -> None:
    """Show what is in the store in DIR: whose it is, how far its log goes, how much of what, who its cell is."""
    seen = _examine(directory, key)
    if as_json:
        plain = {**asdict(seen), "directory": str(seen.directory), "records": dict(seen.records)}
        click.echo(msgspec.json.format(msgspec.json.encode(plain)))
    else:
        click.echo("\n".join(f"{name:<12} {text}" for name, text in _lines(seen)))
    if seen.findings:
        click.get_current_context().exit(Exit.FAILED)


@journal.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--alone", is_flag=True, help="Most of the cell is lost for good: make a cell of this store.")
@_directory_argument
def repair(directory: Path, yes: bool, alone: bool) -> None:
    """Start over from what can be trusted, after the store in DIR was damaged, lost or restored from a copy.

    A node of a cell of several: its store is set aside in DIR/quarantine. When it is started it joins its cell as a new
    store, and takes everything from the others. Do this while most of the others run, and one node at a time.

    A cell of one node: what holds of its log goes on under a new log id, in a new store; the old one is set aside. What
    came after the first damage is lost. Devices start again from where the log knows them to be.

    With --alone, a cell of several nodes that lost most of its disks for good: what this store has of the log goes on
    under a new log id, with this store as the only voter; the other nodes join it with empty stores. What only the lost
    disks had is lost, although it was confirmed. Compare what is left with `inspect` first, and take the store whose
    end has the highest term, and of those the highest block. Never while most nodes of the cell run, or may come
    back: then there would be two logs. It says what may be lost, and does it with --yes only.
    """
    config = _config_of(directory)
    data, cell = config.paths.data, config.root.cell(config.node.cell)
    nodes = [node.name for node in cell.nodes] if cell else []
    if (data / REPAIRED).exists():
        with _noted(config, kind="finish"):
            _finish(data)
        return
    _check_stopped(data, config)
    if alone:
        _check_alone(config, nodes)
        _say_what_may_be_lost(config, nodes)
        if not yes:
            raise OperatorError("nothing was changed: --alone needs --yes", "First compare what else is left")
        with _noted(config, kind="new log, alone") as note:
            _renew(config, note, alone=True)
    elif len(nodes) > 1:
        others = ", ".join(name for name in nodes if name != config.node.name)
        _ask(yes, f"{config.node.name} will take everything from {others}. Do most nodes of the cell run, and have it?")
        with _noted(config, kind="new store"):
            _set_aside(data)
    else:
        _ask(yes, "What came after the first damage will be lost, and devices are told so. Is there no better copy?")
        with _noted(config, kind="new log") as note:
            _renew(config, note)


@contextmanager
def _noted(config: NodeConfig, kind: str) -> Iterator[Noting]:
    """What is done in the body is in the node's audit log, before and after. Yields how to note more."""
    from cluster.credentials import open_node_trail

    trail = open_node_trail(config.paths, config.node)
    try:
        with acting(trail.note, "journal.repair", OPERATOR, kind=kind, store=known_store(config.paths.data).hex()):
            yield trail.note
    finally:
        trail.close()


# --- what they do --------------------------------------------------------------------------------
def _examine(directory: Path, key: Path | None) -> Examination:
    data, beside = _find(directory, key)
    check_repaired(data)
    return examine(data, StorageRing.load(key or beside))


def _find(directory: Path, key: Path | None) -> tuple[Path, Path]:
    """The data directory, and the storage key that the node.toml in it or beside it names. Raises OperatorError."""
    own, beside = _config_in(directory), _config_beside(directory)
    if own is None and key is not None:
        return directory, key
    config = own or beside
    if config is None:
        raise OperatorError(f"no node.toml in {directory} or above it", "Give --storage-key FILE")
    site = read_site(config, None if own else directory)
    return site.data, site.storage_key


def _config_in(directory: Path) -> Path | None:
    return next((path for path in (directory, directory / "node.toml") if path.is_file()), None)


def _config_beside(directory: Path) -> Path | None:
    path = directory.absolute().parent / "node.toml"
    return path if path.is_file() else None


def _config_of(directory: Path) -> NodeConfig:
    """The config of the node that runs on the data directory, or whose config it is. Raises OperatorError."""
    own, beside = _config_in(directory), _config_beside(directory)
    path = own or beside
    if path is None:
        remedy = "Name the data directory beside a node's config, or the config's directory"
        raise OperatorError(f"no node.toml in {directory} or above it: whose store is it?", remedy)
    config = load_config(path)
    if own is None and config.paths.data.resolve() != directory.resolve():
        remedy = f"Its [paths] data is {config.paths.data}. Nothing was changed"
        raise OperatorError(f"{directory} is not where the node of {path} has its data", remedy)
    return config


def _check_stopped(data: Path, config: NodeConfig) -> None:
    """No node may run on the store; whether it can be read is another matter. Raises StoreLocked, OperatorError."""
    if not (store_exists(data) or any(data.glob("log.sqlite*")) or (data / REMOVED).exists()):
        raise OperatorError(f"{data} has no store", "There is nothing to repair: start the node")
    try:
        with open_stopped(data, StorageRing.load(config.paths.storage_key)):
            return
    except StoreLocked:
        raise
    except PosthouseError:
        return


def _ask(yes: bool, question: str) -> None:
    try:
        if yes or click.confirm(question):
            return
    except click.Abort:  # Ctrl-C, or nobody is there
        click.echo("\nposthouse: nothing was changed. Give --yes where nobody can answer", err=True)
        raise
    click.echo("posthouse: nothing was changed", err=True)
    raise SystemExit(Exit.FAILED)


def _check_alone(config: NodeConfig, nodes: list[str]) -> None:
    if len(nodes) < 2:
        raise OperatorError(f"{config.node.cell} is a cell of one node", "Leave --alone away")
    if (config.paths.data / REMOVED).exists():
        raise OperatorError(f"the cell removed {config.node.name}: its store lacks what came after", "Take another one")


def _say_what_may_be_lost(config: NodeConfig, nodes: list[str]) -> None:
    seen = examine(config.paths.data, StorageRing.load(config.paths.storage_key))
    others = ", ".join(name for name in nodes if name != config.node.name)
    click.echo(f"The store of {config.node.name} ends with block {seen.tip} of term {seen.term}, {_time(seen.to_ms)}.")
    for finding in seen.findings:
        click.echo(f"BAD   {finding}")
    click.echo(
        f"With --alone this is the log of {seen.cell} from now on, and the stores of {others} are given up. What was\n"
        "confirmed and only they had is lost: mail with a receipt, users, groups. No node may run with one of them."
    )


def _finish(data: Path) -> None:
    """A repair that was cut short had made the new store, and no node starts before that is in its place."""
    from cluster.env import RealEnv

    put_in_place(data, known_store(data), RealEnv().clock.wall_ms())
    click.echo("A repair was cut short. It is finished now, as it was begun. Start the node.")


def _set_aside(data: Path) -> None:
    from cluster.env import RealEnv

    store = known_store(data)
    RealEnv().set_aside(data, store)
    (data / REMOVED).unlink(missing_ok=True)  # who repairs a node that its cell removed lets it in again
    click.echo(f"Store {store.hex()[:8]} is in {data / 'quarantine'}.")
    click.echo("Start the node: it joins its cell as a new store.")


def _renew(config: NodeConfig, note: Noting, alone: bool = False) -> None:
    trio.run(_renew_in_portal, config, note, alone)


async def _renew_in_portal(config: NodeConfig, note: Noting, alone: bool) -> None:
    from cluster.core.linkwire import federation_id
    from cluster.env import RealEnv
    from cluster.repair import renew_log
    from relay.journal.portal import open_portal

    async with open_portal() as portal:
        try:
            done = await renew_log(
                config.paths.data, RealEnv(portal), StorageRing.load(config.paths.storage_key),
                cell=config.node.cell, federation=federation_id(config.root), alone=config.node.name if alone else "",
            )  # fmt: skip
        except StoreDamaged as error:
            click.echo(f"posthouse: nothing was changed: {error}", err=True)
            raise SystemExit(Exit.OPERATOR) from None
    note("log.renew", OPERATOR, log=done.log.hex(), first=done.first, tip=done.tip, lost=done.lost)
    click.echo(f"The log goes on as {done.log.hex()[:8]}, with blocks {done.first} to {done.tip}.")
    if done.lost:
        click.echo(f"What came after is lost: {done.lost}")
    click.echo(f"The old store is in {config.paths.data / 'quarantine'}. Start the node.")
    if alone:
        click.echo("It waits for the others: each is started with an empty data directory, or after its own repair.")


# --- showing -------------------------------------------------------------------------------------
def _lines(seen: Examination) -> list[tuple[str, str]]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in seen.records.most_common())
    lines = [
        ("cell", f"{seen.cell}, federation {seen.federation[:16]}"),
        ("log", seen.log),
        ("store", seen.store or "unknown: its mark cannot be read"),
        ("end", f"block {seen.tip}" + (f" of term {seen.term}" if seen.term else "")),
        ("blocks", f"{seen.first} to {seen.tip}, {seen.bytes / _MIB:.1f} MiB of records"),
        ("time", f"{_time(seen.from_ms)} to {_time(seen.to_ms)}" if seen.to_ms else "no block is kept"),
        ("records", kinds or "none"),
        ("checkpoint", f"after block {seen.checkpoint}, {seen.checkpoint_rows} rows" if seen.checkpoint else "none"),
        ("fold", f"{seen.users} users, {seen.waiting} records that somebody still has to get"),
    ]
    lines += [("voter", text) for text in seen.voters] + [("learner", text) for text in seen.learners]
    lines += [("set aside", name) for name in seen.quarantine]
    if seen.founds:
        lines.append(("bootstrap", "its next start makes the log of its cell"))
    return lines + [("BAD", text) for text in seen.findings]


def _time(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
