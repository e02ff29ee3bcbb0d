"""The root of the command line: commands loaded when they are named, errors shown without tracebacks.

A mistake of the operator's, or a refusal, is one message on stderr and an exit status (cluster.cli.exits). Only what
is a bug of ours shows a traceback.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import click

from cluster.cli.exits import MEANING, Exit, exit_of, leaves
from relay.errors import PosthouseError
from relay.observe.logs import configure_logs

COMMANDS: Final = {
    "up": "cluster.cli.up:up",
    "demo": "cluster.demo.cli:demo",
    "send": "cluster.cli.send:send",
    "recv": "cluster.cli.recv:recv",
    "card": "cluster.cli.users:card",
    "user": "cluster.cli.users:user",
    "group": "cluster.cli.groups:group",
    "init": "cluster.cli.init:init",
    "federation": "cluster.cli.federation:federation",
    "config": "cluster.cli.nodes:config",
    "node": "cluster.cli.nodes:node",
    "cell": "cluster.cli.cell:cell",
    "journal": "cluster.cli.journal:journal",
    "audit": "cluster.cli.audit:audit",
    "receipt": "cluster.cli.receipt:receipt",
    "directory": "cluster.cli.directory:directory_",
    "registrar": "cluster.cli.registrar:registrar",
    "bench": "bench.cli:bench",
    "version": "cluster.cli.nodes:version",
    "docs": "cluster.cli.reference:docs",
}

_STATUSES: Final = "\b\nExit status:\n" + "\n".join(f"  {status.value:<4} {text}" for status, text in MEANING.items())


class App(click.Group):
    """A group whose commands are imported when they are asked for, so that `send` does not wait for the bench."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run, show what went wrong, and exit with a status of `Exit`."""
        _speak_utf8()
        extra["standalone_mode"] = False
        status: Any = Exit.FAILED
        try:
            status = super().main(args, *rest, **extra) or Exit.OK
            sys.stdout.flush()
        except click.exceptions.Exit as error:
            status = error.exit_code
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except click.Abort:
            status = Exit.INTERRUPTED
        except BaseException as error:  # noqa: BLE001 - what is not expected goes on from here
            status = _report(error)
        sys.exit(int(status) if isinstance(status, int) else Exit.OK)


def _report(error: BaseException) -> Exit:
    """Show an error and say how to exit; raises it again when it is none of those that are expected."""
    inside = list(leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt) for leaf in inside):
        return Exit.INTERRUPTED
    if any(isinstance(leaf, BrokenPipeError) for leaf in inside):
        _silence_stdout()
        return Exit.FAILED
    known = [leaf for leaf in inside if isinstance(leaf, PosthouseError) or _is_file_trouble(leaf)]
    if len(known) < len(inside):
        raise error
    for text in dict.fromkeys(map(_message, known)):
        click.echo(f"posthouse: {_shown(text)}", err=True)
    statuses = [Exit.OPERATOR if isinstance(leaf, OSError) else exit_of(leaf) for leaf in known]
    return max(statuses, key=[Exit.FAILED, Exit.UNREACHABLE, Exit.OPERATOR, Exit.UNTRUSTED].index)


def _is_file_trouble(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.filename is not None


def _message(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{os.fsdecode(error.filename)}: {error.strerror}. Check the path and its permissions"
    return str(error)


def _shown(text: str) -> str:
    """A part of it may be what a peer answered: nothing in it speaks to the terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def _silence_stdout() -> None:
    """Whoever read us has gone: nothing more to say, also not when the interpreter flushes at its end."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def _speak_utf8() -> None:
    """Texts are UTF-8 whatever the locale says; bytes of arguments that it could not read go out as they came in."""
    codecs.register_error("as-it-came", _as_it_came)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="as-it-came")


def _as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


@click.group("posthouse", cls=App, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_STATUSES)
@click.version_option(package_name="posthouse", prog_name="posthouse", message="%(prog)s %(version)s")
@click.option("-v", "--verbose", is_flag=True, help="Show the log of what happens, as JSON lines on stderr.")
def app(verbose: bool) -> None:
    """Posthouse: a federated, multi-region relay for end-to-end-encrypted envelopes.

    `posthouse up` starts three regions on this machine and prints what to type next.
    """
    configure_logs("info" if verbose else "critical")
