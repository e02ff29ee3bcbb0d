"""The disk writer by another root document, while it runs."""

from __future__ import annotations

from relay.core import records
from relay.core.records import encode_record
from relay.core.trust import RootCell, RootRegion
from tests.relay.journal.test_guard import (
    FAR, HERE, NOWHERE, ROOT, STRANGER, Desk, Group, Person, handed_roster, public, submit,
)
from tests.roots import verified_root


def test_which_cells_there_are_is_asked_where_a_block_is_made_by_the_root_of_then() -> None:
    """Nodes of a cell take a new root document one after the other: who has the older one takes the leader's blocks,
    and who has a newer one, without that cell, still carries what waits for it."""
    desk, anna = Desk(), Person("anna")
    desk.write(anna.home("anna's phone"))
    letter = submit("anna's phone", STRANGER, NOWHERE)
    group = Group("anna's phone").publish({NOWHERE: [], HERE: [anna]})
    brought = handed_roster(group)
    for record in (letter, group, brought):
        desk.refuses(record, text="which the root does not list")
        desk.guard.check([encode_record(record)], made=True)
        desk.write(records.Carry((records.Carried(1, 0, encode_record(record)),)))
    region = RootRegion("west", b"", public("registrar of " + NOWHERE), (RootCell(NOWHERE, ()),))
    desk.guard.follow(verified_root([*ROOT.payload.regions, region], FAR))
    desk.write(letter, group)
    desk.guard.follow(ROOT)
    desk.refuses(letter, text="which the root does not list")
