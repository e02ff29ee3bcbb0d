"""Worker processes, as the bench sees them: started, told what to do, listened to."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import trio

from bench.pipes import (
    Failed,
    FromWorker,
    Progress,
    Ready,
    Received,
    Sent,
    Stop,
    ToWorker,
    frame,
    from_worker,
)
from relay.errors import PosthouseError
from relay.limits import KIB

_GRACE_S = 30.0  # a worker that was told to stop has so long to hand in its result


class Worker:
    """One process. `progress` is its latest; `ready` and `done` are set as it says so."""

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.progress = Progress(0, 0)
        self.ready = trio.Event()
        self.done = trio.Event()
        self.result: Received | Sent | None = None
        self._process, self._log = process, log

    async def tell(self, order: ToWorker) -> None:
        """Write one order."""
        assert self._process.stdin is not None
        with suppress(trio.BrokenResourceError):  # `listen` sees the end of the process, and says why
            await self._process.stdin.send_all(frame(order))

    async def finish(self) -> None:
        """Ask for the result. Raises PosthouseError when it does not come."""
        with trio.move_on_after(_GRACE_S) as scope:
            await self.tell(Stop())
            await self.done.wait()
        if scope.cancelled_caught:
            raise PosthouseError(f"{self.name} did not hand in its result", f"See {self._log}")

    async def listen(self) -> None:
        """Until the result came. Raises PosthouseError when the worker fails or ends before."""
        assert self._process.stdout is not None
        reader = from_worker()
        while not self.done.is_set():
            data = await self._process.stdout.receive_some(256 * KIB)
            if not data:
                status = await self._process.wait()
                raise PosthouseError(f"{self.name} ended with status {status}", self._last_words())
            for message in reader.feed(bytes(data)):
                self._take(message)

    def _take(self, message: FromWorker) -> None:
        if isinstance(message, Failed):
            raise PosthouseError(f"{self.name}: {message.text}", message.remedy)
        if isinstance(message, Ready):
            self.ready.set()
        elif isinstance(message, Progress):
            self.progress = message
        else:
            self.result = message
            self.done.set()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"Its last line: {lines[-1]}" if lines else f"It said nothing in {self._log}"


async def work(
    module: str, name: str, order: ToWorker, logs: Path, *, task_status: trio.TaskStatus[Worker]
) -> None:
    """Run `python -m module` until it has handed in its result; the process never outlives this task."""
    log = logs / f"{name}.log"
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]  # a checkout will do
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C reaches only the bench, which then ends them
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
    worker = Worker(name, process, log)
    try:
        await worker.tell(order)
        task_status.started(worker)
        await worker.listen()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
