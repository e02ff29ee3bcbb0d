"""`posthouse up`: a federation on this machine, until Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Final

import click
import trio

from cluster.cli.options import DEFAULT_NODES, dir_option, dir_words, nodes_option, now_ms, spoken_command
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.capture import Capture
from cluster.local.layout import FIRST
from cluster.local.people import create_user, introduce
from relay.errors import OperatorError

DEFAULT_REGIONS: Final = ("norden", "sauda", "taiga")
_NAMES: Final = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")


@click.command()
@click.option("--regions", metavar="A,B,C", help=f"Regions to start with.  [default: {','.join(DEFAULT_REGIONS)}]")
@nodes_option(f"Nodes of each region: 1, 3 or 5 (only at the first start).  [default: {DEFAULT_NODES}]", None)
@click.option("--plain", is_flag=True, help="Clients come by ws instead of wss (only at the first start).")
@click.option(
    "--capture", is_flag=True, help="Keep every byte that crosses a border in DIR/captured (from the first start on)."
)
@dir_option
def up(regions: str | None, nodes: int | None, plain: bool, capture: bool, directory: Path) -> None:
    """Run a federation on this machine until Ctrl-C.

    The first start makes it in --dir: a cell of three nodes for each region, keys, certificates, a signed root, and
    users to play with (alice and bob in the first region, one in each other). Later starts resume it: whatever waited
    still waits. Prints what to type next.
    """
    names = DEFAULT_REGIONS if regions is None else tuple(name.strip() for name in regions.split(","))
    if (directory / "federation.json").exists():
        layout = Layout.load(directory)
        if regions is not None and names != layout.regions:
            what = f"{directory} holds the regions {','.join(layout.regions)}"
            raise OperatorError(what, "Leave --regions out to resume it, or choose another --dir")
        if nodes not in (None, size := len(layout.nodes(layout.regions[0]))):
            what = f"{directory} holds regions of {size} node{'s' if size > 1 else ''}"
            raise OperatorError(what, "Leave --nodes out to resume it, or choose another --dir")
    else:
        layout = make_federation(
            directory, names, RealEnv(), nodes=nodes or DEFAULT_NODES, tls=not plain, borders=capture
        )
    if capture and not layout.file.borders:
        what = f"{directory} was made without --capture: its regions reach each other where nobody looks"
        raise OperatorError(what, "Leave --capture out, or choose another --dir")
    people = enrol(layout)
    trio.run(_serve, layout, people, directory, Capture(layout.captured_dir) if capture else None)


def enrol(layout: Layout) -> dict[str, list[str]]:
    """The users of each region, made where they are missing: two in the first region, one in each other."""
    people: dict[str, list[str]] = {}
    names = _endless_names()
    known = layout.home.names()
    for place, region in enumerate(layout.regions):
        people[region] = [next(names) for _ in range(1 if place else 2)]
        for name in people[region]:
            if name not in known:
                create_user(layout.home, name, region, now_ms())
    return people


def _endless_names() -> Iterator[str]:
    yield from _NAMES
    yield from (f"user{number}" for number in count(len(_NAMES) + 1))


async def _serve(layout: Layout, people: dict[str, list[str]], directory: Path, capture: Capture | None) -> None:
    federation, stop = LocalFederation(layout, capture), trio.CancelScope()
    async with trio.open_nursery() as watch:
        await watch.start(_stop_on_signal, stop, federation)
        async with federation:
            with stop:
                await _run(federation, layout, people, directory)
            click.echo("Stopping …", err=True)
        watch.cancel_scope.cancel()
    click.echo(f"Stopped. Everything is kept in {directory}.", err=True)


async def _run(federation: LocalFederation, layout: Layout, people: dict[str, list[str]], directory: Path) -> None:
    click.echo(f"Starting {', '.join(layout.regions)} …", err=True)
    await federation.start_all()
    for name in chain.from_iterable(people.values()):
        await introduce(layout.home, name)
    click.echo(welcome(layout, people, directory))
    await _mind(federation)


async def _mind(federation: LocalFederation) -> None:
    """A node that ends takes nothing with it while most of its cell run. Raises OperatorError where they do not."""
    while True:
        node, error = await federation.next_death()
        if not federation.carries_on(node.region):
            raise error
        click.echo(f"posthouse: {error.text}; its cell carries on. {error.remedy}", err=True)


async def _stop_on_signal(
    stop: trio.CancelScope, federation: LocalFederation, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The first signal stops, each further one hurries the nodes: none is left to Python, which would not wait for
    them."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if stop.cancel_called:
                federation.hurry()
            stop.cancel()


def welcome(layout: Layout, people: dict[str, list[str]], directory: Path) -> str:
    """What runs, who is there, and the commands to paste next."""
    command, words = spoken_command(), dir_words(directory)
    width = max(map(len, layout.regions))
    lines = ["Posthouse is up. Ctrl-C stops it; nothing is lost.", ""]
    for region in layout.regions:
        for node in layout.nodes(region):
            who = (region, ", ".join(people[region])) if node.name == FIRST else ("", "")
            lines.append(f"  {who[0]:<{width}}  {who[1]:<12}  {node.name}  http://{node.admin_addr}/metrics")
    first, near = people[layout.regions[0]][:2]
    far = people[layout.regions[-1]][-1]
    everybody = [name for names in people.values() for name in names if name != first]
    lines += [
        "",
        "In another terminal:",
        "",
        f"  {command} recv --as {near} --follow{words}",
        "",
        "In a third one:",
        "",
        f"  echo 'Hello, {near}!' | {command} send --as {first} --to {near}{words}",
        f"  {command} send --as {first} --to {far} --wait stored{words} README.md",
        f"  {command} recv --as {far} --out letters{words}",
        f"  {command} group create --as {first}{words} friends {' '.join(everybody)}",
        f"  echo 'Hello, all!' | {command} group send --as {first}{words} friends",
        f"  {command} card --as {first}{words}",
    ]
    return "\n".join(lines)
