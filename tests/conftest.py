"""What every test shares: Hypothesis is deterministic where CI is set, Ctrl-C works in a job of the background, too,
no worker takes the ports of another, and no test leaves its logging to the next."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from cluster.local import make
from tests.ports import share

# A loaded two-core machine is slow now and then: deadlines and slow-data checks would only flake.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# A shell starts its background jobs with SIGINT ignored, and they hand that on to all their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

make._PORTS = share(make._PORTS)  # of the federations that this process makes


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Commands that run in this process configure logging for all of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers, root.level = handlers, level
