"""A running node's root document: what is put into its file is verified, kept, and used as far as that goes without a
restart; and it is said aloud when nothing newer comes.

The owner of which root document this node trusts. What it says of the regions counts at once (cluster.following), but
for who the nodes of the own cell are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import structlog
import trio

from cluster.core.auditlog import REFUSED
from cluster.env import RealClock
from cluster.following import Following, changed
from cluster.kept import keep_root
from cluster.trail import Noting, unnoted
from relay.core.trust import Root, follow_root, region_ends, reopen_root
from relay.errors import OperatorError, ProtocolError, TrustError

_log = structlog.get_logger("cluster.rootfile")
_LOOK_S: Final = 2.0  # seconds between two looks at the file; a look is one stat(2)
_AGAIN_S: Final = 60.0  # seconds until what was refused is tried again, in silence
_SAY_AGAIN_S: Final = 86_400.0  # seconds between two complaints
_wall_ms: Final = RealClock().wall_ms
_Stamp = tuple[int, int, int, int]


class RootFile:
    """[paths] root of a running node."""

    def __init__(
        self, path: Path, data: Path, signed: bytes, cell: str, now_ms: Callable[[], int] = _wall_ms,
        note: Noting = unnoted, actor: str = "node", routed: Callable[[Root], Root] = lambda root: root,
    ) -> None:
        """`signed`: the root document that this process verified when it began. It is kept in `data` before anything
        uses it. `cell`: whose node this is. `routed`: with the addresses that it dials. `note`: of each that is taken,
        before it counts, or refused, by `actor`. Raises OperatorError, TrustError."""
        self._actor = actor
        keep_root(data, signed)
        self._path, self._data, self._now_ms, self._note = path, data, now_ms, note
        self._trusted = reopen_root(signed, now_ms())
        self._routed = routed
        self.following = Following(routed(self._trusted), cell)
        self._ends, self._lapsed = region_ends(self._trusted), frozenset(self._trusted.payload.lapsed)
        self._removed = frozenset[str]()
        # What lies there may be newer than what was read: it is looked at, too.
        self._seen: _Stamp | None = None
        self._taken: _Stamp | None = None
        self._refused: _Stamp | None = None
        self._again = 0.0  # when what was refused is tried again (trio's clock)

    def lapsed(self) -> Collection[str]:
        """The regions that are not believed any more: their own statement has run out by now, so that nobody speaks for
        them until they sign another one, or the keepers removed them."""
        return self._lapsed | self._removed

    @property
    def waits(self) -> str:
        """What /readyz adds: what of the newest root document counts after a restart only; empty where nothing does."""
        what = f"version {self._trusted.payload.version} of the root document waits for a restart"
        return f"{what}: {self.following.waits}" if self.following.waits else ""

    @property
    def trusted(self) -> Root:
        """The newest root document that this node has verified."""
        return self._trusted

    async def watch(self) -> None:
        """Look at the file, and at the time, until cancelled. Whatever lies there, the node goes on with what it has;
        raises DiskFailed where it cannot be noted."""
        said = -_SAY_AGAIN_S
        while True:
            if trio.current_time() - said >= _SAY_AGAIN_S:
                said = trio.current_time()
                self._say_stale()
            await trio.sleep(_LOOK_S)
            self._look()
            self._look_at_regions()

    def _look(self) -> None:
        """Take what was put there, once it has lain there for two looks; somebody may still be writing it."""
        found = self._stamp()
        settled, self._seen = found == self._seen, found
        if not settled or found == self._taken or found is None:
            return
        if found == self._refused and trio.current_time() < self._again:
            return
        try:
            signed = self._path.read_bytes()
            if signed == self._trusted.signed:
                self._taken = found
                return
            root = follow_root(signed, self._trusted.signed, self._now_ms(), self._trusted.federation_id)
            keep_root(self._data, signed)
        except (TrustError, ProtocolError, OperatorError, OSError) as error:
            self._again = trio.current_time() + _AGAIN_S  # the disk may be full, or the clock be set right
            if found != self._refused:
                self._refused = found
                self._note("root.take", self._actor, f"{REFUSED}: {error}", before=self._trusted.payload.version)
                _log.error("root_refused", text=str(error), version=self._trusted.payload.version)
            return
        self._taken = found
        regions = changed(self._trusted, root)
        version, digest = root.payload.version, root.digest.hex()
        self._note("root.take", self._actor, version=version, digest=digest, regions=regions)
        before = self._ends
        self._trusted, self._ends = root, region_ends(root)
        self._removed = (self._removed | before.keys()) - self._ends.keys()
        for name in sorted(before.keys() - self._ends.keys()):
            text = f"the keepers removed region {name}: no link to or from it is used"
            _log.warning("region_removed", region=name, text=text)
        self.following.take(self._routed(root))
        until = _day(root.payload.fresh_until)
        _log.info("root_taken", version=root.payload.version, until=until, regions=regions)
        if waits := self.following.waits:
            text = f"{waits}: restart the nodes of the cell one after the other"
            _log.warning("root_waits", version=root.payload.version, until=until, text=text)

    def _look_at_regions(self) -> None:
        """What was valid when the document was verified has an end of its own."""
        now = self._now_ms()
        lapsed = frozenset(name for name, end in self._ends.items() if now >= end)
        for name in sorted(lapsed - self._lapsed):
            text = f"the statement of region {name} ended on {_day(self._ends[name])}: no link to or from it is used"
            remedy = "Its operator signs it again: posthouse init statement; then publish, and put root.bin here"
            _log.error("region_lapsed", region=name, text=text, remedy=remedy)
        self._lapsed = lapsed

    def _say_stale(self) -> None:
        payload = self._trusted.payload
        if self._now_ms() < payload.fresh_until:
            return
        what = f"version {payload.version} of the root document was news until {_day(payload.fresh_until)}"
        text = f"{what}; from {_day(payload.expires)} on no node starts with it"
        remedy = f"Put the newest one into {self._path}; the keepers make it: posthouse federation publish"
        _log.error("root_stale", text=text, remedy=remedy)

    def _stamp(self) -> _Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
