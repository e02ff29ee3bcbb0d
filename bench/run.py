"""One run: recipients connect, the sender gets ready, messages go out on schedule, and everything is counted."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from bench.cast import Cast, cast_members, cast_subscribers
from bench.machine import Meter, rss_mib
from bench.phases import Acks
from bench.pipes import Go, Progress, Received, Sent, ToWorker
from bench.samples import Samples, since
from bench.scenario import NS, Scenario
from bench.target import FOLLOWER, Stage, Target
from bench.workers import Worker, work
from relay.core.wire import Code
from relay.errors import PosthouseError

_CONNECT_S = 60.0  # for all recipients to be live, and as much again for each thousand of them
_LEAD_NS = NS // 2  # from Go to message 0, so that every process has heard of it
QUIET_S = 15.0  # s; a node that is killed is back in less
_LONGEST_S = 120.0  # after the last message was due, even if something still moves: a node that flaps has lost
_LINGER_S = 0.5  # after everything came: what would come a second time has so long to do it
_LOOK_S = 0.1


@dataclass(slots=True)
class Status:
    """What a progress line shows."""

    phase: str
    elapsed_s: float = 0.0
    whole_s: float = 1.0
    live: int = 0
    deliveries: int = 0
    accepted: int = 0


@dataclass(slots=True)
class Kill:
    """A node that was killed at `at_ns`, and served again at `back_ns` (0: not). Times of the monotonic clock. One that
    was told to stop had gone at `gone_ns`."""

    node: str
    led: bool
    at_ns: int
    back_ns: int = 0
    gone_ns: int = 0


@dataclass(slots=True)
class Raw:
    """What one run yielded, before it is summed up."""

    scenario: Scenario
    start_ns: int
    sent: Sent
    received: Sequence[Received]
    meter: Meter
    kills: list[Kill] = field(default_factory=list)
    counted: Mapping[str, Samples] = field(default_factory=dict)  # by the nodes, from the first message to the last
    drains: list[Kill] = field(default_factory=list)
    rss_mib: tuple[float, float] = (0.0, 0.0)  # of all nodes, before the recipients came, and when all were there

    def last_ns(self) -> list[int]:
        """For each message the time at which the last recipient had it; 0 where some recipient never did."""
        latest = [0] * self.scenario.schedule.total
        for one in self.received:
            times = array("q", one.last_ns)
            latest = [max(pair) for pair in zip(latest, times, strict=True)]
        for one in self.received:
            for sequence in one.absent:
                latest[sequence] = 0
        return latest

    def acks(self) -> Acks:
        """When each measured message was due and answered, from the start on."""
        schedule, times = self.scenario.schedule, array("q", self.sent.acked_ns)
        measured = range(schedule.first_measured, schedule.total)
        due = [schedule.offset_ns(sequence) for sequence in measured]
        return Acks(due, [times[sequence] - self.start_ns if times[sequence] else None for sequence in measured])


Show = Callable[[Status], None]


async def run_bench(scenario: Scenario, target: Target, logs: Path, show: Show, quiet_s: float = QUIET_S) -> Raw:
    """Run `scenario` against `target`; worker logs go into `logs`. When nothing has moved for `quiet_s` after the last
    message was due, what is missing is lost. Raises PosthouseError when the run is void."""
    return (await run_loads([scenario], target, logs, show, quiet_s))[0]


async def run_loads(
    scenarios: Sequence[Scenario], target: Target, logs: Path, show: Show, quiet_s: float = QUIET_S
) -> list[Raw]:
    """The same with several loads at the same time; what happens to nodes, and what is shown, is the first one's."""
    casts = [await trio.to_thread.run_sync(cast_members, scenario, target) for scenario in scenarios]
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.died)
            runs = []
            for number, (scenario, cast) in enumerate(zip(scenarios, casts, strict=True)):
                prefix = f"load-{number}-" if number else ""
                run = _Run(scenario, target, logs, _quietly if number else show, quiet_s, nursery, target, prefix)
                await run.prepare(cast)
                runs.append(run)
            start_ns = time.monotonic_ns() + _LEAD_NS
            async with trio.open_nursery() as playing:
                for run in runs:
                    playing.start_soon(run.play, start_ns)
            raws = [await run.finish(start_ns) for run in runs]
            nursery.cancel_scope.cancel()
    return raws


