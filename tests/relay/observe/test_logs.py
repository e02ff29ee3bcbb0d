"""What a log line may show."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from relay.observe.logs import configure_logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    configure_logs("info", stream, region="norden", node="n1")
    yield stream
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_object_a_line_with_what_is_always_there(stream: io.StringIO) -> None:
    log = structlog.get_logger("relay.test")
    log.debug("too_quiet")
    log.info("session_started", text="zażółć\nдва")
    (line,) = lines(stream)
    assert line["event"] == "session_started" and line["level"] == "info" and line["text"] == "zażółć\nдва"
    assert line["region"] == "norden" and line["node"] == "n1" and str(line["timestamp"]).endswith("Z")


def test_bytes_are_cut_wherever_they_stand(stream: io.StringIO) -> None:
    user = bytes(range(32))
    structlog.get_logger().info("x", user=user, many=[user, (user,)], named={user: user})
    (line,) = lines(stream)
    assert (line["user"], line["many"]) == ("00010203", ["00010203", ["00010203"]])
    assert line["named"] == {"00010203": "00010203"}
    assert "04" not in stream.getvalue().replace(str(line["timestamp"]), "")


def test_tracebacks_show_no_local_variables(stream: io.StringIO) -> None:
    secret = "hunter2" * 3

    def fail(value: str) -> None:
        raise ValueError("broken")

    try:
        fail(secret)
    except ValueError:
        structlog.get_logger().exception("failed")
    (line,) = lines(stream)
    assert "ValueError: broken" in str(line["exception"]) and "hunter2hunter2" not in stream.getvalue()


def test_libraries_speak_without_their_arguments(stream: io.StringIO) -> None:
    logging.getLogger("trio-websocket").warning("peer %s went away", "127.0.0.77")
    logging.getLogger("trio-websocket").info("too quiet")
    (line,) = lines(stream)
    assert (line["library"], line["template"]) == ("trio-websocket", "peer %s went away")
    assert "127.0.0.77" not in stream.getvalue()
