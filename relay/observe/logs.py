"""Logs: one JSON object a line, on stderr. Event names in snake_case, everything else as key=value.

A log is a disk too: bytes (ids, keys) are cut to their first 8 hex digits here, once for all, tracebacks never show
local variables, and what libraries log comes without its arguments, which may hold a client's address.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS: Final = {
    "debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR,
    "critical": logging.CRITICAL,
}  # fmt: skip

_encoder = msgspec.json.Encoder(enc_hook=str)


def configure_logs(level: str = "info", stream: TextIO | None = None, **always: str) -> None:
    """Send all logs as JSON lines to `stream` (stderr). `always` is put into every line: region="…", node="…".

    `level` is one of LEVELS. May be called again; the last call counts."""
    out = stream or sys.stderr

    def add_always(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {**always, **event}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            shorten_bytes,
            add_always,
            structlog.processors.JSONRenderer(serializer=_render),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [_FromLibraries()]
    root.setLevel(max(LEVELS[level], logging.WARNING))


def shorten_bytes(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Show bytes as their first 8 hex digits: enough to follow one id through a log, not enough to be one."""
    return {key: _shortened(value) for key, value in event.items()}


def _shortened(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value[:4]).hex()
    if isinstance(value, list | tuple | set | frozenset):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        return {str(_shortened(key)): _shortened(item) for key, item in value.items()}
    return value


def _render(event: EventDict, **_options: object) -> str:
    return _encoder.encode(event).decode()


class _FromLibraries(logging.Handler):
    """What libraries say through `logging`, in the same form: the template without its arguments."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        log = structlog.get_logger(record.name)
        log.log(record.levelno, "library_log", library=record.name, template=str(record.msg), exception=kind)


def innermost(error: BaseException) -> str:
    """The innermost places of a traceback: no values, so nothing of a user can get into a log."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in reversed(frames))
