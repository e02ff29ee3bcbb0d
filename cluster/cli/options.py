"""Options and small helpers that several commands share."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from relay.errors import OperatorError

DEFAULT_DIR: Final = Path("posthouse-data")
DEFAULT_NODES: Final = 3  # of a region: any one of them may die, and nothing waits for it
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

dir_option: Final[Decorator] = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    default=DEFAULT_DIR,
    envvar="POSTHOUSE_DIR",
    show_envvar=True,
    show_default=True,
    help="Where the federation and the users' stores are kept.",
)
as_option: Final[Decorator] = click.option(
    "--as", "name", required=True, metavar="NAME", help="The user (or user+device) to act as."
)


def nodes_option(text: str, default: int | None) -> Decorator:
    """--nodes, of each region."""
    return click.option("--nodes", type=int, default=default, show_default=default is not None, help=text)


def deadline_option(seconds: float | None, text: str) -> Decorator:
    """--deadline, seconds."""
    return click.option(
        "--deadline", "seconds", type=click.FloatRange(min=0, min_open=True), default=seconds,
        show_default=seconds is not None, metavar="SECONDS", help=text,
    )  # fmt: skip


def result_file(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Callback of an option that names a file for results: what could not be written is told before anything runs.
    `-` is standard output."""
    if path is not None and str(path) != "-":
        if path.is_dir():
            raise OperatorError(f"{path} is a directory", f"Name a file in it with {parameter.opts[0]}")
        if not path.parent.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise OperatorError(f"{path} cannot be written", "Name a file in a directory that exists and is yours")
    return path


@contextmanager
def ending_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP end the body as Ctrl-C does: processes are stopped and scratch directories go. A signal that
    whoever started this process has set aside (nohup) stays set aside."""
    signals = [signal.SIGTERM, signal.SIGHUP] if signal.getsignal(signal.SIGINT) is signal.default_int_handler else []
    ours = [one for one in signals if signal.getsignal(one) is signal.SIG_DFL]
    for one in ours:
        signal.signal(one, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


def now_ms() -> int:
    """Unix time, ms."""
    return time.time_ns() // 1_000_000


def federation_pin(text: str | None) -> bytes | None:
    """The value of --federation-id. Raises click.BadParameter."""
    if text is not None and (len(text) != 64 or set(text) - set("0123456789abcdef")):
        what = "64 hex digits, as `posthouse directory show` prints them"
        raise click.BadParameter(what, param_hint="--federation-id")
    return bytes.fromhex(text) if text else None


def spoken_command() -> str:
    """How this program is called, to be pasted: `posthouse`, or the way to it."""
    program = Path(sys.argv[0])
    if program.name == "posthouse":
        found = shutil.which("posthouse")
        return "posthouse" if found and Path(found).resolve() == program.resolve() else shlex.quote(str(program))
    return f"{shlex.quote(sys.executable)} -m cluster.cli"


def dir_words(directory: Path) -> str:
    """` --dir D` where the commands to paste need it, otherwise nothing."""
    default = Path(os.environ.get("POSTHOUSE_DIR") or DEFAULT_DIR)
    return "" if default.absolute() == directory.absolute() else f" --dir {shlex.quote(str(directory))}"
