"""One seed: a world with faults, its healing, and the reckoning."""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog
import trio

from relay.errors import DiskFailed
from tests.simulation.authors import Authors
from tests.simulation.broadcasters import Broadcasters
from tests.simulation.channels import Book, overseeing
from tests.simulation.devices import SimDevice
from tests.simulation.erasing import Asking, giving
from tests.simulation.faults import Faults
from tests.simulation.invariants import Checks, newest_of, watching
from tests.simulation.keys import signatures_once
from tests.simulation.ledger import Ledger
from tests.simulation.liar import Liar
from tests.simulation.noticed import noticing
from tests.simulation.network import Network
from tests.simulation.nodes import SimNode
from tests.simulation.options import Options, bounds, derive
from tests.simulation.people import REGIONS, make_root
from tests.simulation.proofs import Proofs
from tests.simulation.registrars import Registrars
from tests.simulation.store import SimDisk
from tests.simulation.tally import counting
from tests.simulation.watchdog import standing_still
from tests.simulation.world import Trace, Violation, World, simulate

OUR_MISTAKES = ("connection_crashed", "link_handler_failed")  # what code logs when it did not expect an exception
LOOK_S = 1.0  # seconds between two looks at everything
GONE_S = 75.0  # seconds after healing in which a revoked device is to be told so, if its home knows of it
HANGS_S = 120.0  # seconds of a processor that a world may take, where it is not made for more


@dataclass(frozen=True)
class Result:
    """What came of a seed."""

    seed: int
    options: Options
    digest: str  # of the trace
    events: int
    crashes: int
    seconds: float  # virtual
    took: float  # seconds of a processor
    counts: Counter[str]
    violation: str | None
    newest: tuple[str, ...]  # the last lines of the trace, where there is a violation


