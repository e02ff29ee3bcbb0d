"""Where received messages go: a terminal, a pipe, files, or JSON lines.

A message counts as received once `take` returns, so that it returns only when the bytes are out of our hands.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import click

from relay.client import Message
from relay.errors import OperatorError

_MAX_FILE_NAME: Final = 180  # bytes of UTF-8; the number that makes a name unique still fits the usual 255
_DIRECTION: Final = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # UAX #9: embeddings, overrides, isolates
_ENDING: Final = re.compile(r"(\.[^./\\]{1,16}){1,2}$")


class Names(Protocol):
    """How to call people and groups."""

    def user(self, user: bytes) -> str | None:
        """The name of a user on this machine."""

    def group(self, group: bytes) -> str:
        """A group's title."""


class Sink(Protocol):
    """Takes messages, one after the other."""

    def take(self, message: Message) -> None:
        """Raises OperatorError where it cannot be kept; the message then stays unread."""


class Pipe:
    """The bytes of each message and nothing else. A text that does not end its last line is ended before the next."""

    def __init__(self) -> None:
        self._unended = False

    def take(self, message: Message) -> None:
        out = sys.stdout.buffer
        if self._unended:
            out.write(b"\n")
        out.write(message.content)
        out.flush()
        self._unended = as_text(message.content) is not None and message.content[-1:] not in (b"", b"\n")


class Terminal:
    """A header line, then the text. Files, and what is no text, go to a directory."""

    def __init__(self, names: Names, files: Path) -> None:
        self._names = names
        self._files = files

    def take(self, message: Message) -> None:
        text = as_text(message.content)
        click.secho(f"── {headline(message, self._names)}", fg="cyan")
        if text is None or message.name:
            click.echo(f"{save(message, self._files)}  ({len(message.content):,} bytes)")
        else:
            click.echo(visible(text), nl=not text.endswith("\n"))
        sys.stdout.flush()


class Files:
    """Every message a file of its own; prints its path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take(self, message: Message) -> None:
        click.echo(str(save(message, self._directory)))
        sys.stdout.flush()


class JsonLines:
    """One JSON object a line; with `files`, the contents go there."""

    def __init__(self, names: Names, files: Path | None) -> None:
        self._names = names
        self._files = files

    def take(self, message: Message) -> None:
        click.echo(json.dumps(self._describe(message), ensure_ascii=False))
        sys.stdout.flush()

    def _describe(self, message: Message) -> dict[str, Any]:
        described: dict[str, Any] = {
            "id": message.id.hex(),
            "from": self._names.user(message.user),
            "user": message.user.hex(),
            "device": message.device.hex(),
            "group": message.group.hex() if message.group else None,
            "title": self._names.group(message.group) if message.group else None,
            "counter": message.counter,
            "sent": datetime.fromtimestamp(message.sent_ms / 1000, UTC).isoformat(),
            "gap": message.gap,
            "late": message.late,
            "name": message.name,
            "size": len(message.content),
        }
        if self._files is not None:
            return {**described, "file": str(save(message, self._files))}
        text = as_text(message.content)
        if text is not None:
            return {**described, "text": text}
        return {**described, "base64": base64.b64encode(message.content).decode()}


def headline(message: Message, names: Names) -> str:
    """Who, where to, when, and what is odd about it; safe for a terminal."""
    sender = names.user(message.user) or f"user {message.user.hex()[:8]}"
    where = f" → {names.group(message.group)}" if message.group else ""
    when = f"{datetime.fromtimestamp(message.sent_ms / 1000).astimezone():%Y-%m-%d %H:%M:%S}"
    gap = f", {message.gap} before it missing" if message.gap else ""
    late = ", late" if message.late else ""
    return visible(f"{sender}{where}, {when}{gap}{late}").replace("\n", " ")


def as_text(content: bytes) -> str | None:
    """The content as text, when it is some: UTF-8 without NUL bytes."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def visible(text: str) -> str:
    """Text that cannot steer a terminal: control characters but tab and newline are shown as pictures or codes, and so
    are those that override the direction of writing."""
    return "".join(map(_visible, text))


def _visible(char: str) -> str:
    if char in "\t\n" or not (unicodedata.category(char) in ("Cc", "Cs") or char in _DIRECTION):
        return char
    return chr(0x2400 + ord(char)) if ord(char) < 0x20 else f"<U+{ord(char):04X}>"


def save(message: Message, directory: Path) -> Path:
    """Write the content to a new file in `directory`, durable; never over another, never outside. Raises
    OperatorError."""
    name = safe_name(message.name) or _own_name(message)
    path = directory / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path, handle = _create(directory, name)
        with open(handle, "wb") as file:
            try:
                file.write(message.content)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                path.unlink()
                raise
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}", "The message stays unread; try again") from None
    return path


def safe_name(name: str) -> str:
    """The file name that a sender proposes, made harmless: the last part of a path, no control characters, no leading
    dots or dashes, of bounded length with its ending kept. Empty when nothing is left."""
    last = re.split(r"[/\\]", name)[-1]
    clean = "".join(char for char in last if unicodedata.category(char)[0] != "C" and char not in '<>:"|?*')
    clean = unicodedata.normalize("NFC", clean).strip().lstrip(".-").strip()
    ending = match[0] if (match := _ENDING.search(clean)) else ""
    stem = clean.removesuffix(ending) if ending else clean
    room = _MAX_FILE_NAME - len(ending.encode())
    return stem.encode()[:room].decode("utf-8", "ignore") + ending if stem else ending.lstrip(".")


def _own_name(message: Message) -> str:
    when = datetime.fromtimestamp(message.sent_ms / 1000, UTC)
    return f"{when:%Y%m%dT%H%M%SZ}-{message.id.hex()[:8]}.{'bin' if as_text(message.content) is None else 'txt'}"


def _create(directory: Path, name: str) -> tuple[Path, int]:
    """A new file called `name`, or with a number before its ending where that is taken."""
    ending = match[0] if (match := _ENDING.search(name)) else ""
    stem = name.removesuffix(ending)
    for number in range(10_000):
        path = directory / (f"{stem}-{number}{ending}" if number else name)
        try:
            return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            continue
    raise OperatorError(f"{directory / name} and 9,999 more exist", "Choose another --out")
