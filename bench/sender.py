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

from bench.accounts import Latencies
from bench.device import Device, Net
from bench.envelopes import make_envelope
from bench.pipes import Cost, Go, Progress, Send, Sent, Stop, ToWorker
from bench.process import Process
from bench.scenario import Schedule
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.errors import PeerError
from relay.limits import KIB, MAX_BATCH

_SUBMIT_BYTES = 512 * KIB  # bytes of envelopes in one SUBMIT, below MAX_FRAME


class Sender:
    """The group's owner, and the process around it. `roster → waiting for Go → sending → all answered`."""

    def __init__(self, order: Send, net: Net) -> None:
        plan = order.plan
        self._order, self._net = order, net
        self.schedule = Schedule(plan.rate, plan.warm_up, plan.seconds)
        self.device = Device(net, order.device, self)
        self.published = False
        self.start_ns = 0
        self.codes = bytearray(self.schedule.total)
        self.acked_ns = array("q", bytes(8 * self.schedule.total))
        self.latencies = Latencies()
        self.resubmitted = self.late_us_max = 0
        self._answered = self._accepted = 0
        self._unanswered: dict[bytes, tuple[int, bytes]] = {}  # id: (sequence, envelope), in sending order
        self._next = 0
        self._usage: tuple[float, float] = (0.0, 0.0)
        net.add(self.device)

    @property
    def finished(self) -> bool:
        """Everything was sent, and has its final receipt."""
        return self._next == self.schedule.total and not self._unanswered

    # --- the roster, then the schedule -----------------------------------------------------------
    def live(self) -> None:
        """Connected, or again: the roster first; then all that has no answer, oldest first."""
        if not self.published:
            self.device.send(wire.Roster(self._order.head, self._order.parts))
            return
        self.resubmitted += len(self._unanswered)
        self._submit([envelope for _, envelope in self._unanswered.values()])

    def go(self, start_ns: int) -> None:
        """Message 0 is due at `start_ns`."""
        self.start_ns = start_ns
        gc.collect()
        gc.freeze()
        self._net.hub.at(start_ns, self._tick)

    def _tick(self) -> None:
        """Everything that is due now goes out in one SUBMIT."""
        now_ns, now_ms, plan = time.monotonic_ns(), time.time_ns() // 1_000_000, self._order.plan
        fresh: list[bytes] = []
        for sequence in range(self._next, self.schedule.due(now_ns - self.start_ns)):
            if sequence == self.schedule.first_measured:
                usage = resource.getrusage(resource.RUSAGE_SELF)
                self._usage = usage.ru_utime, usage.ru_stime
            due_ns = self.start_ns + self.schedule.offset_ns(sequence)
            self.late_us_max = max(self.late_us_max, (now_ns - due_ns) // 1000)
            envelope = make_envelope(plan.group, plan.seed, sequence, due_ns, plan.size, now_ms)
            self._unanswered[envelope_id(envelope)] = sequence, envelope
            self._next = sequence + 1
            fresh.append(envelope)
        self._submit(fresh)
        if self._next < self.schedule.total:
            self._net.hub.at(self.start_ns + self.schedule.offset_ns(self._next), self._tick)

    def _submit(self, envelopes: list[bytes]) -> None:
        """In batches; without a connection they wait among the unanswered."""
        batch: list[wire.SubmitItem] = []
        size = 0
        for envelope in envelopes:
            if len(batch) == MAX_BATCH or size + len(envelope) > _SUBMIT_BYTES:
                self.device.send(wire.Submit(tuple(batch)))
                batch, size = [], 0
            batch.append(wire.SubmitItem("", envelope))
            size += len(envelope)
        if batch:
            self.device.send(wire.Submit(tuple(batch)))

    # --- what comes back -------------------------------------------------------------------------
    def read(self, messages: list[bytes], now_ns: int) -> int:
        """Receipts; what else is delivered to the sender is acked like anybody's."""
        deliveries = 0
        for message in messages:
            decoded = self.device.other(message)
            if isinstance(decoded, wire.Receipt):
                for item in decoded.items:
                    self._receipt(item, now_ns)
            elif isinstance(decoded, wire.Deliver | wire.Notice):
                self.device.cursor = max(self.device.cursor, decoded.position)
                deliveries += 1
        return deliveries

    def _receipt(self, item: wire.ReceiptItem, now_ns: int) -> None:
        if item.id == digest(self._order.head):
            if item.code >= wire.Code.STALE:
                raise PeerError(f"the node refused the bench's roster: {_code_name(item.code)}")
            self.published = True
            return
        if item.id not in self._unanswered:
            return
        sequence, _ = self._unanswered.pop(item.id)
        self.codes[sequence] = item.code
        self.acked_ns[sequence] = now_ns
        self._answered += 1
        if item.code < wire.Code.STALE:
            self._accepted += 1
            if sequence >= self.schedule.first_measured:
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


def _code_name(code: int) -> str:
    return wire.Code(code).name if code in set(wire.Code) else str(code)


class Worker:
    """What the process does: obeys the bench."""

    def __init__(self) -> None:
        self.process = Process(1, self._obey)
        self._sender: Sender | None = None

    def _obey(self, order: ToWorker) -> None:
        if isinstance(order, Send):
            self._sender = sender = Sender(order, Net(self.process.hub, order.plan.endpoints, order.plan.seed))
            self.process.report(lambda: sender.published, sender.progress)
        elif isinstance(order, Go) and self._sender is not None:
            self._sender.go(order.start_ns)
        elif isinstance(order, Stop) and self._sender is not None:
            self.process.end(self._sender.result())


if __name__ == "__main__":
    Worker().process.run()
