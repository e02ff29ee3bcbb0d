"""What the policies of the signed root mean for a letter, said once more in another way than relay.core.policy does: by
whole ways from a sender's home to a recipient's, and on from home to home."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from relay.core.trust import Policy
from relay.limits import DAY
from tests.simulation.people import Group, Person, region_of

_FREE = Policy()


def draw(random: Random, regions: Sequence[str]) -> dict[str, Policy]:
    """A policy for each region, most of them strict in one thing or two."""

    def some(region: str) -> tuple[str, ...] | None:
        if random.random() < 0.65:
            return None
        return tuple(other for other in regions if other != region and random.random() < 0.6)

    return {
        region: Policy(
            some(region), some(region), random.choice(["allow", "allow", "deny"]), random.choice([None, None, 1, 2])
        )
        for region in regions
    }  # fmt: skip


class Rules:
    """`policies`: by region; without any everything goes everywhere."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._of = policies

    def __bool__(self) -> bool:
        return bool(self._of)

    def open(self, here: str, there: str) -> bool:
        """Is the border open to mail in this direction?"""
        sends, receives = self._of.get(here, _FREE).send_to, self._of.get(there, _FREE).receive_from
        return here == there or ((sends is None or there in sends) and (receives is None or here in receives))

    def holds(self, region: str) -> bool:
        """May what is bound abroad wait there?"""
        return self._of.get(region, _FREE).hold == "allow"

    def keeps(self, region: str, lifetime_ms: int) -> bool:
        days = self._of.get(region, _FREE).retention_days
        return days is None or lifetime_ms <= days * DAY

    def shares(self, owner: str, members: Iterable[str]) -> bool:
        """May a group whose owner is at home in one region have members in these?"""
        return all(owner == one or (self.open(owner, one) and self.holds(owner)) for one in members)

    def may_move(self, person: Person, region: str) -> bool:
        """Can what is left in the homes of this person follow there?"""
        return all(self.open(home, region) for home in person.homes)

    # --- letters to one person -----------------------------------------------------------------------
    def _goes(self, here: str, there: str, lifetime_ms: int) -> bool:
        return self.open(here, there) and self.keeps(here, lifetime_ms) and self.keeps(there, lifetime_ms)

    def to_one(self, sender: Person, to: Person, lifetime_ms: int) -> frozenset[str]:
        """Where a letter may rest. Either may have moved, and not everybody may know."""
        ways = [(s, r) for s in sender.homes for r in to.homes if self._goes(s, r, lifetime_ms)]
        waits = {s for s, r in ways if s == r or self.holds(s)}
        return frozenset(waits | self._on({r for _, r in ways}, to.homes))

    def may_refuse(self, sender: Person, to: Person, lifetime_ms: int) -> bool:
        """Is there a way that is closed to it?"""
        return not all(self._goes(s, r, lifetime_ms) for s in sender.homes for r in to.homes)

    def _on(self, reached: set[str], homes: Iterable[str]) -> set[str]:
        """These, and where what rests there is sent on when people move."""
        while more := {r for r in homes for at in reached if r not in reached and self.open(at, r)}:
            reached |= more
        return reached

    # --- letters to groups ---------------------------------------------------------------------------
    def gets(self, sender: str, member: str, lifetime_ms: int) -> bool:
        """Does a member who is listed there get what comes from a cell of this region?"""
        return self.open(sender, member) and self.keeps(member, lifetime_ms)

    def to_group(self, sender: Person, group: Group, version: int, lifetime_ms: int) -> frozenset[str]:
        """The same for a letter to a version of a group. A cell goes by the newest version that it knows."""
        found = set()
        later = [{region_of(cell) for cell in cells.values()} for n, cells in group.cells.items() if n >= version]
        for s in sender.homes:
            if not self.keeps(s, lifetime_ms) or not (self.holds(s) or any(listed <= {s} for listed in later)):
                continue
            found |= {s, *(r for r in group.regions if self.gets(s, r, lifetime_ms))}
        return frozenset(self._on(found, group.regions))

    def may_refuse_group(self, sender: Person, group: Group, lifetime_ms: int) -> bool:
        return not all(
            self.holds(s) and self._goes(s, r, lifetime_ms) for s in sender.homes for r in {s, *group.regions}
        )
