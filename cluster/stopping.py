"""How a node is asked to stop."""

from __future__ import annotations

import signal

import structlog
import trio

_log = structlog.get_logger("cluster.node")
_AGAIN_S = 1.0  # seconds after which a signal is a second one: Ctrl-C may reach a node twice, by terminal and parent


class Stop:
    """How a node is asked to stop: once to drain, once more to end at once."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self._at_once = False
        self._parts = trio.CancelScope()

    def ask(self) -> None:
        """Drain; or, if that was asked for before, end at once."""
        if self.asked.is_set():
            self._at_once = True
            self._parts.cancel()
        self.asked.set()
        _log.info("stopping", at_once=self._at_once)

    def parts(self) -> trio.CancelScope:
        """The scope of one life of the node: everything but the last checkpoint."""
        self._parts = trio.CancelScope()
        if self._at_once:
            self._parts.cancel()
        return self._parts


async def stop_on_signal(stop: Stop, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """SIGTERM and SIGINT ask `stop`. Started when they are heard."""
    asked = 0.0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            if not stop.asked.is_set() or trio.current_time() - asked >= _AGAIN_S:
                asked = trio.current_time()
                stop.ask()
