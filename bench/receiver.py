"""A receiving process: its share of the recipients, each a raw socket, everything counted exactly.

All recipients get the same bytes, so a message is decoded and checked once, and the others are compared with it (one
dict look-up over all their bytes): what is measured is the system, not decoding in the generator.

`python -m bench.receiver`, with the orders on stdin (bench.pipes).
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from array import array
from collections import Counter
from itertools import islice

from bench.accounts import Latencies, Ledger
from bench.broadcast import Readers
from bench.client import Net
from bench.device import Device
from bench.dialect import Cutting, Hearing
from bench.peers.clients import Subscribers
from bench.pipes import Cost, Go, Plan, Progress, Receive, Received, Stop, Subscribe, ToWorker
from bench.posthouse import Members
from bench.process import Process
from bench.scenario import Schedule
from bench.tape import Noted, Part, Run, Tape
from relay.errors import ProtocolError

_KNOWN = 4096  # messages that are kept decoded; recipients are never further apart unless they catch up
_SAMPLES = 100  # messages that `parse_us` measures with


class Tally:
    """What all recipients of this process saw."""

    def __init__(self, plan: Plan, hearing: Hearing) -> None:
        schedule = Schedule(plan.rate, plan.warm_up, plan.seconds)
        self.hearing = hearing
        self.total, self.first_measured = schedule.total, schedule.first_measured
        self.schedule, self.streams = schedule, len(plan.addresses)
        self.latencies = [Latencies() for _ in range(schedule.intervals)]  # by when a message was due
        self.last_ns = array("q", bytes(8 * schedule.total))
        self.known: dict[bytes, Noted] = {}
        here = Counter(map(hearing.stream, range(hearing.recipients)))
        self.tapes = {stream: Tape() for stream, count in here.items() if count > 1} if hearing.alike else {}
        self.parts: list[Part] = []  # that have times which are not counted yet
        self.deliveries = self.reads = self.wire_duplicates = self.damaged = 0
        self.returned_ns = self.live_ns = self.caught_ns = 0
        self._usage: tuple[float, float, int] | None = None

    def decode(self, message: bytes) -> Noted:
        """What is known of a message, and remember it. Raises ProtocolError."""
        self.settle()
        position, sequence, scheduled_ns = self.hearing.decode(message)
        if not 0 <= sequence < self.total:
            raise ProtocolError("an envelope that the bench did not send")
        if len(self.known) >= _KNOWN:
            for oldest in list(islice(self.known, _KNOWN // 2)):
                del self.known[oldest]
        if self._usage is None and sequence >= self.first_measured:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            self._usage = usage.ru_utime, usage.ru_stime, self.deliveries
        number, stream = divmod(sequence, self.streams)
        timed = sequence >= self.first_measured
        counts = self.latencies[self.schedule.interval(sequence)].counts if timed else None
        self.known[message] = known = stream, position, number, sequence, scheduled_ns, counts
        return known

    def settle(self) -> None:
        """Count what was read of parts up to now: `deliveries`, `latencies` and `last_ns` are right."""
        last_ns = self.last_ns
        for part in self.parts:
            times_ns, newest_ns = part.times_ns, part.times_ns[-1]
            self.deliveries += len(times_ns) * len(part.notes)
            if part.counts is not None:
                due_ns = [note[4] for note in part.notes]
                part.counts.update([(now_ns - due) // 1000 for now_ns in times_ns for due in due_ns])
                for note in part.notes:
                    last_ns[note[3]] = max(last_ns[note[3]], newest_ns)
            times_ns.clear()
        self.parts.clear()

    def cost(self) -> Cost:
        """CPU since the first measured message."""
        if self._usage is None:
            return Cost(0.0, 0.0, 0)
        user, system, count = self._usage
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Cost(usage.ru_utime - user, usage.ru_stime - system, self.deliveries - count)


class Recipient:
    """One recipient: a client and its ledger."""

    __slots__ = ("_tally", "caught_up", "client", "ledger", "stream")

    def __init__(self, net: Net, tally: Tally, place: int = 0) -> None:
        self._tally = tally
        self.ledger = Ledger()
        self.caught_up = False
        self.stream = tally.hearing.stream(place)
        self.client = tally.hearing.client(net, self, place)
        self.client.tape = tally.tapes.get(self.stream)

    @property
    def have(self) -> int:
        """See bench.dialect.Recipient."""
        return min(self.ledger.missing, default=self.ledger.next)

    def live(self) -> None:
        """Nothing to say again: the greeting said what this client has."""
        self._tally.live_ns = time.monotonic_ns()

    def ready(self) -> None:
        """Whatever is sent from now on comes here."""
        self.caught_up = True
        self._tally.caught_ns = time.monotonic_ns()

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """The hot path: what is on the tape in a few steps, whatever it is; and one by one where that does not do."""
        count, tally = 0, self._tally
        if type(messages) is Run:
            for part in messages.parts(tally.known):
                count += self._read_part(part, now_ns) or self._read_each(part.messages, now_ns)
        else:
            count = self._read_each(messages, now_ns)
        tally.reads += count > 0
        return count

    def _read_each(self, messages: list[bytes], now_ns: int) -> int:
        tally, client, ledger = self._tally, self.client, self.ledger
        known_messages, last_ns = tally.known, tally.last_ns
        cursor, taken, deliveries = client.cursor, 0, 0
        for message in messages:
            known = known_messages.get(message)
            if known is None:
                if not tally.hearing.delivers(client, self, message):
                    continue
                deliveries += 1
                try:
                    known = tally.decode(message)
                except ProtocolError:
                    tally.damaged += 1
                    continue
            else:
                deliveries += 1
            stream, position, number, sequence, scheduled_ns, counts = known
            if stream != self.stream:
                tally.damaged += 1
                continue
            if 0 < position <= cursor:
                tally.wire_duplicates += 1
                continue
            cursor = position
            if not ledger.take(number):
                continue
            taken += 1
            if counts is not None:
                us = (now_ns - scheduled_ns) // 1000
                counts[us] = counts.get(us, 0) + 1
                if now_ns > last_ns[sequence]:
                    last_ns[sequence] = now_ns
        client.cursor = cursor
        tally.deliveries += taken
        return deliveries

    def _read_part(self, part: Part, now_ns: int) -> int:
        """How many it has. 0, and nothing is done, where it does not follow on for this recipient."""
        ledger, client, times_ns = self.ledger, self.client, part.times_ns
        if part.number != ledger.next or part.stream != self.stream or 0 < part.position <= client.cursor:
            return 0
        ledger.next, client.cursor = part.next, part.cursor
        if not times_ns:
            self._tally.parts.append(part)
        times_ns.append(now_ns)
        return len(part.messages)


def parse_us(net: Net, hearing: Hearing, plan: Plan) -> float:
    """What one delivery costs here between `recv` and the next one, µs of CPU, over the very code of the run: every
    message to a hundred recipients, one a read."""
    tally = Tally(plan, hearing)
    recipients = [(_line(hearing, tally), Recipient(net, tally)) for _ in range(100)]
    samples = range(hearing.stream(0), tally.total, tally.streams)[:_SAMPLES]
    frames = [hearing.sample(number) for number in samples]
    start_ns = time.process_time_ns()
    for frame in frames:
        for line, recipient in recipients:
            recipient.read(line.feed(frame), time.monotonic_ns())
    tally.settle()
    return (time.process_time_ns() - start_ns) / 1000 / (len(frames) * len(recipients))


def _line(hearing: Hearing, tally: Tally) -> Cutting:
    line = hearing.cutter()
    if (tape := tally.tapes.get(hearing.stream(0))) is not None:
        line.follow(tape)
    return line


def _hearing(order: Receive | Subscribe) -> Hearing:
    if isinstance(order, Subscribe):
        return Subscribers(order)
    return Readers(order) if order.plan.channel else Members(order)


class Idler:
    """Is connected, and gets nothing."""

    def live(self) -> None:
        """See bench.device.Reader."""

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """See bench.device.Reader."""
        return 0


class Receiver:
    """What the process does: obeys the bench."""

    def __init__(self) -> None:
        self.process = Process(1 << 16, self._obey)
        self._net: Net | None = None
        self._tally: Tally | None = None
        self._plan: Plan | None = None
        self._recipients: list[Recipient] = []
        self._clients = 0

    def _obey(self, order: ToWorker) -> None:
        if isinstance(order, Receive | Subscribe):
            hearing = _hearing(order)
            self._plan = plan = order.plan
            self._net = Net(self.process.hub, plan.endpoints, plan.seed, narrow=plan.stall_ns is not None)
            self._tally = Tally(order.plan, hearing)
            self._recipients = [Recipient(self._net, self._tally, place) for place in range(hearing.recipients)]
            for recipient in self._recipients:
                self._net.add(recipient.client)
            idle = order.idle if isinstance(order, Receive) else ()
            for place, device in enumerate(idle):
                self._net.add(Device(self._net, device, Idler(), place))
            self._clients = len(idle) + len(self._recipients)
            self.process.report(self._caught_up, self._progress)
        elif isinstance(order, Go):
            gc.collect()
            gc.freeze()  # what the collector need not look at again while the clock runs
            if self._plan is not None and self._plan.away_ns is not None:
                at_ns, for_ns = self._plan.away_ns
                self.process.hub.at(order.start_ns + at_ns, self._leave)
                self.process.hub.at(order.start_ns + at_ns + for_ns, self._come_back)
            if self._plan is not None and self._plan.stall_ns is not None:
                at_ns, for_ns = self._plan.stall_ns
                self.process.hub.at(order.start_ns + at_ns, self._stall)
                self.process.hub.at(order.start_ns + at_ns + for_ns, self._read_again)
        elif isinstance(order, Stop):
            self.process.end(self._result())

    def _leave(self) -> None:
        assert self._net is not None
        for recipient in self._recipients:
            recipient.caught_up = False
        self._net.leave()

    def _stall(self) -> None:
        assert self._net is not None
        self._net.deafen(True)

    def _read_again(self) -> None:
        assert self._net is not None and self._tally is not None
        self._tally.returned_ns = self._tally.live_ns = time.monotonic_ns()
        self._net.deafen(False)

    def _come_back(self) -> None:
        assert self._net is not None and self._tally is not None
        self._tally.returned_ns = time.monotonic_ns()
        self._net.come_back()

    def _caught_up(self) -> bool:
        """Everybody is served, and has what waited."""
        assert self._net is not None
        return self._net.live == self._clients and all(recipient.caught_up for recipient in self._recipients)

    def _progress(self) -> Progress:
        assert self._net is not None and self._tally is not None
        self._tally.settle()
        return Progress(self._tally.deliveries, self._net.live)

    def _result(self) -> Received:
        assert self._net is not None and self._tally is not None and self._plan is not None
        tally, ledgers = self._tally, [recipient.ledger for recipient in self._recipients]
        tally.settle()
        cost = tally.cost()  # before the summing up, which is no part of it
        absent: Counter[int] = Counter()
        for recipient in self._recipients:
            of_stream = range(recipient.stream, tally.total, tally.streams)
            absent.update(of_stream[number] for number in recipient.ledger.absent(len(of_stream)))
        if sys.byteorder == "big":
            tally.last_ns.byteswap()
        return Received(
            deliveries=tally.deliveries,
            reads=tally.reads,
            latencies=tuple(one.encoded() for one in tally.latencies),
            last_ns=tally.last_ns.tobytes(),
            absent=dict(absent),
            duplicated=sum(ledger.duplicated for ledger in ledgers),
            reordered=sum(ledger.reordered for ledger in ledgers),
            wire_duplicates=tally.wire_duplicates,
            damaged=tally.damaged,
            connects=self._net.connects,
            faults=dict(self._net.faults),
            cost=cost,
            back_ns=(tally.returned_ns, tally.live_ns, tally.caught_ns if self._caught_up() else 0),
            parse_us=parse_us(self._net, tally.hearing, self._plan),
        )


if __name__ == "__main__":
    Receiver().process.run()
