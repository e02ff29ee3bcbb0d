"""`posthouse cell …`: look at a cell of several nodes, and change who is in it, while it serves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import click
import msgspec
import trio

from cluster.cli.exits import Exit, deadline
from cluster.cli.options import Decorator, deadline_option, dir_option
from cluster.cli.erasures import collect_receipts, root_of
from cluster.cli.reach import LOOK_S, Reach, reach_of
from cluster.control.api import KEEPS_UP, SILENT, CellView, StoreView
from cluster.local.home import Home
from cluster.local.people import find_card
from cluster.provision import write_public
from relay.core.codec import pack
from relay.errors import OperatorError

LONG_S: Final = 600.0  # seconds; a new store takes over the checkpoint and the log of the others first
SHORT_S: Final = 30.0

_name_argument: Decorator = click.argument("name", metavar="NODE")


def _reaching(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say which cell, and by which of its nodes."""
    for option in (
        dir_option,
        click.option("--region", help="The region, where --dir holds several."),
        click.option(
            "--config", "config", type=click.Path(path_type=Path), envvar="POSTHOUSE_CONFIG", show_envvar=True,
            help="The config of a node that runs on this machine. Without it: all nodes of a federation in --dir.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group()
def cell() -> None:
    """Look after the nodes that together hold a region's log.

    Everything happens while the cell serves. Orders go to the node that leads, over its control socket ([listen]
    control), so that on a server they are given with the --config of that node. The leader takes in by itself any node
    that its root document lists and that comes with an empty disk: as a learner, which votes once it has everything.
    """


@cell.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, as the node says it.")
@_reaching
def status(as_json: bool, config: Path | None, region: str | None, directory: Path) -> None:
    """Show who is in the cell, who leads, and how far each has come.

    Exit status 1 when the cell is not whole: a node that the root lists does not vote, or is behind.
    """
    reach = reach_of(config, directory, region)
    view = trio.run(_look, reach)
    click.echo(msgspec.json.format(msgspec.json.encode(view)).decode() if as_json else describe(view))
    if not view.whole():
        click.get_current_context().exit(Exit.FAILED)


@cell.command("add-node")
@_name_argument
@deadline_option(LONG_S, "Give up waiting after so long; it goes on without this command.")
@_reaching
def add_node(name: str, seconds: float, config: Path | None, region: str | None, directory: Path) -> None:
    """Wait until NODE is a member that votes, and show how it gets there.

    The root document must list NODE (`posthouse init node`), every node of the cell must have been restarted with that
    root document, and NODE must have been started with an empty data directory. The rest happens by itself.
    """
    trio.run(_add, reach_of(config, directory, region), name, seconds)
    click.echo(f"{name} votes, and has what is committed")


@cell.command("remove-node")
@_name_argument
@deadline_option(SHORT_S, "Give up waiting after so long.")
@_reaching
def remove_node(name: str, seconds: float, config: Path | None, region: str | None, directory: Path) -> None:
    """Take NODE out of the cell, running or not.

    Refused while those who would be left are not up to date, too few to serve, or two: add another node first. A node
    that leads hands that over first. Its process ends by itself. Then take it out of the root document:
    `posthouse init drop-node`.
    """
    trio.run(_remove, reach_of(config, directory, region), name, seconds)
    click.echo(f"{name} is no member any more")


@cell.command("replace-node")
@_name_argument
@click.argument("new", required=False, metavar="[NEW]")
@deadline_option(LONG_S, "Give up waiting after so long; what has begun goes on without this command.")
@_reaching
def replace_node(
    name: str, new: str | None, seconds: float, config: Path | None, region: str | None, directory: Path
) -> None:
    """Put another store in the place of NODE's: the new one votes before the old one goes.

    With NEW, another node that the root document lists already: wait until it votes, then remove NODE. Without NEW, the
    same node with an empty disk: stop it, move its data directory away, start it, and see here how it comes back.
    """
    reach = reach_of(config, directory, region)
    if new is None:
        trio.run(_renew, reach, name, seconds)
        click.echo(f"{name} votes with a new store, and has what is committed")
    else:
        trio.run(_replace, reach, name, new, seconds)
        click.echo(f"{new} votes in the place of {name}")


@cell.command("transfer-leader")
@_name_argument
@deadline_option(SHORT_S, "Give up waiting after so long.")
@_reaching
def transfer_leader(name: str, seconds: float, config: Path | None, region: str | None, directory: Path) -> None:
    """Have NODE lead the cell: before its present leader is stopped for long, say."""
    trio.run(_transfer, reach_of(config, directory, region), name, seconds)
    click.echo(f"{name} leads")


@cell.command()
@click.argument("user", metavar="USER")
@click.option("--now", is_flag=True, help="Have the nodes let go of what is left at once (over their control sockets).")
@click.option("--out", type=click.Path(path_type=Path), help="Write the receipts here, for `posthouse audit erasure`.")
@deadline_option(SHORT_S, "Give up waiting after so long.")
@_reaching
def erasure(
    user: str, now: bool, out: Path | None, seconds: float, config: Path | None, region: str | None, directory: Path
) -> None:
    """Get the receipts that nothing is left here of USER, who has moved away.

    USER is an address card, or the name of a client in --dir. Every store of the cell gives a receipt of its own,
    signed with its node's key, once all that waited for USER is handed over and the blocks in which it lay are gone:
    within some minutes by itself. `posthouse audit erasure` checks receipts against the disks of stopped nodes.

    Exit status 1 when a node has no receipt to give in time.
    """
    reach, root = reach_of(config, directory, region), root_of(config, directory)
    whom = find_card(Home(directory), user).user
    missing, receipts = trio.run(collect_receipts, reach, root, whom, now, seconds)
    for _, receipt in receipts:
        click.echo(f"{receipt.node}: nothing of the user below block {receipt.below} of {receipt.cell}")
    if out is not None and receipts:
        write_public(out, pack([signed for signed, _ in receipts]))
    if missing:
        click.echo(f"No receipt from: {', '.join(missing)}", err=True)
        click.get_current_context().exit(Exit.FAILED)


# --- what they do --------------------------------------------------------------------------------
async def _look(reach: Reach) -> CellView:
    return await reach.view()


async def _add(reach: Reach, name: str, seconds: float) -> None:
    with _waiting(seconds):
        view = await reach.view()
        if name not in view.nodes:
            known = ", ".join(view.nodes)
            remedy = "Make it with `posthouse init node`, sign and join the root, and restart the nodes of the cell"
            raise OperatorError(f"the root that {view.node} runs with has no node {name!r}, only {known}", remedy)
        await _until(reach, lambda view: _joining(view, name))


async def _renew(reach: Reach, name: str, seconds: float) -> None:
    with _waiting(seconds):
        view = await reach.view()
        old = view.voter(name)
        if old is None:
            raise OperatorError(f"{name} has no vote in {view.cell}", f"Use: posthouse cell add-node {name}")

        def progress(view: CellView) -> str:
            voting = [store.store for store in view.voters if store.node == name]
            if voting != [old.store] or view.learner(name) is not None:
                return _joining(view, name) or (f"{name}: its old store goes" if old.store in voting else "")
            return f"{name} has store {old.store[:8]} still: stop it, move its data directory away, start it"

        await _until(reach, progress)


async def _replace(reach: Reach, old: str, new: str, seconds: float) -> None:
    view = await reach.view()
    if old == new or old not in {store.node for store in (*view.voters, *view.learners)}:
        members = ", ".join(store.node for store in view.voters)
        raise OperatorError(f"{old} cannot be replaced by {new} in {view.cell}", f"Its voters are: {members}")
    await _add(reach, new, seconds)
    click.echo(f"{new} votes; {old} goes")
    await _remove(reach, old, SHORT_S)


async def _remove(reach: Reach, name: str, seconds: float) -> None:
    with _waiting(seconds):
        view = await reach.view()
        if view.leader == name:
            heirs = [store.node for store in view.voters if store.node != name and store.current]
            if not heirs:
                raise OperatorError(f"{name} leads {view.cell}, and nobody could take over", "Start another node first")
            if not reach.can_order(heirs[0]):
                remedy = f"Run `posthouse cell transfer-leader {heirs[0]}` here, then this again on {heirs[0]}'s server"
                raise OperatorError(f"{name} leads {view.cell}", remedy)
            await _transfer(reach, heirs[0], seconds)
        ordered = ""

        while store := _first_store(view := await reach.view(), name):
            if store.store != ordered:
                await reach.order("remove", name)
                click.echo(f"{name}: store {store.store[:8]} goes")
                ordered = store.store
            await trio.sleep(LOOK_S)


async def _transfer(reach: Reach, name: str, seconds: float) -> None:
    with _waiting(seconds):
        while (view := await reach.view()).leader != name:
            if view.leader:
                await reach.order("transfer", name)
                click.echo(f"{view.leader} hands over to {name}")
            await trio.sleep(5 * LOOK_S if view.leader else LOOK_S)


def _first_store(view: CellView, name: str) -> StoreView | None:
    return next((store for store in (*view.learners, *view.voters) if store.node == name), None)


def _joining(view: CellView, name: str) -> str:
    """How far a node is on its way into the cell; empty when it is there."""
    voter, learner = view.voter(name), view.learner(name)
    if learner is not None:
        return f"{name}: {_state(learner, 'learns')}"
    if voter is None:
        return f"{name}: has not come yet; is it running, with an empty data directory?"
    return "" if voter.current else f"{name}: {_state(voter, 'votes')}"


async def _until(reach: Reach, progress: Callable[[CellView], str]) -> None:
    """Show every new word of `progress`, until it has none left."""
    said = ""
    while text := progress(await reach.view(patient=True)):
        if text != said:
            click.echo(text)
            said = text
        await trio.sleep(LOOK_S)


def _waiting(seconds: float) -> AbstractContextManager[trio.CancelScope]:
    remedy = "See where it stands with `posthouse cell status`"
    return deadline(seconds, f"it was not done within {seconds:g} s", remedy)


# --- showing -------------------------------------------------------------------------------------
def describe(view: CellView) -> str:
    """The cell for people: a line for each store, and for each node without one."""
    lines = [f"{view.cell}  log {view.log[:8]}  term {view.term}  block {view.commit}  (as {view.node} sees it)"]
    members = [(store, "votes") for store in view.voters] + [(store, "learns") for store in view.learners]
    for store, role in members:
        leads = ", leads" if store.node == view.leader and store == view.voter(store.node) else ""
        listed = "" if store.node in view.nodes else "; the root does not list it"
        lines.append(f"  {store.node:<8} {store.store[:8]:<8}  {_state(store, role + leads)}{listed}")
    absent = [node for node in view.nodes if node not in {store.node for store, _ in members}]
    lines += [f"  {node:<8} {'–':<8}  is in the root, and not in the cell" for node in absent]
    if not view.leader:
        lines.append("  nobody leads: fewer than half of the voters can be reached, or they are choosing")
    lines.append(_verdict(view))
    return "\n".join(lines)


def _state(store: StoreView, role: str) -> str:
    if (store.silent or 0) >= SILENT:
        role += f", silent for {(store.silent or 0) // 1000} s"
    if store.behind is None:
        return f"{role}, not heard of yet"
    return role if store.behind <= KEEPS_UP else f"{role}, {store.behind} blocks behind"


def _verdict(view: CellView) -> str:
    if view.whole():
        known = "" if view.leader == view.node else f" Who is silent is known where the leader runs: {view.leader}."
        return f"Whole: any {(len(view.nodes) - 1) // 2} of {len(view.nodes)} may fail.{known}"
    voting = sum(store.current for store in view.voters)
    return f"Not whole: {voting} of the {len(view.nodes)} nodes that the root lists vote and keep up."
