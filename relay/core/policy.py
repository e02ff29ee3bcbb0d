"""What the signed root permits a region's mail: where it may go and come from, whether it may wait at home, how long
it may rest (DESIGN section 5, rule 2; ADR 25).

One place, asked by three who do not trust each other: the sender's node (relay.core.route, the office, the forwarder),
the receiving node (cluster.handover) and the disk writer (relay.journal.guard). Never by the fold: nodes of a cell may
hold different root documents for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

from relay.core import records
from relay.core.envelope import Header
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import DAY, MAX_LIFETIME

MAIL: Final = frozenset({  # what crosses borders
    records.HANDIN_ENVELOPE, records.HANDIN_ROSTER, records.HANDIN_NOBODY, records.HANDIN_FORWARD,
})  # fmt: skip
_PAIRS: Final = 256  # of cells whose limits are remembered: it is asked for every envelope
_REMEDY: Final = "Its operator decides: posthouse directory show says what each region permits"


def region_of(cell: str) -> str:
    """The region of a cell, by its name."""
    return cell.partition("/")[0]


class Policies:
    """The policies of a verified root document, asked for cells of it by their names."""

    def __init__(self, root: Root) -> None:
        self.longest = lru_cache(_PAIRS)(self._longest)
        self.follow(root)

    def follow(self, root: Root) -> None:
        """Go by the policies of this root document from now on."""
        self._of = {region.name: region.policy for region in root.payload.regions}
        self.longest.cache_clear()

    def forbidden(self, origin: str, dest: str) -> str:
        """Why nothing may go from cell `origin` to cell `dest`, in words; empty where it may. Both regions have a say;
        within a region everything may."""
        here, there = region_of(origin), region_of(dest)
        if here == there:
            return ""
        sends, receives = self._of.get(here), self._of.get(there)
        if sends is None or receives is None:
            return f"the federation has no region {here if sends is None else there}"
        if sends.send_to is not None and there not in sends.send_to:
            return f"{here} does not send to {there}"
        if receives.receive_from is not None and here not in receives.receive_from:
            return f"{there} does not receive from {here}"
        return ""

    def may_wait(self, origin: str, dest: str) -> bool:
        """May an envelope bound for cell `dest` ("": somewhere abroad) wait on a disk of cell `origin`?"""
        here = region_of(origin)
        policy = self._of.get(here)
        return here == region_of(dest) or policy is None or policy.hold == "allow"

    def unshared(self, origin: str, cells: Iterable[str]) -> tuple[str, str]:
        """Of the cells of a group that devices of cell `origin` write to, or make, the first that it may not have, and
        why, in words; two empty ones where it may have them all. What goes to a group rests in the sender's cell."""
        for cell in cells:
            if why := self.forbidden(origin, cell):
                return cell, why
            if not self.may_wait(origin, cell):
                return cell, f"{region_of(origin)} lets nothing wait that is bound abroad, and so has no group with it"
        return "", ""

    def _longest(self, *cells: str) -> int:
        """The longest lifetime, ms, of an envelope that rests in these cells."""
        policies = [self._of.get(region_of(cell)) for cell in cells]
        days = [policy.retention_days for policy in policies if policy is not None and policy.retention_days]
        return min([MAX_LIFETIME, *(day * DAY for day in days)])

    def rests_too_long(self, header: Header, *cells: str) -> bool:
        """Would it rest longer than one of these cells keeps mail? (What no cell takes is the fold's to refuse.)"""
        return self.longest(*cells) < header.expires - header.created <= MAX_LIFETIME

    # --- for the sender's node -------------------------------------------------------------------
    def check_mail(self, header: Header, origin: str, dest: str) -> None:
        """May the envelope of that header, from a device of cell `origin`, go to its recipient in cell `dest`?
        Raises Refused: NOT_PERMITTED with the `cell`, LIFETIME with the `limit`."""
        if why := self.forbidden(origin, dest):
            raise Refused(Code.NOT_PERMITTED, why, _REMEDY, cell=dest)
        self._check_lifetime(header, origin, dest)

    def check_group_mail(self, header: Header, origin: str, cells: Sequence[str]) -> None:
        """The same for a group with members in `cells`. Where it may not go to one of them, the copy for that one is
        not sent, and the sender is told (cluster.forwarder)."""
        for cell in cells:
            if not self.may_wait(origin, cell):
                raise Refused(Code.NOT_PERMITTED, self.unshared(origin, [cell])[1], _REMEDY, cell=cell)
        self._check_lifetime(header, origin, *(cell for cell in cells if not self.forbidden(origin, cell)))

    def _check_lifetime(self, header: Header, *cells: str) -> None:
        if self.rests_too_long(header, *cells):
            limit = self.longest(*cells)
            raise Refused(Code.LIFETIME, f"it is kept for {limit // DAY} days at most", "Ask for less", limit=limit)
