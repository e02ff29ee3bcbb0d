"""`posthouse demo`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console

from cluster.cli.options import DEFAULT_NODES, ending_like_ctrl_c, nodes_option, result_file
from cluster.demo.report import Result, show, write_json
from cluster.demo.stage import Stage
from cluster.demo.story import Chapter, chapters
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from relay.errors import OperatorError

MAX_REGIONS: Final = 6  # every region needs somebody to write to
CHAPTER_S: Final = 180.0  # seconds for a chapter; ten times what it takes
_PATH: Final = click.Path(path_type=Path)


@click.command()
@click.option("--dir", "directory", type=_PATH, metavar="DIR", help="Keep everything in this new or empty directory.")
@click.option(
    "--json", "json_path", type=_PATH, callback=result_file, metavar="FILE", help="Write what was counted to this file."
)
@click.option("--regions", metavar="A,B,C", default="norden,sauda,taiga", show_default=True, help="Two to six names.")
@nodes_option("Nodes of each region: 1, 3 or 5.", DEFAULT_NODES)
def demo(directory: Path | None, json_path: Path | None, regions: str, nodes: int) -> None:
    """Start three regions, use them, hurt them, and look at every byte they leave.

    Nodes are killed, and a region is cut off. With one node in each region all are killed at once while mail waits;
    with several, a disk is emptied, in every region a node stays dead while the others carry on, and these are killed
    before the last look.

    Exit status 0 says that nothing was lost, duplicated, reordered, or found where it must not be; 1 says that
    something was.
    """
    names = [name.strip() for name in regions.split(",")]
    if not 2 <= len(names) <= MAX_REGIONS:
        raise OperatorError(f"{len(names)} region(s)", f"Name 2 to {MAX_REGIONS}, with commas between them")
    with ending_like_ctrl_c(), ExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posthouse-demo-")))
        result = trio.run(run_demo, directory, names, Console(highlight=False), nodes)
    if json_path is not None:
        write_json(json_path, result)
    if not result.clean:
        raise SystemExit(1)


async def run_demo(
    directory: Path, regions: Sequence[str], console: Console, nodes: int = 1, story: Sequence[Chapter] | None = None
) -> Result:
    """Play the story (by default that of regions with so many nodes) in `directory`, a new or empty one, and show what
    was counted and found. Raises PosthouseError where the federation could not run."""
    begun = time.monotonic()
    console.print(f"[bold]Posthouse demo[/bold] in {directory}")
    layout = make_federation(directory, regions, RealEnv(), nodes=nodes, borders=True)
    stage = await play(layout, console, chapters(nodes) if story is None else story)
    result = Result(
        stage.ledger.account(), len(stage.book.posted), stage.wire_duplicates, stage.audits, stage.nodes_killed,
        time.monotonic() - begun, stage.failures, nodes, stage.stores_wiped, stage.users_moved,
    )  # fmt: skip
    show(console, result)
    return result


async def play(layout: Layout, console: Console, story: Sequence[Chapter]) -> Stage:
    """Start the nodes and play every chapter; whatever still runs at the end is stopped."""
    async with LocalFederation(layout) as federation, trio.open_nursery() as nursery:
        nursery.start_soon(federation.died)
        stage = Stage(layout, federation, nursery)
        async with trio.open_nursery() as opening:
            opening.start_soon(federation.start_all)
            opening.start_soon(trio.to_thread.run_sync, stage.enrol, time.time_ns() // 1_000_000)
        for number, chapter in enumerate(story, 1):
            begun = trio.current_time()
            with console.status(f"{chapter.title} …"), trio.move_on_after(CHAPTER_S) as scope:
                line = await chapter.play(stage)
            if scope.cancelled_caught:
                stage.failures.append(f"{chapter.title}: it did not end within {CHAPTER_S:.0f} s")
                break
            took = trio.current_time() - begun
            console.print(f"[green]{number}[/green] [bold]{chapter.title}[/bold]: {line} [dim]({took:.1f} s)[/dim]")
        nursery.cancel_scope.cancel()
    return stage
