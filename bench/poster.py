"""The registrar bench's load, a process of its own: POSTs bodies that were made before, as many at a time as there are
connections, each kept open. It reads no more of an answer than its status and its length.

    python -m bench.poster SOCKET PATH BODIES CONNECTIONS     BODIES: a file, the msgpack array of them

Prints JSON: seconds, its own CPU seconds, sorted latencies (s), statuses by number, and the last answers.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

_READ = 1 << 18


@dataclass
class _Line:
    """One connection with at most one request under way."""

    socket: socket.socket
    answer: bytearray = field(default_factory=bytearray)
    begun: float = 0.0

    def ask(self, request: bytes) -> None:
        self.answer.clear()
        self.begun = time.perf_counter()
        self.socket.sendall(request)  # it blocks: requests fit into a socket's buffer, or the server reads them

    def whole(self) -> tuple[int, bytes] | None:
        """Status and body, once all of the answer is here."""
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.answer[:end]).lower()
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
        if len(self.answer) < end + 4 + length:
            return None
        return int(head[9:12]), bytes(self.answer[end + 4 :])


@dataclass
class Load:
    """What is to be posted, and what came of it."""

    requests: Iterator[bytes]
    lines: int
    keep: int
    took: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    last: list[bytes] = field(default_factory=list)

    def run(self, where: str) -> None:
        """Post all of it. Raises OSError where the server goes away."""
        with selectors.DefaultSelector() as selector:
            for _ in range(self.lines):
                line = _Line(socket.socket(socket.AF_UNIX))
                line.socket.connect(where)
                selector.register(line.socket, selectors.EVENT_READ, line)
                self._next(selector, line)
            while selector.get_map():
                for key, _ in selector.select():
                    self._read(selector, key.data)

    def _next(self, selector: selectors.BaseSelector, line: _Line) -> None:
        request = next(self.requests, None)
        if request is None:
            selector.unregister(line.socket)
            line.socket.close()
        else:
            line.ask(request)

    def _read(self, selector: selectors.BaseSelector, line: _Line) -> None:
        data = line.socket.recv(_READ)
        if not data:
            raise ConnectionResetError("the registrar closed a connection")
        line.answer += data
        if (answer := line.whole()) is None:
            return
        self.took.append(time.perf_counter() - line.begun)
        self.statuses[answer[0]] += 1
        self.last.append(answer[1])
        del self.last[: -self.keep]
        self._next(selector, line)


def request_of(path: str, body: bytes) -> bytes:
    """The bytes of one POST."""
    return b"POST %s HTTP/1.1\r\nHost: registrar\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


def main(where: str, path: str, bodies: str, lines: str) -> dict[str, Any]:
    """See above."""
    requests = [request_of(path, body) for body in msgpack.unpackb(Path(bodies).read_bytes())]
    load = Load(iter(requests), min(int(lines), len(requests)), 4)
    spent, begun = time.process_time(), time.perf_counter()
    load.run(where)
    seconds, cpu_s = time.perf_counter() - begun, time.process_time() - spent
    return {
        "seconds": seconds, "cpu_s": cpu_s, "took": sorted(load.took), "statuses": dict(load.statuses),
        "last": [answer.hex() for answer in load.last],
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
