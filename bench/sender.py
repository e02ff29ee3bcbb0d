"""The sending process: an open loop. When each message is due is fixed before the run, and neither a slow answer nor a
dead node moves it; latencies count from there, so that nobody omits what a stalled sender would not have sent.

What has no final receipt is kept, and sent again with the same bytes after a reconnect. `python -m bench.sender`.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from array import array
from collections.abc import Callable, Hashable
from functools import partial

from bench.accounts import Latencies
from bench.broadcast import Poster
from bench.client import Net
from bench.dialect import Desk, Message, Outlet
from bench.peers.clients import Publisher
from bench.pipes import Cost, Go, Plan, Progress, Publish, Send, Sent, Stop, ToWorker
from bench.posthouse import Authors
from bench.process import Process
from bench.scenario import Schedule
from relay.core.wire import Code


class Sender:
    """What is sent when, and what became of it. `outlet ready → waiting for Go → sending → all answered`."""

    def __init__(self, plan: Plan, net: Net, open_outlet: Callable[[Desk], Outlet]) -> None:
        self._net = net
        self._streams = len(plan.addresses)
        self.schedule = Schedule(plan.rate, plan.warm_up, plan.seconds)
        self.start_ns = 0
        self.codes = bytearray(self.schedule.total)
        self.acked_ns = array("q", bytes(8 * self.schedule.total))
        self.latencies = Latencies()
        self.resubmitted = self.late_us_max = 0
        self._answered = self._accepted = 0
        self._unanswered: dict[Hashable, tuple[int, bytes]] = {}  # key: (sequence, message), in sending order
        self._next = 0
        self._usage: tuple[float, float] = (0.0, 0.0)
        self.outlet = open_outlet(self)
        for client in self.outlet.clients:
            net.add(client)

    @property
    def finished(self) -> bool:
        """Everything was sent, and has its final receipt."""
        return self._next == self.schedule.total and not self._unanswered

    # --- the schedule ----------------------------------------------------------------------------
    def go(self, start_ns: int) -> None:
        """Message 0 is due at `start_ns`."""
        self.start_ns = start_ns
        gc.collect()
        gc.freeze()
        self._net.hub.at(start_ns, self._tick)

    def _tick(self) -> None:
        """Everything that is due now goes out at once."""
        now_ns, now_ms = time.monotonic_ns(), time.time_ns() // 1_000_000
        fresh: list[Message] = []
        for sequence in range(self._next, self.schedule.due(now_ns - self.start_ns)):
            if sequence == self.schedule.first_measured:
                usage = resource.getrusage(resource.RUSAGE_SELF)
                self._usage = usage.ru_utime, usage.ru_stime
            due_ns = self.start_ns + self.schedule.offset_ns(sequence)
            self.late_us_max = max(self.late_us_max, (now_ns - due_ns) // 1000)
            key, message = self.outlet.make(sequence, due_ns, now_ms)
            self._unanswered[key] = sequence, message
            self._next = sequence + 1
            fresh.append((key, message))
        self.outlet.submit(fresh)
        if self._next < self.schedule.total:
            self._net.hub.at(self.start_ns + self.schedule.offset_ns(self._next), self._tick)

    # --- what comes back -------------------------------------------------------------------------
    def unanswered(self, stream: int | None = None) -> list[Message]:
        """All (of a stream) that has no answer, oldest first: it is about to be sent again."""
        found = [
            (key, message)
            for key, (sequence, message) in self._unanswered.items()
            if stream is None or sequence % self._streams == stream
        ]
        self.resubmitted += len(found)
        return found

    def answered(self, key: Hashable, code: int, now_ns: int | None) -> None:
        """The final outcome of one message, and when it came; None: it was handed over, and nobody answers."""
        if key not in self._unanswered:
            return
        sequence, _ = self._unanswered.pop(key)
        self.codes[sequence] = code
        self._answered += 1
        self._accepted += code < Code.STALE
        if now_ns is not None:
            self.acked_ns[sequence] = now_ns
            if code < Code.STALE and sequence >= self.schedule.first_measured:
                due_ns = self.start_ns + self.schedule.offset_ns(sequence)
                self.latencies.add((now_ns - due_ns) // 1000)

    # --- the result ------------------------------------------------------------------------------
    def progress(self) -> Progress:
        return Progress(self._answered, self._net.live, self.finished, self._accepted)

    def result(self) -> Sent:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        user_s, system_s = usage.ru_utime - self._usage[0], usage.ru_stime - self._usage[1]
        if sys.byteorder == "big":
            self.acked_ns.byteswap()
        return Sent(
            codes=bytes(self.codes),
            acked_ns=self.acked_ns.tobytes(),
            latencies=self.latencies.encoded(),
            resubmitted=self.resubmitted,
            late_us_max=self.late_us_max,
            connects=self._net.connects,
            faults=dict(self._net.faults),
            cost=Cost(user_s, system_s, self.schedule.measured),
        )


def _outlet(order: Send | Publish, net: Net, desk: Desk) -> Outlet:
    if isinstance(order, Publish):
        return Publisher(order, net, desk)
    return Poster(order, net, desk) if order.plan.channel else Authors(order, net, desk)


class Worker:
    """What the process does: obeys the bench."""

    def __init__(self) -> None:
        self.process = Process(1, self._obey)
        self._sender: Sender | None = None

    def _obey(self, order: ToWorker) -> None:
        if isinstance(order, Send | Publish):
            net = Net(self.process.hub, order.plan.endpoints, order.plan.seed)
            self._sender = sender = Sender(order.plan, net, partial(_outlet, order, net))
            self.process.report(lambda: sender.outlet.ready, sender.progress)
        elif isinstance(order, Go) and self._sender is not None:
            self._sender.go(order.start_ns)
        elif isinstance(order, Stop) and self._sender is not None:
            self.process.end(self._sender.result())


if __name__ == "__main__":
    Worker().process.run()
