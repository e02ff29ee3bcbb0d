"""What a node counts. Labels are bounded: cells and nodes come from the root document, reasons from wire.Code and
wire.Fault, or are the few that the counter's text names.

Never a user, a device or an address in a label: a metric is a disk too (DESIGN section 5, rules 2 and 6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from relay.observe.process import ProcessFigures

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_exposition = cast("Callable[[CollectorRegistry], bytes]", generate_latest)  # the library leaves it untyped

# Seconds. A commit is about 1 ms on a healthy disk; past a second something is wrong with it.
_COMMIT_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
# Seconds. Live deliveries take milliseconds; what waited for a device that was away goes to the last ones.
_DELIVERY_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 60.0, 3600.0, 86400.0)

# Seconds. How late a loop wakes that has nothing else to do is below the first.
_STOP_BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0, 10.0)


class Metrics:
    """The metrics of one node, in a registry of their own, so that several nodes can live in one test process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessFigures(self.registry)  # CPU seconds, resident memory, open files
        # envelopes
        self.submitted = self._counter("submitted", "Envelopes that clients submitted")
        self.admitted = self._counter("admitted", "Envelopes that the fold took (from clients and from other cells)")
        self.delivered = self._counter("delivered", "Envelopes queued for a device's socket, once for each device")
        self.forwarded = self._counter("forwarded", "Numbers of an outbox that the other cell answered", "cell")
        self.refused = self._counter("refused", "Requests and connections refused, by wire code or fault", "reason")
        self.carried = self._counter("carried", "Records that were appended again so that a prefix could go")
        # connections
        self.connections = self._gauge("connections", "Open client connections, authenticated or not")
        self.sessions = self._gauge("sessions", "Device sessions that are delivered to")
        what = "Device sessions that read from the journal: they have just come, or were demoted"
        self.catching_up = self._gauge("catching_up", what)
        what = "Sessions and subscriptions that fan-out left to catch-up: unread, unacked, overrun, reread, posts"
        self.demoted = self._counter("demoted", what, "reason")
        self.subscriptions = self._gauge("subscriptions", "Subscriptions of connections to broadcast channels")
        self.links_up = self._gauge("links_up", "1 while this node has a working link to the cell", "cell")
        self.peers_up = self._gauge("peers_up", "1 while this node has a working link to the node of its cell", "node")
        what = "Unix time at which this node's certificate, or its authority's, ends"
        self.certificate_expires = self._gauge("certificate_expires_timestamp_seconds", what)
        what = "Unix time until which this node's root document is news: then there should be a newer one"
        self.root_fresh = self._gauge("root_fresh_until_timestamp_seconds", what)
        what = "1 while nothing goes to the region or comes from it: its log is proven to have forked"
        self.region_halted = self._gauge("region_halted", what, "region")
        what = "Notes to a node of the own cell that were not sent (no_link, no_room), or from it not taken (inbox)"
        self.notes_dropped = self._counter("notes_dropped", what, "node", "reason")
        # what waits
        self.queue_depth = self._gauge("queue_depth", "Records that wait for the journal's next block")
        self.waiting = self._gauge("waiting", "Records in the log that somebody still has to get")
        self.outbox_bytes = self._gauge("outbox_bytes", "Bytes queued for clients' sockets")
        # the journal
        self.journal_blocks = self._gauge("journal_blocks", "Blocks that the journal keeps")
        self.journal_bytes = self._counter("journal_bytes", "Bytes of records committed since the start")
        self.scrubbed = self._counter("scrubbed_bytes", "Bytes at rest that were read again and verified")
        self.repaired = self._counter("repaired", "Blocks that were damaged at rest and put back as they were")
        self.damaged = self._gauge("damaged", "Blocks and checkpoints that the last pass found damaged and not mended")
        # how long
        self.commit_seconds = self._histogram("commit_seconds", "From append to durable", _COMMIT_BUCKETS)
        self.delivery_seconds = self._histogram(
            "delivery_seconds", "From a block's time until all who are online were given it; of a round's oldest",
            _DELIVERY_BUCKETS,
        )

        # how long it stands still
        what = "How late the node's loop woke, asked fifty times a second: for so long nothing else of it ran"
        self.loop_late_seconds = self._histogram("loop_late_seconds", what, _STOP_BUCKETS)
        what = "How long each look of Python's garbage collector took: meanwhile nothing else ran"
        self.gc_pause_seconds = self._histogram("gc_pause_seconds", what, _STOP_BUCKETS)
        what = "For how long no block was applied: a checkpoint's rows were made, or waited for the one before"
        self.checkpoint_still_seconds = self._histogram("checkpoint_still_seconds", what, _STOP_BUCKETS)
        what = "From the block that a checkpoint is of until it was on the disk, and what it covers let go"
        self.checkpoint_seconds = self._histogram("checkpoint_seconds", what, _STOP_BUCKETS)
        self.checkpoint_bytes = self._gauge("checkpoint_bytes", "Bytes of the rows of the newest checkpoint")

    def render(self) -> bytes:
        """All metrics as OpenMetrics 1.0 text; its content type is `CONTENT_TYPE`."""
        return _exposition(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"posthouse_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"posthouse_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"posthouse_{name}", text, buckets=buckets, registry=self.registry)
