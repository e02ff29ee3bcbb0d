"""The disk writer and versions of groups: the newest counts, and their lists come whole and alone."""

from __future__ import annotations

import pytest
from msgspec import structs

from relay.core import records
from relay.core.envelope import To
from relay.core.trust import Member, make_part
from tests.relay.journal.test_guard import (
    ABROAD, HERE, NOWHERE, Desk, Group, Person, handed, handed_roster, sealed,
)


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def anna(desk: Desk) -> Person:
    person = Person("anna")
    desk.write(person.home("anna's phone"))
    return person


@pytest.fixture
def lucia() -> Person:
    person = Person("lucia", ABROAD)
    person.home("lucia's phone")
    return person


def mail(group: Group, version: int = 1) -> records.HandIn:
    return handed(records.HANDIN_ENVELOPE, sealed(group.id, To.ROSTER, version))


def test_an_older_version_that_comes_again_changes_nothing(desk: Desk, anna: Person, lucia: Person) -> None:
    group = Group("lucia's phone")
    first = handed_roster(group.publish({HERE: [anna], ABROAD: [lucia]}))
    nobody = handed(records.HANDIN_NOBODY, group.publish({ABROAD: [lucia]}).head)
    desk.write(first)
    desk.write(nobody)
    desk.write(first)
    desk.refuses(mail(group), text="nobody is known to be here")
    third = handed_roster(group.publish({HERE: [anna], ABROAD: [lucia]}))
    desk.write(third, nobody)
    desk.write(mail(group, 3))


def test_of_one_version_the_first_word_counts(desk: Desk, anna: Person, lucia: Person) -> None:
    """Who says of the same signed head that nobody is here gets no mail stopped."""
    group = Group("lucia's phone")
    made = group.publish({HERE: [anna], ABROAD: [lucia]})
    desk.write(handed_roster(made), handed(records.HANDIN_NOBODY, made.head))
    desk.write(mail(group))
    desk.refuses(handed(records.HANDIN_NOBODY, made.head, b"somebody else's"), text="holds bytes")


def test_the_list_of_this_cell_comes_whole_and_alone(desk: Desk, anna: Person, lucia: Person) -> None:
    group, only = Group("anna's phone"), make_part(1, [Member(anna.id, 1)])
    made = group.publish({HERE: [anna], ABROAD: [lucia]})
    without = tuple((cell, part) for cell, part in made.parts if cell != HERE)
    desk.refuses(structs.replace(made, parts=without), text="not the one the head names")
    desk.write(made)
    abroad = Group("anna's phone").publish({ABROAD: [lucia]})
    desk.write(abroad)
    desk.refuses(structs.replace(abroad, parts=(*abroad.parts, (HERE, only))), text="does not verify")


def test_a_version_without_members_here_names_only_cells_of_the_root(desk: Desk, anna: Person, lucia: Person) -> None:
    head = Group("lucia's phone").publish({HERE: [], NOWHERE: [lucia]}).head
    desk.refuses(handed(records.HANDIN_NOBODY, head), text="which the root does not list")
