"""What policies permit: a table of send_to and receive_from, and what holds of any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.envelope import Header, To
from relay.core.policy import Policies, region_of
from relay.core.trust import Policy, Root, RootPayload, RootRegion
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import DAY, MAX_LIFETIME

A, B, C = "amber/1", "birch/1", "cedar/1"
NAMES = tuple(region_of(cell) for cell in (A, B, C))


def policies(**of: Policy) -> Policies:
    regions = tuple(RootRegion(name, b"", bytes(32), (), policy=of.get(name, Policy())) for name in NAMES)
    return Policies(Root(bytes(32), bytes(32), RootPayload("test", 1, 1, 1, 1, (), 1, regions), b""))


def header(days: float, kind: To = To.MAILBOX) -> Header:
    return Header(1, kind, bytes(32), 1, 1_000, 1_000 + int(days * DAY), 1)


@pytest.mark.parametrize(
    ("sends", "receives", "why"),
    [
        (None, None, ""),
        (("birch",), None, ""),
        ((), None, "amber does not send to birch"),
        (("cedar",), ("amber",), "amber does not send to birch"),
        (None, (), "birch does not receive from amber"),
        (("birch",), ("cedar",), "birch does not receive from amber"),
        (("birch", "cedar"), ("amber", "cedar"), ""),
    ],
)
def test_both_regions_have_a_say(sends: tuple[str, ...] | None, receives: tuple[str, ...] | None, why: str) -> None:
    asked = policies(amber=Policy(send_to=sends), birch=Policy(receive_from=receives))
    assert asked.forbidden(A, B) == why
    assert asked.forbidden(B, A) == "" and asked.forbidden(A, "amber/2") == ""
    refused = None
    try:
        asked.check_mail(header(1), A, B)
    except Refused as error:
        refused = error
    assert (refused and (refused.code, refused.cell, refused.text)) == ((Code.NOT_PERMITTED, B, why) if why else None)


def test_a_region_that_is_not_there_is_forbidden() -> None:
    assert policies().forbidden(A, "dunes/1") == "the federation has no region dunes"
    assert policies().forbidden("dunes/1", A) == "the federation has no region dunes"


def test_waiting() -> None:
    asked = policies(amber=Policy(hold="deny"))
    assert asked.may_wait(A, "amber/2") and asked.may_wait(B, A) and not asked.may_wait(A, B)


def test_groups() -> None:
    asked = policies(amber=Policy(send_to=("birch",)), birch=Policy(hold="deny"))
    assert asked.unshared(A, [A, B]) == ("", "")
    assert asked.unshared(A, [A, B, C]) == (C, "amber does not send to cedar")
    cell, why = asked.unshared(B, [B, C])
    assert cell == C and "nothing wait" in why
    asked.check_group_mail(header(1, To.ROSTER), A, [A, B, C])  # the copy for C is withheld by the forwarder
    with pytest.raises(Refused) as refused:
        asked.check_group_mail(header(1, To.ROSTER), B, [A, B])
    assert (refused.value.code, refused.value.cell) == (Code.NOT_PERMITTED, A)


def test_retention() -> None:
    asked = policies(birch=Policy(retention_days=7), cedar=Policy(retention_days=2))
    assert (asked.longest(A), asked.longest(A, B), asked.longest(A, B, C)) == (MAX_LIFETIME, 7 * DAY, 2 * DAY)
    asked.check_mail(header(7), A, B)
    asked.check_mail(header(30), A, A)
    with pytest.raises(Refused) as refused:
        asked.check_mail(header(7.001), A, B)
    assert (refused.value.code, refused.value.limit) == (Code.LIFETIME, 7 * DAY)
    with pytest.raises(Refused):
        asked.check_mail(header(7.001), B, A)  # it rests in the sender's region, too
    assert not asked.rests_too_long(header(31), B), "what nobody takes is the fold's to refuse"
    lists = policies(amber=Policy(send_to=("birch",)), birch=Policy(retention_days=7), cedar=Policy(retention_days=2))
    lists.check_group_mail(header(7, To.ROSTER), A, [A, B, C])  # nothing rests in cedar: it is not sent there


names = st.one_of(st.none(), st.lists(st.sampled_from(NAMES), unique=True).map(tuple))
any_policy = st.builds(
    Policy, names, names, st.sampled_from(["allow", "deny"]), st.one_of(st.none(), st.integers(1, 30)), st.just(0)
)


@given(any_policy, any_policy, any_policy, st.sampled_from((A, B, C)), st.sampled_from((A, B, C)), st.floats(0.1, 30))
def test_whatever_they_say(one: Policy, two: Policy, three: Policy, origin: str, dest: str, days: float) -> None:
    of = dict(zip(NAMES, (one, two, three), strict=True))
    asked, here, there = policies(**of), region_of(origin), region_of(dest)
    may = here == there or all(
        listed is None or name in listed for listed, name in ((of[here].send_to, there), (of[there].receive_from, here))
    )
    assert (asked.forbidden(origin, dest) == "") == may
    assert asked.may_wait(origin, dest) == (here == there or of[here].hold == "allow")
    kept = min(of[here].retention_days or 30, of[there].retention_days or 30)
    try:
        asked.check_mail(header(days), origin, dest)
        code = None
    except Refused as error:
        code = error.code
    assert code == (Code.NOT_PERMITTED if not may else Code.LIFETIME if int(days * DAY) > kept * DAY else None)
    shared = asked.unshared(origin, [dest])[0] == ""
    assert shared == (may and asked.may_wait(origin, dest))
