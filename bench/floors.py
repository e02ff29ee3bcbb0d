"""The floors: what the bare sends of a run cost on this machine, whatever else a relay may do.

The same bytes go to the same number of sockets, each with a non-blocking `send`, at the run's rate or as fast as that
goes; another process reads them. Once with a send for every frame; and once with as many frames in a send as the run
had. CPU is that of the sending process, in it what the kernel does for it. `python -m bench.floors`, by `measure`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import selectors
import socket
import sys
import time
from typing import Any, Final

import msgspec
import trio

from bench.envelopes import make_envelope
from bench.run import Raw
from bench.scenario import NS
from relay.core import wire
from relay.core.frames import server_frame
from relay.errors import PosthouseError

_SECONDS: Final = 3.0  # for each floor, at the run's rate
_SENDS: Final = 100_000  # at most, where the rate is higher than one process can send; a second or two
_WARM: Final = 500  # sends before the clock runs
_READ: Final = 1 << 18
_LIMIT_S: Final = 120.0


class Order(msgspec.Struct, frozen=True):
    """What is to be sent: `frames_a_send` 1 or more, of `size` bytes each, to `sockets`, `rate` a second to each."""

    sockets: int
    size: int
    rate: float
    frames_a_send: float


async def measure_floors(raw: Raw) -> dict[str, Any]:
    """The floors of a run, µs of CPU a frame, and what they were measured with. Raises PosthouseError."""
    scenario = raw.scenario
    envelope = make_envelope(bytes(32), scenario.seed, 0, 0, scenario.size, 0)
    size = len(server_frame(wire.encode_deliver(1 << 40, envelope)))
    joined = frames_a_read(raw)
    found: dict[str, Any] = {"frame_bytes": size, "frames_a_send": round(joined, 2)}
    for name, frames in (("bare_us", 1.0), ("joined_us", joined)):
        order = Order(scenario.recipients, size, scenario.rate, frames)
        with trio.move_on_after(_LIMIT_S) as scope:
            done = await trio.run_process(
                [sys.executable, "-m", "bench.floors"], stdin=msgspec.json.encode(order), capture_stdout=True
            )
            found[name] = round(float(json.loads(done.stdout)), 3)
        if scope.cancelled_caught:
            raise PosthouseError(f"the floor was not measured in {_LIMIT_S:.0f} s", "Is the machine that busy?")
    return found


def frames_a_read(raw: Raw) -> float:
    """Deliveries that one read of a receiver brought, on average: no fewer than one write of a node carried, so that
    the floor is, if anything, too low."""
    reads = sum(one.reads for one in raw.received)
    return max(1.0, sum(one.deliveries for one in raw.received) / reads) if reads else 1.0


def ratios(floors: dict[str, Any], cpu_us: float) -> dict[str, float]:
    """CPU a delivery of all nodes, to each floor."""
    return {
        f"to_{name}": round(cpu_us / floors[f"{name}_us"], 2) for name in ("bare", "joined") if floors[f"{name}_us"]
    }


# --- the process that measures -------------------------------------------------------------------
def _read_all(port: int, sockets: int) -> None:
    """Connect so many, and read until all have ended."""
    with selectors.DefaultSelector() as selector:
        for _ in range(sockets):
            one = socket.create_connection(("127.0.0.1", port))
            one.setblocking(False)
            selector.register(one, selectors.EVENT_READ)
        left = sockets
        while left:
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                try:
                    if key.fileobj.recv(_READ):
                        continue
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    pass
                selector.unregister(key.fileobj)
                left -= 1


def _send(one: socket.socket, data: bytes) -> None:
    """All of it; waits where the reader is behind."""
    while True:
        try:
            sent = one.send(data)
        except BlockingIOError:
            with selectors.SelectSelector() if one.fileno() < 1024 else selectors.DefaultSelector() as selector:
                selector.register(one, selectors.EVENT_WRITE)
                selector.select()
            continue
        if sent == len(data):
            return
        data = data[sent:]


def _rounds(sockets: list[socket.socket], order: Order, sends: int) -> int:
    """Rounds of one send to each socket, when each is due; returns how many frames went to each."""
    frame, frames, number = os.urandom(order.size), 0, 0
    begun = time.monotonic_ns()
    while not number or number * len(sockets) < sends:
        number += 1
        count = int(number * order.frames_a_send) - frames
        due_ns = begun + int(frames * NS / order.rate)
        if (wait_ns := due_ns - time.monotonic_ns()) > 0:
            time.sleep(wait_ns / NS)
        data = frame * count
        for one in sockets:
            try:
                sent = one.send(data)
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                _send(one, data[sent:])
        frames += count
    return frames


def cpu_us(order: Order) -> float:
    """µs of CPU for one frame to one socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=order.sockets) as listener:
        reader = os.fork()
        if not reader:
            try:
                _read_all(listener.getsockname()[1], order.sockets)
            finally:
                os._exit(0)
        sockets = [listener.accept()[0] for _ in range(order.sockets)]
    try:
        for one in sockets:
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gc.collect()
        gc.freeze()
        _rounds(sockets, msgspec.structs.replace(order, rate=float(NS)), _WARM)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        frames = _rounds(sockets, order, min(_SENDS, int(_SECONDS * order.rate * len(sockets) / order.frames_a_send)))
        after = resource.getrusage(resource.RUSAGE_SELF)
    finally:
        for one in sockets:
            one.close()
        os.waitpid(reader, 0)
    spent_s = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return spent_s * 1e6 / (frames * len(sockets))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(cpu_us(msgspec.json.decode(sys.stdin.buffer.read(), type=Order))))
