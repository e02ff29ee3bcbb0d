"""The registrars keep each other's word for their audit logs, as the nodes of a cell do (ADR 26).

Each shows the newest signed checkpoint of its log (`GET /audit`), and asks the others for theirs, which it notes in its
own log: what a registrar has signed it cannot take back without all of them. What it notes of others does not make it
show another checkpoint; else each would go on noting that the other has noted.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio

from cluster.core.auditlog import REGISTRAR, whose_log
from cluster.registrar.http import Caller
from cluster.trail import Trail
from relay.core.tlog import (
    ED25519, LogError, Trust, VerifierKey, parse_checkpoint, parse_note, signers, verify_checkpoint,
)  # fmt: skip
from relay.core.trust import Root
from relay.errors import PeerError, RetiredKey, TrustError
from relay.limits import AUDIT_ASK_S, AUDIT_HEAD, LOOKUP_S

_log = structlog.get_logger("cluster.audit")


class Onlookers:
    """One registrar's part. `registrars`: those of the other regions, by region."""

    def __init__(self, trail: Trail, root: Root, registrars: Mapping[str, Caller]) -> None:
        self._trail, self._root, self._registrars = trail, root, registrars
        self._told, self._checkpoint = -1, b""

    def checkpoint(self) -> bytes:
        """The newest checkpoint of this log that is not about others' logs alone."""
        if self._told != self._trail.told:
            self._told, self._checkpoint = self._trail.told, self._trail.checkpoint()
        return self._checkpoint

    async def run(self) -> None:
        """Ask the others, for ever. Raises DiskFailed."""
        while True:
            await self.look()
            await trio.sleep(AUDIT_ASK_S)

    async def look(self) -> None:
        """Each of them once, all at the same time."""
        async with trio.open_nursery() as nursery:
            for region in self._registrars:
                nursery.start_soon(self._ask, region)

    async def _ask(self, region: str) -> None:
        try:
            with trio.fail_after(LOOKUP_S):
                status, note = await self._registrars[region].ask("GET", "/audit", most=AUDIT_HEAD)
            if status == 200:  # one of an older release has no such page
                self._keep(region, note)
        except (trio.TooSlowError, PeerError):
            pass  # it is away, which gossip says
        except TrustError as error:
            _log.warning("audit_not_kept", region=region, text=error.text)

    def _keep(self, region: str, data: bytes) -> None:
        """Raises TrustError for what is not that registrar's own word."""
        whose, note = f"{region}/{REGISTRAR}", parse_note(data)
        origin = parse_checkpoint(note.text).origin
        if whose_log(origin)[0] != whose:
            raise LogError(f"the registrar of {region} shows the audit log {origin}")
        if self._before(region, data):
            what = f"the registrar of {region} shows an audit log that is signed with a key that was replaced"
            raise RetiredKey(what, "It begins a new one, with the key of now")
        key = VerifierKey(origin, ED25519, self._root.region(region).registrar_key)
        checkpoint = verify_checkpoint(note, Trust(key, (), 0)).checkpoint
        known = self._trail.seen.get(whose)
        if known is not None and self._before(region, str(known.about["checkpoint"]).encode()):
            self._trail.note_seen(whose, data)  # with the key the log began anew
        elif text := self._trail.keep(whose, checkpoint, data):
            _log.error("audit_log_contradicts_itself", region=region, text=text)

    def _before(self, region: str, data: bytes) -> bool:
        """Is that checkpoint signed with a key that this registrar had before?"""
        note = parse_note(data)
        origin = parse_checkpoint(note.text).origin
        keys = [VerifierKey(origin, ED25519, one.key) for one in self._root.region(region).earlier]
        return bool(signers(note, keys))
