"""What was said before: nobody brings it back, nobody tells it otherwise, and parts of it are not mixed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuf.api import metadata as tuf

from cluster.federation.making import (
    Staged, delegations_of, sign_all,
)  # fmt: skip
from relay.core.trust.root import MAX_STEP, RegionPart, parse_bundle
from relay.errors import (
    BadSignature, BrokenChain, FastForward, MixAndMatch, Rollback,
)  # fmt: skip
from relay.limits import DAY

from tests.relay.core.trust.keepers import NAMES, NOW, Keepers, check, region, resigned, signers, swapped
from tests.flipping import flipped


# --- what was said before ------------------------------------------------------------------------
def test_an_older_document(keepers: Keepers) -> None:
    first = keepers.bundle
    second = check(keepers.publish())
    with pytest.raises(Rollback, match="timestamp version 1 after 2"):
        check(first, prev=second)
    rotated = check(keepers.publish(keepers.rotate(("a", "b"), ("root-1", "root-2", "a", "b"))))
    with pytest.raises(Rollback, match="root version 1 after 2"):
        check(first, prev=rotated)


def test_a_newer_timestamp_over_an_older_snapshot_or_region(keepers: Keepers) -> None:
    """Somebody with the online key cannot bring back what a region has replaced."""
    old = keepers.bundle
    trusted = check(keepers.publish(Staged(regions={"norden": keepers.part(region("norden", "new:1"), 2)})))
    attacker = Keepers(bundle=old)
    attacker.publish()
    with pytest.raises(Rollback, match="norden version 1 after 2"):
        check(attacker.publish(), prev=trusted)
    data = parse_bundle(old).bundle
    entry = tuf.MetaFile.from_data(1, data.snapshot, ["sha256"])
    late = tuf.Timestamp(9, None, parse_bundle(old).timestamp.signed.expires, entry)
    with pytest.raises(Rollback, match="snapshot version 1 after 2"):
        check(swapped(old, timestamp=sign_all(tuf.Metadata(late), signers("online")).to_bytes()), prev=trusted)


def test_a_region_left_out_of_the_snapshot(keepers: Keepers) -> None:
    trusted = check(keepers.bundle)
    targets = sign_all(keepers.delegate(2, "sauda"), signers("keeper-1", "keeper-2"))
    keepers.publish(Staged(targets=targets))
    before = parse_bundle(keepers.bundle)
    del before.snapshot.signed.meta["norden.json"]
    snapshot, timestamp = resigned(before, {})
    with pytest.raises(Rollback, match=r"does not list norden\.json any more"):
        check(swapped(keepers.bundle, snapshot=snapshot, timestamp=timestamp), prev=trusted)


def test_a_fork(keepers: Keepers) -> None:
    other = Keepers(bundle=keepers.bundle, now=NOW + DAY)
    trusted = check(keepers.publish())
    with pytest.raises(BrokenChain, match="two different timestamps of version 2: a fork"):
        check(other.publish(), prev=trusted)
    keepers.publish(keepers.rotate(("a", "b"), ("root-1", "root-2", "a", "b")))
    other.publish(other.rotate(("c", "d"), ("root-1", "root-2", "c", "d")))
    check(other.bundle)
    with pytest.raises(BrokenChain, match="two different root roles of version 2: a fork"):
        check(other.bundle, prev=check(keepers.bundle))


def test_a_region_with_two_statements_of_one_version(keepers: Keepers) -> None:
    """Who publishes shows one to some and the other to others: whoever sees both notices."""
    other = Keepers(bundle=keepers.bundle)
    trusted = check(keepers.publish(Staged(regions={"norden": keepers.part(region("norden", "a:1"), 2)})))
    other.publish()
    other.publish(Staged(regions={"norden": keepers.part(region("norden", "b:1"), 2)}))
    with pytest.raises(BrokenChain, match="two different files of norden version 2: a fork"):
        check(other.bundle, prev=trusted)


def test_fast_forward_is_recovered_from(keepers: Keepers) -> None:
    """A stolen online key has signed the highest versions: once it is replaced, what it said is forgotten."""
    honest = keepers.bundle
    before = parse_bundle(honest)
    before.timestamp.signed.version = before.snapshot.signed.version = 2**52
    snapshot, timestamp = resigned(before, {})
    poisoned = check(swapped(honest, snapshot=snapshot, timestamp=timestamp), prev=check(honest))
    with pytest.raises(Rollback, match="timestamp version 2 after"):
        check(Keepers(bundle=honest).publish(), prev=poisoned)
    healed = check(keepers.publish(keepers.rotate(keepers.root, ("root-1", "root-2"), online="new")), prev=poisoned)
    assert healed.rank > poisoned.rank and healed.payload.version == 2
    with pytest.raises(BadSignature, match="timestamp: signed by 0 of the 1"):
        check(swapped(keepers.bundle, timestamp=timestamp), prev=healed)


def test_a_region_leaves_room_for_the_versions_after_it(keepers: Keepers) -> None:
    """A stolen region key signs the highest version: with it taken in, the operator could say nothing any more, also
    not with the key that the keepers delegate to then."""
    honest = keepers.bundle
    trusted = check(honest)
    for version in (MAX_STEP + 2, 2**53 - 1):
        attacker = Keepers(bundle=honest)
        with pytest.raises(FastForward, match=f"norden is version {version} after 1"):
            check(attacker.publish(Staged(regions={"norden": keepers.part(region("norden"), version)})), prev=trusted)
    far = Keepers(bundle=honest).publish(Staged(regions={"norden": keepers.part(region("norden"), MAX_STEP + 1)}))
    assert check(far, prev=trusted).payload.version == 2
    came = Keepers(bundle=honest)
    delegated = sign_all(keepers.delegate(2, *NAMES, "vika"), signers("keeper-1", "keeper-2"))
    with pytest.raises(FastForward, match="vika is version"):
        check(came.publish(Staged(targets=delegated, regions={"vika": keepers.part(region("vika"), 2**53 - 1)})),
              prev=trusted)  # fmt: skip


def test_parts_of_different_publications(keepers: Keepers) -> None:
    first, old = check(keepers.bundle), parse_bundle(keepers.bundle).bundle
    norden = keepers.part(region("norden", "new:1"), 2)
    targets = sign_all(keepers.delegate(2, *NAMES), signers("keeper-1", "keeper-2"))
    keepers.publish(Staged(targets=targets, regions={"norden": norden}))
    new = parse_bundle(keepers.bundle).bundle
    attempts: dict[str, dict[str, Any]] = {
        "snapshot": {"snapshot": old.snapshot}, "targets": {"targets": old.targets},
        "region norden|norden": {"regions": (old.regions[0], new.regions[1])},
        "its statement": {"regions": (RegionPart("norden", norden.metadata, old.regions[0].statement), new.regions[1])},
        "just the regions": {"regions": new.regions[:1]},
    }  # fmt: skip
    for what, parts in attempts.items():
        for prev in (None, first):
            with pytest.raises(MixAndMatch, match=what):
                check(swapped(keepers.bundle, **parts), prev=prev)
    with pytest.raises(MixAndMatch):
        check(swapped(keepers.bundle, regions=tuple(reversed(new.regions))))


def test_versions_that_are_left_out_or_renumbered(keepers: Keepers) -> None:
    for number in (2, 3):
        keepers.publish(keepers.rotate(keepers.root, ("root-1", "root-2")))
        assert check(keepers.bundle).payload.root_version == number
    one, _, three = parse_bundle(keepers.bundle).bundle.roots
    with pytest.raises(BrokenChain, match="root version 2 calls itself version 3"):
        check(swapped(keepers.bundle, roots=(one, three)))
    with pytest.raises(BrokenChain, match="root version 1 calls itself version 3"):
        check(swapped(keepers.bundle, roots=(three,)))


def test_a_name_of_another_length_or_content_under_a_good_signature(keepers: Keepers) -> None:
    data = parse_bundle(keepers.bundle).bundle
    statement = flipped(data.regions[0].statement)
    with pytest.raises(MixAndMatch, match="its statement is not the one"):
        check(swapped(keepers.bundle, regions=(replace_part(data.regions[0], statement), data.regions[1])))


def replace_part(part: RegionPart, statement: bytes) -> RegionPart:
    return msgspec.structs.replace(part, statement=statement)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["publish", "region", "rotate", "online", "drop", "back"]), max_size=7), st.data())
def test_any_order_of_changes_is_followed_and_never_back(steps: list[str], data: st.DataObject) -> None:
    """Whoever has seen any publication takes every later one, and none that is earlier."""
    made = Keepers()
    history = [made.begin()]
    for number, step in enumerate(steps, 2):
        history.append(made.publish(_staged(made, step, number)))
    for bundle in history:
        check(bundle, pinned=check(history[0]).federation_id)
    early, late = sorted((data.draw(st.integers(0, len(steps))), data.draw(st.integers(0, len(steps)))))
    seen = check(history[early])
    newest = check(history[late], prev=seen)
    if early < late:
        assert newest.rank > seen.rank
        with pytest.raises(Rollback):
            check(history[early], prev=newest)


def _staged(made: Keepers, step: str, number: int) -> Staged:
    before = parse_bundle(made.bundle)
    if step == "region":
        name = next(iter(delegations_of(before.targets.signed)), "")
        entry = before.snapshot.signed.meta.get(f"{name}.json")
        return Staged(regions={name: made.part(region(name, f"h{number}:1"), entry.version + 1)}) if entry else Staged()
    if step in ("rotate", "online"):
        fresh = (made.root[1], made.root[2], f"root {number}") if step == "rotate" else made.root
        return made.rotate(fresh, made.root[1:] + fresh[-1:], online=f"online {number}" if step == "online" else "")
    if step in ("drop", "back"):
        names = NAMES[:1] if step == "drop" else NAMES
        version = before.targets.signed.version + 1
        targets = sign_all(made.delegate(version, *names), signers("keeper-1", "keeper-3"))
        listed = before.snapshot.signed.meta
        parts = {name: made.part(region(name), listed[f"{name}.json"].version + 1) for name in names}
        return Staged(targets=targets, regions=parts)
    return Staged()