async def run_peer(
    scenario: Scenario, peer: str, stage: Stage, logs: Path, show: Show, quiet_s: float = QUIET_S
) -> Raw:
    """The same with the peer of that name (bench.peers) on the stage."""
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.died)
            run = _Run(scenario, stage, logs, show, quiet_s, nursery)
            await run.prepare(cast_subscribers(scenario, peer, stage.endpoints))
            start_ns = time.monotonic_ns() + _LEAD_NS
            await run.play(start_ns)
            raw = await run.finish(start_ns)
            nursery.cancel_scope.cancel()
    return raw


async def fill(scenario: Scenario, target: Target, logs: Path, show: Show) -> int:
    """Queue `scenario.backlog` envelopes for recipients that connect once and go away; returns how many were accepted.
    Raises PosthouseError."""
    seconds = max(1.0, scenario.backlog / scenario.rate)
    filling = msgspec.structs.replace(scenario, warm_up=0.0, seconds=seconds, generators=1)
    cast = await trio.to_thread.run_sync(cast_members, filling, target)
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.died)
            accepted = await _Run(filling, target, logs, show, QUIET_S, nursery).fill(cast)
            nursery.cancel_scope.cancel()
    return accepted


@contextmanager
def unwrapped() -> Iterator[None]:
    """An operator reads one error, not the groups of the nurseries that it came through."""
    try:
        yield
    except* PosthouseError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class _Run:
    def __init__(
        self, scenario: Scenario, stage: Stage, logs: Path, show: Show, quiet_s: float, nursery: trio.Nursery,
        victims: Target | None = None, prefix: str = "",
    ) -> None:  # fmt: skip
        self._scenario, self._stage, self._logs, self._nursery = scenario, stage, logs, nursery
        self._show, self._victims, self._prefix = show, victims, prefix
        self._quiet_ns = int(quiet_s * NS)
        self._meter = Meter()
        self._kills: list[Kill] = []
        self._drains: list[Kill] = []
        self._counted: dict[str, Samples] = {}
        self._receivers: list[Worker] = []
        self._senders: list[Worker] = []
        self._rss_mib = (0.0, 0.0)

    async def prepare(self, cast: Cast) -> None:
        """Everybody is there, and may begin."""
        before = self._resident()
        for number, order in enumerate(cast.receivers):
            self._receivers.append(await self._start("bench.receiver", f"receiver-{number}", order))
        await self._ready(self._receivers, "connecting")
        self._rss_mib = before, self._resident()
        self._senders.append(await self._start("bench.sender", "sender", cast.sender))
        await self._ready(self._senders, "getting ready to send")

    def _resident(self) -> float:
        return sum(map(rss_mib, self._stage.pids.values()))

    async def play(self, start_ns: int) -> None:
        """From `start_ns` on, until everything came, or nothing moves any more."""
        for worker in [*self._senders, *self._receivers]:
            await worker.tell(Go(start_ns))
        await self._drive(self._senders[0], start_ns)

    async def finish(self, start_ns: int) -> Raw:
        """What came of it."""
        for worker in [*self._senders, *self._receivers]:
            await worker.finish()
        received = [worker.result for worker in self._receivers if isinstance(worker.result, Received)]
        sent = self._senders[0].result
        assert isinstance(sent, Sent)
        return Raw(
            self._scenario, start_ns, sent, received, self._meter, self._kills, self._counted, self._drains,
            self._rss_mib,
        )  # fmt: skip

    async def fill(self, cast: Cast) -> int:
        """Let the recipients show themselves and go, then send to them; until everything is answered, or nothing is any
        more."""
        receiver = await self._start("bench.receiver", "receiver-0", cast.receivers[0])
        await self._ready([receiver], "letting the recipients show themselves")
        await receiver.finish()
        sender = await self._start("bench.sender", "sender", cast.sender)
        await self._ready([sender], "getting ready to send")
        start_ns = time.monotonic_ns() + _LEAD_NS
        await sender.tell(Go(start_ns))
        seen, moved_ns = sender.progress, start_ns
        while not sender.progress.finished and time.monotonic_ns() < moved_ns + self._quiet_ns:
            self._show(self._status("filling", start_ns, sender))
            if sender.progress != seen:
                seen, moved_ns = sender.progress, time.monotonic_ns()
            await trio.sleep(_LOOK_S)
        await sender.finish()
        assert isinstance(sender.result, Sent)
        return sum(0 < code < Code.STALE for code in sender.result.codes)

    async def _start(self, module: str, name: str, order: ToWorker) -> Worker:
        worker: Worker = await self._nursery.start(work, module, self._prefix + name, order, self._logs)
        return worker

    async def _ready(self, workers: Sequence[Worker], phase: str) -> None:
        devices = self._scenario.recipients + self._scenario.idle
        with trio.move_on_after(_CONNECT_S * (1 + devices / 1000)) as scope:
            for worker in workers:
                while not worker.ready.is_set():
                    self._show(self._status(phase))
                    with trio.move_on_after(_LOOK_S):
                        await worker.ready.wait()
        if scope.cancelled_caught:
            live = sum(worker.progress.live for worker in workers)
            raise PosthouseError(f"{phase}: only {live} devices were live in time", f"See the logs in {self._logs}")

    # --- while it runs ---------------------------------------------------------------------------
    async def _drive(self, sender: Worker, start_ns: int) -> None:
        """Until everything came, or nothing moves any more."""
        scenario, schedule = self._scenario, self._scenario.schedule
        measured_ns = start_ns + schedule.offset_ns(schedule.first_measured)
        counted = await self._stage.samples()
        await _until(measured_ns)
        self._meter.begin(self._stage.pids)
        async with trio.open_nursery() as nursery:
            if scenario.kill_at is not None:
                assert self._victims is not None, "nobody to kill"
                nursery.start_soon(self._kill, self._victims, measured_ns + int(scenario.kill_at * NS))
            if scenario.drain_at is not None:
                assert self._victims is not None, "nobody to stop"
                nursery.start_soon(self._drain, self._victims, measured_ns + int(scenario.drain_at * NS))
            end_ns = start_ns + schedule.offset_ns(schedule.total)
            seen: list[Progress] = []
            moved_ns = 0
            while not self._complete(sender):
                self._show(self._status("running", start_ns, sender))
                now, before = time.monotonic_ns(), seen
                seen = [worker.progress for worker in [sender, *self._receivers]]
                moved_ns = now if seen != before else moved_ns
                if now > min(max(moved_ns, end_ns) + self._quiet_ns, end_ns + _LONGEST_S * NS):
                    break
                await trio.sleep(_LOOK_S)
        self._meter.end(self._stage.pids)
        after = await self._stage.samples()
        self._counted = {node: since(counted.get(node, {}), now) for node, now in after.items()}
        await trio.sleep(_LINGER_S)

    def _complete(self, sender: Worker) -> bool:
        had = sum(worker.progress.count for worker in self._receivers)
        return sender.progress.finished and had >= sender.progress.accepted * self._scenario.each

    async def _kill(self, target: Target, when_ns: int) -> None:
        """SIGKILL, and perhaps a start on the same data, while the sender keeps to its schedule."""
        await _until(when_ns)
        node, leads = await target.choose(self._scenario.kill)
        self._meter.leave(node, target.pids[node])
        kill = Kill(node, leads, time.monotonic_ns())
        self._kills.append(kill)
        target.kill(node)
        if self._scenario.restart:
            await target.restart(node)
            kill.back_ns = time.monotonic_ns()

    async def _drain(self, target: Target, when_ns: int) -> None:
        """A node that does not lead is told to stop, as for an update, and comes back."""
        await _until(when_ns)
        node, leads = await target.choose(FOLLOWER)
        self._meter.leave(node, target.pids[node])
        drain = Kill(node, leads, time.monotonic_ns())
        self._drains.append(drain)
        await target.stop(node)
        drain.gone_ns = time.monotonic_ns()
        await target.restart(node)
        drain.back_ns = time.monotonic_ns()

    def _status(self, phase: str, start_ns: int = 0, sender: Worker | None = None) -> Status:
        schedule = self._scenario.schedule
        return Status(
            phase=phase,
            elapsed_s=max(0.0, (time.monotonic_ns() - start_ns) / NS) if start_ns else 0.0,
            whole_s=schedule.offset_ns(schedule.total) / NS,
            live=sum(worker.progress.live for worker in self._receivers),
            deliveries=sum(worker.progress.count for worker in self._receivers),
            accepted=sender.progress.accepted if sender is not None else 0,
        )


def _quietly(status: Status) -> None:
    """For loads beside the one that is shown."""


async def _until(when_ns: int) -> None:
    await trio.sleep(max(0.0, (when_ns - time.monotonic_ns()) / NS))
