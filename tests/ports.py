"""Ports for what a test starts: no two workers of a run have any in common, and none is one that a system hands out for
outgoing connections (32768 on, Linux): such a port can be taken between the choice and the start of its process."""

from __future__ import annotations

import os
from itertools import count as count_up

from cluster.config_keys import Address
from cluster.local import make

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def share(whole: range) -> range:
    """What this worker has of `whole`."""
    size = len(whole) // _WORKERS
    return whole[_WORKER * size : (_WORKER + 1) * size]


_OWN = share(range(10_000, 20_000))  # below those that `make_federation` takes
_places = count_up(os.getpid())  # another run on this machine begins elsewhere


def free_ports(count: int) -> list[int]:
    """So many in a row, handed out to nobody else in this process, on which nobody listens."""
    for _ in range(len(_OWN)):
        found = [_OWN[next(_places) % len(_OWN)] for _ in range(count)]
        if found[-1] - found[0] == count - 1 and all(make.port_is_free(Address("127.0.0.1", one)) for one in found):
            return found
    raise AssertionError(f"no {count} free ports in a row in {_OWN}")
