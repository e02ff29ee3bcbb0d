"""`posthouse node run`, `posthouse config check` and `posthouse version`."""

from __future__ import annotations

import gc
import os
import platform
import signal
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

import click
import trio

from cluster.config import NodeConfig, load_config
from cluster.federation.words import policy_words
from relay.observe.logs import configure_logs

# Python's default of 5 ms is what SQLite's thread may wait for trio's after each of its calls, ten times a block.
_SWITCH_S = 0.0005

_config_argument = click.argument("path", metavar="CONFIG", type=click.Path(path_type=Path))


@click.group()
def node() -> None:
    """Run a node of a cell."""


@node.command()
@_config_argument
@click.option("--with-parent", is_flag=True, help="Stop when standard input ends: whoever started the node has gone.")
def run(path: Path, with_parent: bool) -> None:
    """Run the node that CONFIG describes, in the foreground, until SIGTERM or Ctrl-C.

    Logs go to stderr, one JSON object a line. A stopping node tells its clients to leave, gives them [limits] drain_s
    seconds, and saves a checkpoint. configs/posthouse.service runs it under systemd.
    """
    config = load_config(path)
    configure_logs(config.log.level, region=config.node.region, node=config.node.name)
    sys.setswitchinterval(_SWITCH_S)
    trio.run(_run, config, with_parent)


async def _run(config: NodeConfig, with_parent: bool) -> None:
    from cluster.lives import run_node  # the whole house: only when it is needed

    gc.freeze()  # all of its code: looking through that for garbage stood a node still, and took a tenth of its CPU
    async with trio.open_nursery() as nursery:
        if with_parent:
            nursery.start_soon(_stop_without_parent)
        await run_node(config)
        nursery.cancel_scope.cancel()


async def _stop_without_parent() -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stdin:
        while await stdin.receive_some(4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@click.group()
def config() -> None:
    """Check configs."""


@config.command()
@_config_argument
def check(path: Path) -> None:
    """Check the node config CONFIG and everything that it points at, without starting anything.

    Shows all mistakes at once, each with where it is, what is wrong and what to do: keys, addresses, the root document,
    certificates and keys, and whether they fit each other.
    """
    config = load_config(path)
    click.echo(f"{path} is good: node {config.node.cell}/{config.node.name}")
    for line in policy_words(config.root.region(config.node.region).policy):
        click.echo(f"policy of region {config.node.region}: {line}")


@click.command()
def version() -> None:
    """Print the version of Posthouse, and of what it runs on."""
    try:
        own = installed("posthouse")
    except PackageNotFoundError:
        own = "(not installed)"
    parts = [f"{name} {installed(name)}" for name in ("trio", "cryptography", "pynacl")]
    click.echo(f"posthouse {own}")
    click.echo(f"Python {platform.python_version()}, {', '.join(parts)}, {platform.system()} {platform.machine()}")
