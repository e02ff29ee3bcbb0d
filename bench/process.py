"""What the bench's worker processes share: one loop, orders in, reports out, and an end that is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from bench.pipes import Failed, FromWorker, Progress, Ready, ToWorker
from bench.scenario import NS
from bench.sockets import Control, make_hub
from relay.errors import PosthouseError

_PROGRESS_NS = NS // 4


class Process:
    """A worker process with a loop for about `sockets` sockets: `obey` gets each order of the bench."""

    def __init__(self, sockets: int, obey: Callable[[ToWorker], None]) -> None:
        self.hub = make_hub(sockets)
        self._control = Control(self.hub, obey)
        self._ready = False

    def run(self) -> None:
        """Until told to stop, or the bench is gone."""
        try:
            self.hub.run()
        except PosthouseError as error:
            self._control.say(Failed(error.text, error.remedy))
            sys.exit(1)

    def report(self, ready: Callable[[], bool], progress: Callable[[], Progress]) -> None:
        """Say how it goes, now and then four times a second, and once that it is ready to go."""
        if not self._ready and ready():
            self._ready = True
            self._control.say(Ready())
        self._control.say(progress())
        self.hub.at(time.monotonic_ns() + _PROGRESS_NS, lambda: self.report(ready, progress))

    def end(self, result: FromWorker) -> None:
        """Hand in the result, and stop."""
        self._control.say(result)
        self.hub.stop()
