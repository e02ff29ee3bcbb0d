"""Whoever attacks the root document: each attack on real code, with the keys that the attacker has, and no others."""

from __future__ import annotations

from typing import Any

import pytest
from tuf.api import metadata as tuf

from cluster.federation.making import (
    Holders, Staged, draft_targets, sign_all,
)  # fmt: skip
from relay.core.trust import Policy, reopen_root
from relay.core.trust.root import RegionPart, parse_bundle
from relay.core.trust.statement import encode_statement
from relay.errors import (
    BadSignature, BrokenChain, Frozen, NotValidNow, Rollback, TrustError,
)  # fmt: skip
from relay.limits import DAY

from tests.relay.core.trust.keepers import NAMES, NOW, YEAR, Keepers, check, edited, region, resigned, signers, swapped


# --- what is right -------------------------------------------------------------------------------
def test_what_a_root_document_says(keepers: Keepers) -> None:
    root = check(keepers.bundle)
    assert root.payload.federation == "test" and root.payload.threshold == 2 and len(root.payload.keys) == 3
    assert root.cells() == ["norden/1", "sauda/1"] and root.region("norden") == region("norden")
    assert root.cell("sauda/1") == region("sauda").cells[0] and root.cell("taiga/1") is None
    assert root.payload.fresh_until == NOW + 14 * DAY and root.payload.expires == NOW + 60 * DAY
    assert [one.name for one in root.payload.delegations] == list(NAMES)
    with pytest.raises(TrustError, match="no region 'taiga'"):
        root.region("taiga")
    assert check(keepers.bundle, pinned=root.federation_id) == root == check(keepers.bundle, prev=root)


def test_a_region_speaks_for_itself_and_the_pin_stays(keepers: Keepers) -> None:
    first = check(keepers.bundle)
    policy = Policy(send_to=("sauda",), receive_from=(), hold="deny", retention_days=7, quorum=1)
    changed = region("norden", "127.0.0.1:2", log_key="log+1+k", registrar_url="https://r.example", policy=policy)
    keepers.publish(Staged(regions={"norden": keepers.part(changed, 2)}))
    second = check(keepers.bundle, prev=first)
    assert second.region("norden") == changed and second.region("norden").policy.hold == "deny"
    keepers.publish(keepers.rotate(("a", "b"), ("root-1", "root-3", "a", "b")))
    third = check(keepers.bundle, prev=second, pinned=first.federation_id)
    assert third.federation_id == first.federation_id and third.digest != second.digest
    assert third.rank > second.rank > first.rank and third.payload.root_version == 2
    assert check(keepers.bundle, prev=first).payload == third.payload, "versions in between may have been missed"


def test_a_removed_region_is_gone_and_may_come_back(keepers: Keepers) -> None:
    keepers.publish(Staged(regions={"norden": keepers.part(region("norden"), 2)}))
    keepers.publish(Staged(targets=sign_all(keepers.delegate(2, "sauda"), signers("keeper-1", "keeper-2"))))
    gone = check(keepers.bundle)
    assert gone.cells() == ["sauda/1"]
    for version in (1, 3):
        again = Keepers(bundle=keepers.bundle)
        targets = sign_all(keepers.delegate(3, *NAMES), signers("keeper-1", "keeper-2"))
        again.publish(Staged(targets=targets, regions={"norden": keepers.part(region("norden"), version)}))
        if version == 3:
            assert check(again.bundle, prev=gone).cells() == ["norden/1", "sauda/1"]
        else:
            with pytest.raises(Rollback, match="norden version 1 after 2"):
                check(again.bundle, prev=gone)


@pytest.mark.parametrize(("days", "error", "what"), [
    (14, Frozen, "timestamp version 1 has expired"),
    (60, NotValidNow, "snapshot version 1 has expired"),
    (365, NotValidNow, "root version 1 has expired"),
])  # fmt: skip
def test_what_has_run_out(keepers: Keepers, days: int, error: type[TrustError], what: str) -> None:
    end = NOW + days * DAY
    if days == 14:
        check(keepers.bundle, end - 1)
        assert reopen_root(keepers.bundle, end).payload.fresh_until == end, "what was trusted is used on, loudly"
    if days == 60:
        reopen_root(keepers.bundle, end - 1)
    with pytest.raises(error, match=what):
        (check if days == 14 else reopen_root)(keepers.bundle, end)


def test_targets_that_have_run_out(keepers: Keepers) -> None:
    old = Keepers(now=NOW - YEAR)
    keepers.publish(Staged(targets=sign_all(old.delegate(2, *NAMES), signers("keeper-1", "keeper-2"))))
    with pytest.raises(NotValidNow, match="targets version 2 has expired"):
        check(keepers.bundle)


def test_a_region_that_ran_out_is_out_and_nobody_else(keepers: Keepers) -> None:
    lazy = Keepers(now=NOW - YEAR).part(region("norden"), 2)
    root = check(keepers.publish(Staged(regions={"norden": lazy})))
    assert root.cells() == ["sauda/1"] and root.payload.lapsed == ("norden",)
    with pytest.raises(NotValidNow, match="statement of region norden has expired"):
        root.region("norden")


# --- the keys that sign --------------------------------------------------------------------------
def test_another_federation(keepers: Keepers) -> None:
    root = check(keepers.bundle)
    other = Keepers(root=("evil-1", "evil-2", "evil-3")).begin()
    for more in ({"pinned": root.federation_id}, {"prev": root}):
        with pytest.raises(BrokenChain, match="another federation's"):
            check(other, **more)


