"""The canary: two full SDK clients, one of which writes to a group of both, at a low rate, while the load runs.

The raw receivers prove that bytes arrive; the canary proves that messages do: sealed, restored in order, without
repeats, through the same node and the same kill.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import trio

from bench.accounts import Ledger, exact_ms
from bench.target import REGION, LocalTarget
from cluster.local.people import create_user
from relay.client import Client, Group, open_client
from relay.errors import PosthouseError

_READY_S = 60.0  # to connect both, and to publish their group
_COLLECT_S = 30.0  # after the load, for what is still on its way (a gap is held back a bounded time first)


@dataclass
class Canary:
    """What it saw. `stop` ends the sending; `done` follows when everything came, or too much time has passed."""

    rate: float
    sent: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    latencies_ns: list[int] = field(default_factory=list)
    arrived: trio.Event = field(default_factory=trio.Event)
    stop: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)

    def summary(self) -> dict[str, Any]:
        """Its part of the report."""
        lost = len(self.ledger.absent(self.sent))
        return {
            "sent": self.sent,
            "received": self.sent - lost,
            "lost": lost,
            "duplicated": self.ledger.duplicated,
            "reordered": self.ledger.reordered,
            "p50_ms": exact_ms(self.latencies_ns).get("p50"),
        }


async def fly(canary: Canary, target: LocalTarget, *, task_status: trio.TaskStatus[None]) -> None:
    """Send and receive until `canary.stop`, then until everything came. Raises PosthouseError where the SDK does, or
    when it does not get ready in time."""
    home, now_ms = target.layout.home, time.time_ns() // 1_000_000
    await trio.to_thread.run_sync(create_user, home, "sender", REGION, now_ms)
    card = await trio.to_thread.run_sync(create_user, home, "canary", REGION, now_ms)
    async with open_client(home.store("canary")) as receiver, open_client(home.store("sender")) as sender:
        with trio.move_on_after(_READY_S) as scope:
            await receiver.caught_up()
            group = await sender.create_group("canary", [card])
        if scope.cancelled_caught:
            raise PosthouseError(f"the canary was not ready after {_READY_S:.0f} s", f"See {home.directory}/nodes")
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_receive, canary, receiver)
            nursery.start_soon(_give_up, canary, nursery.cancel_scope)
            await _send(canary, sender, group)
            nursery.cancel_scope.cancel()
    canary.done.set()


async def _send(canary: Canary, client: Client, group: Group) -> None:
    while not canary.stop.is_set():
        await client.send_group(group.id, f"{canary.sent} {time.monotonic_ns()}".encode(), wait="queued")
        canary.sent += 1
        with trio.move_on_after(1 / canary.rate):
            await canary.stop.wait()
    await client.drained()
    while canary.ledger.absent(canary.sent):
        await canary.arrived.wait()


async def _give_up(canary: Canary, scope: trio.CancelScope) -> None:
    """What has not come by then is lost."""
    await canary.stop.wait()
    scope.deadline = trio.current_time() + _COLLECT_S


async def _receive(canary: Canary, client: Client) -> None:
    async for message in client.messages():
        sequence, sent_ns = map(int, message.content.split())
        if canary.ledger.take(sequence):
            canary.latencies_ns.append(time.monotonic_ns() - sent_ns)
        canary.arrived.set()
        canary.arrived = trio.Event()