class Federation:
    """Everything in one world."""

    def __init__(self, world: World, options: Options) -> None:
        self.world, self.options = world, options
        self.net = Network(world, replace(options.weather))
        self.ledger = Ledger(world.trace)
        self.ledger.channels = Book(self.ledger)
        self.checks = Checks(self.ledger, world.trace)
        self.net.watch = self.checks.sent
        regions = REGIONS[: options.regions]
        root = make_root(options.nodes, regions, tuple(options.policies.items()))
        self.ledger.proofs = Proofs(world, self.ledger, root, options.receipts)
        self.liar = Liar(world, self.ledger, options.liar, options.lies) if options.liar in regions else None
        self.nodes = [
            SimNode(
                world, self.net, root, region, f"n{number + 1}", self._disk(f"{region} {number}"), self.checks.written,
                self.liar,
            )
            for region in regions
            for number in range(options.nodes)
        ]
        self.checks.nodes = self.nodes
        for node in self.nodes:
            node.disk.flag = node.name == "n1"
        self.authors = Authors(world, self.net, self.ledger, options)
        self.checks.rules = self.authors.rules
        self._tell_of_the_liar()
        self.broadcasters = Broadcasters(world, self.ledger.channels, self.authors, options)
        self.erasing = Asking(world.trace, self.ledger, root, self.nodes, self.checks.names)
        self.authors.leaving = self.erasing.moves
        self.registrars = Registrars(world, self.net, self.nodes, regions, options)
        self.checks.crossed = self.registrars.halts.sent
        self.faults = Faults(world, self.net, self.nodes, self.authors, options)

    def _tell_of_the_liar(self) -> None:
        """Whoever ever was at home with it may collude with it, and has nothing promised."""
        people, liar = self.authors.people, self.liar
        self.checks.names = {person.id: person.name for person in people}
        if liar is not None:
            liar.people, self.ledger.liar = people, liar.region
            homes = {person.name: person.homes for person in people}
            self.ledger.exposed = lambda name: liar.region in homes.get(name, ())

    def _disk(self, name: str) -> Any:
        random, options = self.world.random(f"disk {name}"), self.options

        def delay() -> float:
            seconds = options.disk * random.uniform(0.5, 1.5)
            return seconds * 100 if random.random() < options.slow_disk else seconds

        return SimDisk(random, delay, self.world.trace)

    async def run(self) -> None:
        """Safety with faults, healing, liveness. Raises Violation."""
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                node.start()
                nursery.start_soon(node.run)
            self.authors.start = lambda device: nursery.start_soon(device.run)
            for device in list(self.authors.devices):
                nursery.start_soon(device.run)
            nursery.start_soon(self._look)
            self.registrars.start(nursery)
            await self._safety()
            self.faults.heal()
            self.registrars.heal(nursery)
            await self._liveness()
            await self.registrars.settled()
            self._end()
            nursery.cancel_scope.cancel()

    async def _safety(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.authors.found_groups)
            nursery.start_soon(self.authors.write)
            nursery.start_soon(self.faults.run)
            if self.options.channels:
                nursery.start_soon(self.broadcasters.run)
            await trio.sleep(self.options.safety)
            nursery.cancel_scope.cancel()

    async def _liveness(self) -> None:
        """Until everything has arrived; not longer than `heal`. Raises Violation."""
        began = trio.current_time()
        while not (self._served() and not self.ledger.open() and not self.ledger.missing() and not self._under_way()):
            await trio.sleep(LOOK_S)
            if trio.current_time() - began > GONE_S and self._not_told(before=trio.current_time() - GONE_S):
                break
            if trio.current_time() - began > self.options.heal:
                break
        self.world.trace("healed", round(trio.current_time() - began, 3))
        self.checks.lost()
        self.checks.at_home_once(self.nodes)
        self.ledger.channels.at_end(newest_of(self.nodes))
        if not self._served():
            away = [device.name for device in self._honest() if not device.ready]
            if self._not_told():
                raise Violation(f"revoked, and served all the same: {', '.join(self._not_told())}")
            raise Violation(f"{self.options.heal:.0f} s after healing not served: {', '.join(away)}")
        if self.ledger.open():
            letter = self.ledger.open()[0]
            raise Violation(
                f"{self.options.heal:.0f} s after healing letter {letter.number} of {letter.sender} (group:"
                f" {letter.group}), accepted at {letter.accepted}, still has no final outcome"
            )

        if self._broken():
            raise Violation(f"{self.options.heal:.0f} s after healing not whole: {', '.join(self._broken())}")
        if self._not_erased():
            raise Violation(f"{self.options.heal:.0f} s after healing not erased: {', '.join(self._not_erased())}")
        if self._unread():
            raise Violation(f"{self.options.heal:.0f} s after healing not read: {', '.join(self._unread())}")
        if self._unanswered():
            raise Violation(f"{self.options.heal:.0f} s after healing no answer to {', '.join(self._unanswered())}")

    def _under_way(self) -> bool:
        """A cell is not whole yet, or has not handed over everything for who has left."""
        boxes = [box for node in newest_of(self.nodes) for box in node.delivery.room.state.outboxes.values()]
        users = (item.user for box in boxes for item in box.items.values() if item.user)
        waits = [self._broken(), self._not_erased(), self._unanswered(), self._unread()]
        return any(waits) or any(map(self.checks.honest, users))

    def _unanswered(self) -> list[str]:
        """Owners of groups and channels for whom no home has taken or refused what they bring."""
        owners = [one.name for one in self._honest() if any(out.roster is not None for out in one.out.values())]
        return owners + self.ledger.channels.unanswered()

    def _unread(self) -> list[str]:
        """Readers of channels who have not read all that there is."""
        return self.ledger.channels.missing(self.authors.devices)

    def _not_erased(self) -> list[str]:
        """Receipts that are not there yet, where they are not to take minutes."""
        return self.erasing.missing() if "ERASE_S" in self.options.limits else []

    def _broken(self) -> list[str]:
        """Cells of several that are not whole."""
        cells = sorted({node.cell for node in self.nodes}) if self.options.nodes > 1 else []
        return [cell for cell in cells if not self.faults.whole(cell)]

    def _served(self) -> bool:
        return all(device.ready for device in self._honest()) and not self._not_told()

    def _honest(self) -> list[SimDevice]:
        """The devices of those whom a liar has nothing to say about."""
        return [one for one in self.authors.devices if not self.ledger.exposed(one.person.name)]

    def _not_told(self, before: float = math.inf) -> list[str]:
        """Devices that were revoked, by a version that their home had before that time, and are served all the same."""
        return [
            device.name
            for device in self.authors.revoked
            if device.ready and device.revoked_in <= device.person.known and device.person.known_at < before
            and not self.ledger.exposed(device.person.name)
        ]

    async def _look(self) -> None:
        while True:
            await trio.sleep(LOOK_S)
            self.checks.bounded(self.nodes)
            self.erasing.look()
            if self.options.nodes > 1:
                self.checks.amnesia(self.nodes)
            for node in self.nodes:
                if node.ended is not None and not isinstance(node.ended, DiskFailed) and not self._lies(node):
                    raise Violation(f"{node} ended by itself: {node.ended}")

    def _lies(self, node: SimNode) -> bool:
        return self.liar is not None and node.region == self.liar.region

    def _end(self) -> None:
        self.checks.scan(self.nodes)
        self.checks.at_rest(self.nodes)
        self.erasing.look()
        for node in self.nodes:
            assert node.env is not None
            node.env.dead = True


