"""A node as it must not be: it does not sync what it writes. `python -m tests.crash.unsynced HOW node run …`

HOW: `off` runs SQLite with synchronous=OFF (the mark beside it is synced, so that nodes may notice what they lost);
`none` leaves the mark's sync out, too. Shows that the harness finds losses.
"""

from __future__ import annotations

import sys

from cluster.cli import main
from relay.journal import database, mark

_OFF = tuple(pragma.replace("synchronous = FULL", "synchronous = OFF") for pragma in database._PRAGMAS)


def _no_sync(handle: int) -> None:
    return


if __name__ == "__main__":
    how = sys.argv.pop(1)
    assert _OFF != database._PRAGMAS
    database._PRAGMAS = _OFF  # type: ignore[assignment]
    if how == "none":
        mark.sync_handle = _no_sync
    main()
