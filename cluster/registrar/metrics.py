"""What a registrar counts. Labels are witnesses' and logs' names, which come from the config; never a user."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.exposition import generate_latest

from relay.observe.process import ProcessFigures

_exposition = cast("Callable[[CollectorRegistry], bytes]", generate_latest)  # the library leaves it untyped


class RegistrarMetrics:
    """The metrics of one registrar, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessFigures(self.registry)
        self.logged = self._counter("logged", "Home records that were signed and logged")
        self.refused = self._counter("refused", "Requests that were refused")
        self.batches = self._counter("batches", "Batches, each with an epoch, a checkpoint and a commit")
        self.cosigned = self._counter("cosigned", "Cosignatures that our log got, by witness", "witness")
        self.not_cosigned = self._counter("not_cosigned", "Times that a witness gave none", "witness")
        self.verdicts = self._counter("verdicts", "Answers that we gave as a witness", "log", "status")
        what = "1: the log contradicted itself, and we stand by it no more"
        self.forked = Gauge("posthouse_registrar_forked_log", what, ["log"], registry=self.registry)

    def render(self) -> bytes:
        """All metrics as OpenMetrics 1.0 text."""
        return _exposition(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"posthouse_registrar_{name}", text, labels, registry=self.registry)
