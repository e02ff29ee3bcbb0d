"""Which root document a running node goes by, and who of its parts is told when that is another one (ADR 18).

Regions that came or changed count at once, everywhere in the process: nothing runs between the first part that is told
and the last. What cannot be followed is who the nodes of the own cell are, since its members come and go one by one, by
its log; that waits for a restart. What says nothing of the own region, or of one that let its statement run out,
changes nothing of what is known of it: the own cell goes on, and the other's mail waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain

from msgspec import structs

from relay.core.policy import region_of
from relay.core.trust import Root, RootCell, RootRegion

Follow = Callable[[Root], None]


def followed(before: Root, new: Root, cell: str) -> tuple[Root, str]:
    """What a node of `cell` that goes by `before` goes by once it has verified `new`; and what of that waits for a
    restart, in words (empty: nothing)."""
    said = {region.name: region for region in new.payload.regions}
    silent = {*new.payload.lapsed, region_of(cell)} - said.keys()
    waits = f"it does not name {region_of(cell)}, the own region" if region_of(cell) in silent else ""
    said |= {region.name: region for region in before.payload.regions if region.name in silent}
    here, own = before.cell(cell), said.get(region_of(cell))
    if here is not None and own is not None and _names(here) != _names(new.cell(cell)) and not waits:
        others = tuple(one for one in own.cells if one.name != cell)
        said[own.name] = structs.replace(own, cells=(here, *others))
        waits = f"it lists other nodes of {cell}"
    payload = structs.replace(new.payload, regions=tuple(said.values()))
    return structs.replace(new, payload=payload), waits


def _names(cell: RootCell | None) -> set[str]:
    return {node.name for node in cell.nodes} if cell else set()


def changed(old: Root, new: Root) -> list[str]:
    """Regions of which the two say different things."""
    before, after = _by_name(old), _by_name(new)
    return [name for name in dict.fromkeys((*before, *after)) if before.get(name) != after.get(name)]


def _by_name(root: Root) -> dict[str, RootRegion]:
    return {region.name: region for region in root.payload.regions}


class Following:
    """The owner of which root document the parts of a process go by. `cell`: whose node it is."""

    def __init__(self, root: Root, cell: str) -> None:
        self.root = root
        self.waits = ""  # what of the newest one counts after a restart only, in words
        self._cell = cell
        self._always: list[Follow] = []
        self._parts: list[Follow] = []

    def begin(self) -> Root:
        """A new life of the process: the parts of the one before are told nothing more. What it begins with."""
        self._parts = []
        return self.root

    def add(self, parts: Iterable[Follow], *, always: bool = False) -> None:
        """Tell these what counts now, and whenever that changes. `always`: also in lives to come."""
        for part in parts:
            (self._always if always else self._parts).append(part)
            part(self.root)

    def take(self, verified: Root) -> list[str]:
        """Go by a root document that was verified, as far as that goes. Returns the regions that it changes."""
        before = self.root
        self.root, self.waits = followed(before, verified, self._cell)
        for part in chain(self._always, self._parts):
            part(self.root)
        return changed(before, self.root)