@pytest.mark.parametrize("by", [("root-1",), ("root-1", "evil-1"), ("evil-1", "evil-2", "evil-3")])
def test_a_root_that_too_few_have_signed(by: tuple[str, ...]) -> None:
    made = Keepers()
    made.begin()
    first = parse_bundle(made.bundle).bundle.roots[0]
    metadata: tuf.Metadata[tuf.Root] = tuf.Metadata.from_bytes(first)
    metadata.signatures.clear()
    with pytest.raises(BadSignature, match=r"root version 1: signed by [01] of the 2 keys"):
        check(swapped(made.bundle, roots=(sign_all(metadata, signers(*by)).to_bytes(),)))


@pytest.mark.parametrize(("by", "what"), [
    (("a", "b"), "by the keys of version 1: signed by 0 of the 2"),
    (("a", "b", "root-1"), "by the keys of version 1: signed by 1 of the 2"),
    (("root-1", "root-2", "a"), "root version 2: signed by 1 of the 2"),
])  # fmt: skip
def test_a_rotation_needs_old_and_new(keepers: Keepers, by: tuple[str, ...], what: str) -> None:
    first = check(keepers.bundle)
    keepers.publish(keepers.rotate(("a", "b", "c"), by))
    for more in ({}, {"prev": first}):
        with pytest.raises(BadSignature, match=what):
            check(keepers.bundle, **more)


def test_keys_that_were_rotated_out_say_nothing_more(keepers: Keepers) -> None:
    keepers.publish(keepers.rotate(("a", "b", "c"), ("root-1", "root-2", "a", "b")))
    check(keepers.bundle)
    keepers.publish(keepers.rotate(("root-1", "root-2"), ("root-1", "root-2")))
    with pytest.raises(BadSignature, match="root version 3, by the keys of version 2: signed by 0"):
        check(keepers.bundle)


def test_the_keepers_do_not_sign_roots_nor_roots_targets(keepers: Keepers) -> None:
    staged = Staged(targets=sign_all(keepers.delegate(2, "norden"), signers("root-1", "root-2", "online")))
    with pytest.raises(BadSignature, match="targets: signed by 0 of the 2"):
        check(keepers.publish(staged))


@pytest.mark.parametrize("by", ["region sauda", "keeper-1", "online", "root-1"])
def test_nobody_else_signs_for_a_region(keepers: Keepers, by: str) -> None:
    part = keepers.part(region("norden", "evil:1"), 2, by)
    before = parse_bundle(keepers.bundle)
    with pytest.raises(BadSignature, match="region norden: signed by 0 of the 1"):
        keepers.publish(Staged(regions={"norden": part}))
    snapshot, timestamp = resigned(before, {"norden": (2, part.metadata)})
    with pytest.raises(BadSignature, match="region norden: signed by 0 of the 1"):
        check(swapped(keepers.bundle, regions=(part, before.bundle.regions[1]), snapshot=snapshot, timestamp=timestamp))


def test_a_region_signs_its_own_statement_and_nothing_else(keepers: Keepers) -> None:
    other, before = keepers.part(region("sauda", "evil:1"), 2, "region norden"), parse_bundle(keepers.bundle)
    alien = RegionPart("norden", other.metadata, other.statement)
    snapshot, timestamp = resigned(before, {"norden": (2, alien.metadata)})
    regions = (alien, before.bundle.regions[1])
    with pytest.raises(TrustError, match=r"signs something else than norden\.region"):
        check(swapped(keepers.bundle, regions=regions, snapshot=snapshot, timestamp=timestamp))
    statement = encode_statement(region("sauda", "evil:1"))
    target = tuf.TargetFile.from_data("norden.region", statement, ["sha256"])
    signed = tuf.Targets(2, None, before.targets.signed.expires, {"norden.region": target})
    alien = RegionPart("norden", sign_all(tuf.Metadata(signed), signers("region norden")).to_bytes(), statement)
    with pytest.raises(TrustError, match="statement of another region"):
        keepers.publish(Staged(regions={"norden": alien}))


def test_one_key_under_two_ids_counts_once(keepers: Keepers) -> None:
    def double(signed: dict[str, Any]) -> None:
        (keyid, *_), keys = signed["roles"]["root"]["keyids"], signed["keys"]
        keys["0" * 64] = dict(keys[keyid])
        signed["roles"]["root"]["keyids"].append("0" * 64)

    (first,) = parse_bundle(keepers.bundle).bundle.roots
    with pytest.raises(TrustError, match="under two ids"):
        check(swapped(keepers.bundle, roots=(edited(first, double, "root-1", "root-2"),)))


def test_one_key_does_not_sign_for_two_regions(keepers: Keepers) -> None:
    held = {name: Holders.of(signers("region norden")) for name in NAMES}
    targets = sign_all(draft_targets(2, held, NOW + YEAR), signers("keeper-1", "keeper-2"))
    regions = {"sauda": keepers.part(region("sauda"), 2, "region norden")}
    with pytest.raises(TrustError, match="one key may sign for norden and for sauda"):
        check(keepers.publish(Staged(targets=targets, regions=regions)))


@pytest.mark.parametrize("path", ["*", "sauda.region", "*.region"])
def test_a_delegation_beyond_a_regions_own_statement(keepers: Keepers, path: str) -> None:
    targets = keepers.delegate(2, *NAMES)
    assert targets.signed.delegations is not None and targets.signed.delegations.roles is not None
    targets.signed.delegations.roles["norden"].paths = [path]
    with pytest.raises(TrustError, match="not for its own statement alone"):
        check(keepers.publish(Staged(targets=sign_all(targets, signers("keeper-1", "keeper-2")))))
