"""Exit statuses, and which error ends with which. Scripts and service managers rely on them; docs/CLI.md lists them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Final

import trio

from relay.core.wire import Code
from relay.errors import (
    OperatorError, Overloaded, PeerError, PosthouseError, Refused, ResidencyError, RolledBack, TrustError,
)  # fmt: skip


class Exit(IntEnum):
    """Exit statuses of `posthouse`."""

    OK = 0
    FAILED = 1
    USAGE = 2
    OPERATOR = 3
    UNREACHABLE = 4
    UNTRUSTED = 5
    INTERRUPTED = 130


MEANING: Final = {
    Exit.OK: "done",
    Exit.FAILED: "refused, lost or failed; the message says what",
    Exit.USAGE: "the command line is wrong",
    Exit.OPERATOR: "a config, file, port or name that you can mend",
    Exit.UNREACHABLE: "no answer in time; what was to be sent is kept and goes out later",
    Exit.UNTRUSTED: "a signature, chain or certificate does not hold, or history was rolled back: do not just retry",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
}


class NoAnswer(PosthouseError):
    """A deadline of the command line passed."""


def exit_of(error: BaseException) -> Exit:
    """The status that an error ends with."""
    if isinstance(error, TrustError | PeerError | ResidencyError | RolledBack):
        return Exit.UNTRUSTED
    if isinstance(error, OperatorError):
        return Exit.OPERATOR
    if isinstance(error, NoAnswer | Overloaded) or (isinstance(error, Refused) and error.code >= Code.UNREACHABLE):
        return Exit.UNREACHABLE
    return Exit.FAILED


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group, however deep; an error that is no group is its own only leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


@contextmanager
def deadline(seconds: float, text: str, remedy: str) -> Iterator[trio.CancelScope]:
    """Raises NoAnswer when the body takes longer. The scope's deadline may be moved or lifted."""
    with trio.move_on_after(seconds) as scope:
        yield scope
    if scope.cancelled_caught:
        raise NoAnswer(text, remedy)