def run_seed(seed: int, echo: Callable[[str], None] | None = None, **fixed: Any) -> Result:
    """Run a seed. `fixed` options are as given, instead of derived; `echo` gets every event as it happens."""
    options = derive(seed, **fixed)
    began = time.process_time()
    found: list[str] = []
    worlds: list[World] = []

    async def main(world: World) -> None:
        worlds.append(world)
        federation = Federation(world, options)
        with (
            watching(federation.checks), counting(world.trace), noticing(world.trace, options.liar), giving(),
            overseeing(federation.ledger.channels), federation.registrars.halts.told(),
        ):
            await federation.run()

    most = max(HANGS_S, options.safety)
    with bounds(options.limits), signatures_once(), quiet(worlds, echo), standing_still(worlds, most):
        try:
            simulate(seed, main, echo)
        except (BaseExceptionGroup, Violation, trio.TrioInternalError) as error:
            found.append(reason(error))
    world = worlds[0]
    newest = tuple(world.trace.lines()) if found else ()
    return Result(
        seed, options, world.trace.digest(), world.trace.events, world.counts["crash"], world.ended,
        time.process_time() - began, Counter(world.counts), found[0] if found else None, newest,
    )  # fmt: skip


def reason(error: BaseException) -> str:
    """The violation in it; or, where code raised what nobody expected, that with its traceback."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, Violation):
            return str(leaf)
    return "".join(traceback.format_exception(leaves[0]))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    elif isinstance(error, trio.TrioInternalError) and error.__cause__ is not None:
        yield from _leaves(error.__cause__)
    else:
        yield error


@contextmanager
def quiet(worlds: list[World], echo: Callable[[str], None] | None) -> Iterator[None]:
    """What nodes log goes into the trace, from warnings up (with `echo`: all). What they log as a mistake of their own
    is a violation."""
    level = logging.DEBUG if echo is not None else logging.WARNING

    def into_trace(_logger: Any, method: str, event: Any) -> Any:
        name = event.pop("event")
        trace: Trace = worlds[0].trace
        if method in ("warning", "error", "critical"):
            trace(f"log {name}")
        if echo is not None:
            echo(f"{trio.current_time():12.6f}    {method} {name} {event}")
        if name in OUR_MISTAKES:
            raise Violation(f"{name}: {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[into_trace], wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
